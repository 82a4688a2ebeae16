"""Repairing what can be repaired without losing anything.

========================  =============================================================================================
found                     done
========================  =============================================================================================
interrupted transaction   finished or taken back, as before every change (``repo/transaction/recovery.py``)
temporary links of ours   removed, with it
a missing link            made again, where its object is there, measures right, and has everything that it needs
a ref that stops the      recorded in ``cfs-tags/quarantine/`` and taken out, where its owner was named and no object can be
collectors                what it led to
========================  =============================================================================================

All under the exclusive repository lock, in the order: links, records, refs; stopped anywhere and run again it comes to the
same.  Nothing else is removed, nothing is overwritten but a link that leads to nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, SystemFailure
from cfs_tags.formats import splitstream
from cfs_tags.fsck import objects, quarantine
from cfs_tags.fsck.check import Progress, Report, check, fsck, in_order
from cfs_tags.fsck.findings import Finding
from cfs_tags.fsck.images import KINDS, split_content_id
from cfs_tags.fsck.roots import BrokenRef
from cfs_tags.fsck.streams import StreamFacts, check_image, check_stream
from cfs_tags.host import pins
from cfs_tags.repo import fsops, images, layout, reflog
from cfs_tags.repo.images import EROFS_KEY
from cfs_tags.repo.layout import QUARANTINE, TMP
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.tags.pins import list_pins
from cfs_tags.values import ContentId, ObjectId

_DOCUMENTS = (splitstream.CONTENT_TYPE_MANIFEST, splitstream.CONTENT_TYPE_CONFIG)


class LinkRepair(NamedTuple):
    """A link in ``streams/`` or ``images/`` that is made again; ``old`` is its text now, None if it is gone."""

    path: str
    object: str
    old: str | None


class RepairPlan(NamedTuple):
    """What a repair does.

    Attributes:
        links: made again, in this order.
        refs: taken out.
        left: refs that stop collectors and are not taken out, each with an object that may be what it led to.
        spent: records of refs that are back, removed.
        recovers: whether an interrupted change is to be finished or cleared.
    """

    links: tuple[LinkRepair, ...]
    refs: tuple[BrokenRef, ...]
    left: tuple[tuple[str, str], ...]
    spent: tuple[str, ...]
    recovers: bool

    @property
    def changes(self) -> tuple[RefChange, ...]:
        """To refs."""
        return tuple(RefChange(ref.path, ref.link, None, "quarantine") for ref in self.refs)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.links or self.refs or self.spent or self.recovers)


class Repaired(NamedTuple):
    """What was found, each finding with whether it was (in a dry run: would be) repaired; and what was done."""

    report: Report
    plan: RepairPlan
    findings: tuple[Finding, ...]


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(repo: ReadRepo, report: Report, *, owners: Sequence[str] = ()) -> RepairPlan:
    """What can be repaired of what was found.

    Args:
        repo: where; only read.
        report: of a check; it is used up: links that are planned are taken for made in it.
        owners: owners, besides ``app``, whose refs may be taken out.
    """
    finder = _Links(repo, report)
    links = finder.plan()
    made = {link.path for link in links}
    mine = [ref for ref in report.roots.broken if ref.owner == "app" or ref.owner in owners]
    broken = tuple(ref for ref in mine if _leads_to(ref) not in finder.there)
    left = tuple(
        (ref.path, finder.there[target]) for ref in mine if (target := _leads_to(ref)) in finder.there and target not in made
    )
    state = report.state
    # a stop between record and ref leaves both
    kept = {quarantine.file_of(ref.path, ref.link) for ref in broken}
    spent = tuple(file for file in state.spent if file not in kept)
    return RepairPlan(links, broken, left, spent, bool(state.journals or state.left_over))


def _leads_to(ref: BrokenRef) -> str:
    """Path of the link that a ref leads to; of none where it leads elsewhere."""
    return f"{ref.path.partition('/')[0]}/{ref.name}" if ref.name else ""


class _Links:
    """Finds the objects of links that are gone.

    Attributes:
        there: paths of links with an object that is, or may be, what they led to, whole or not: refs to them stay.
    """

    def __init__(self, repo: ReadRepo, report: Report) -> None:
        self._repo = repo
        self._report = report
        self._streams = report.streams
        self._planned: dict[str, LinkRepair] = {}
        self._sound: dict[str, bool] = {}
        self.there: dict[str, str] = {}

    def plan(self) -> tuple[LinkRepair, ...]:
        """What can be made again: in the order in which it is made, what is behind a link before it."""
        wanted = {_leads_to(ref) for ref in self._report.roots.broken}
        for path in sorted(wanted):
            tree, _, name = path.partition("/")
            if tree == layout.IMAGES and name in self._report.objects:
                self._image(name)
        for name in self._streams.missing_images:
            self._image(name)
        names = sorted(path.partition("/")[2] for path in wanted if path.startswith("streams/"))
        found = self._unlinked(names) if names else {}
        for name in names:
            prefix, digest = split_content_id(name)
            fitting = [
                target for target, facts in found.items() if facts.digest == digest and facts.kind in KINDS.get(prefix, ())
            ]
            if fitting:
                self._try(name, sorted(fitting, key=self._preference, reverse=True))
        tried: set[str] = set()
        while left := set(self._streams.missing_links) - tried:
            for name in sorted(left):
                self._try(name, [self._streams.missing_links[name].object])
            tried |= left
        for name in names:
            for target, facts in found.items():
                if target not in self._streams.names and self._may_be(name, facts):
                    self.there.setdefault(f"streams/{name}", target)
        return tuple(sorted(self._planned.values(), key=_depth))

    def _image(self, name: str) -> None:
        path = f"images/{name}"
        self.there[path] = name
        if path in self._planned or path in self._report.links.of(layout.IMAGES):
            return
        facts = check_image(self._repo, name, path, self._report.objects)
        if not facts.missing and not facts.findings and self._measures(name):
            self._planned[path] = LinkRepair(path, name, self._old(path))

    def _unlinked(self, names: Sequence[str]) -> dict[str, StreamFacts]:
        """The splitstreams that no link names, with the digests of their contents: their own bytes say what they are.

        Those of layers and blobs are hashed where such a name is wanted, for which all of their objects are read.
        """
        kinds = {kind for name in names for kind in KINDS.get(split_content_id(name)[0], ())}
        everything = any(not split_content_id(name)[0] for name in names)
        found = {}
        for target in _unlinked_streams(self._repo, self._report):
            facts = self._streams.facts(target, f"object {target[:12]}…", "sha256")
            if not facts.digest and facts.whole and facts.kind not in _DOCUMENTS and (everything or facts.kind in kinds):
                facts = check_stream(self._repo, target, "", self._report.objects, algorithm="sha256", content=True)
            found[target] = facts
        return found

    def _may_be(self, name: str, facts: StreamFacts) -> bool:
        """Whether an unlinked splitstream can be what was called so: its kind fits, and nothing says that it is another."""
        prefix, digest = split_content_id(name)
        if prefix and facts.kind:
            return facts.kind in KINDS[prefix] and facts.digest in ("", digest)
        # a name of another program says nothing; an older writing of what is linked is known, though
        known = [prefix + facts.digest for prefix, kinds in KINDS.items() if facts.kind in kinds]
        return not facts.digest or not any(one in self._streams.links.streams for one in known)

    def _preference(self, target: str) -> tuple[int, int, str]:
        """Of several objects with one content the one that names most, and has most links behind it."""
        facts = self._streams.facts(target, "", "")
        linked = sum(behind in self._streams.names for _, behind in facts.named)
        return len(facts.named), linked, target

    def _try(self, name: str, candidates: Sequence[str]) -> None:
        path = f"streams/{name}"
        self.there.setdefault(path, candidates[0])
        for target in candidates:
            if path not in self._planned and self._is_whole(self._streams.facts(target, path, "sha256")):
                self._planned[path] = LinkRepair(path, target, self._old(path))
                self._streams.adopt(name, target)

    def _old(self, path: str) -> str | None:
        target = self._report.links.broken.get(path)
        if target is None and path in self._report.links.unusable:
            return self._repo.read_link(path)
        return layout.object_link(ObjectId.trusted(target)) if target is not None else None

    def _is_whole(self, top: StreamFacts) -> bool:
        """Whether everything behind a stream is there, and the streams themselves measure right.

        A link to less would tell a pull that it need not fetch what is missing.
        """
        seen: set[str] = set()
        pending = [top]
        while pending:
            facts = pending.pop()
            if facts.object in seen:
                continue
            seen.add(facts.object)
            if not facts.whole or facts.findings or not self._measures(facts.object):
                return False
            for key, target in facts.named:
                if not key.startswith(EROFS_KEY):
                    pending.append(self._streams.facts(target, f"{key} of object {facts.object[:12]}…", "sha256"))
        return True

    def _measures(self, target: str) -> bool:
        if target not in self._sound:
            try:
                self._sound[target] = objects.measure_object(self._repo, target) == target
            except OSError:
                self._sound[target] = False
        return self._sound[target]


def _depth(link: LinkRepair) -> tuple[int, str]:
    """Layers and images, then configs, then manifests: a collector must not find the one without the other."""
    name = link.path.partition("/")[2]
    return 2 if name.startswith(ContentId.MANIFEST) else 1 if name.startswith(ContentId.CONFIG) else 0, link.path


def _unlinked_streams(repo: ReadRepo, report: Report) -> Iterator[str]:
    """Objects that begin as a splitstream does, and that no link names."""
    linked = set(report.links.streams.values()) | set(report.links.images.values())
    for target in sorted(set(report.objects) - linked):
        try:
            fd = repo.open_object(ObjectId.trusted(target), "fsck")
        except CfsTagsError:
            continue
        try:
            start = os.read(fd, 32)
        except OSError:
            continue
        finally:
            os.close(fd)
        if splitstream.looks_like_one(start):
            yield target


# -- doing -------------------------------------------------------------------------------------------------------------


def repair(
    repo: WriteRepo,
    *,
    content: bool = False,
    owners: Sequence[str] = (),
    links_only: bool = False,
    dry_run: bool = False,
    note: Note = NO_NOTE,
    jobs: int | None = None,
    progress: Progress | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Repaired:
    """Check a repository, and repair what can be repaired without losing anything.

    The check is made under the shared lock, content included; only where there is something to repair the metadata is
    checked again, planned for and repaired under the exclusive lock.

    Args:
        repo: where.
        content: read every byte, as in :func:`fsck`.
        owners: owners, besides ``app``, whose refs may be taken out.
        links_only: take no ref out.
        dry_run: only plan.
        note: for the reflog.
        jobs: as in :func:`fsck`.
        progress: as in :func:`fsck`.
        timeout: seconds to wait for locks.

    Raises:
        LockTimeout, LockConflict: another process, or this one, holds a lock.
        SystemFailure: the system refused; run again, it goes on where it was.
    """
    report = fsck(repo, content=content, jobs=jobs, progress=progress, timeout=timeout)
    findings, is_back = _with_pins(repo, report.findings, timeout, dry_run=dry_run)
    report = report._replace(findings=findings)
    planned = partial(_links_alone if links_only else plan, repo, owners=owners)
    first = planned(report)
    if dry_run or (first.empty and not is_back):
        return Repaired(report, first, _marked(report.findings, first, report))
    reports: list[Report] = []

    def planner() -> RepairPlan:
        reports.append(check(repo, jobs=jobs))
        made = planned(reports[-1])
        _refuse_another_choice(first, made)
        return made

    done = run.transact(
        repo, planner, note, timeout, exclusive=True, prepare=lambda made: _execute(repo, made, reflog.timestamp())
    )
    last = reports[-1]
    done = done._replace(recovers=first.recovers)
    return Repaired(last, done, _marked(of_both(report.findings, last.findings), done, last))


def _refuse_another_choice(first: RepairPlan, last: RepairPlan) -> None:
    """Of two splitstreams with one content the better one could not be read once: the other is not taken for that."""
    chosen = {link.path: link.object for link in first.links}
    for link in last.links:
        if chosen.get(link.path, link.object) != link.object:
            reason = f"object {link.object[:12]}… was found for it, {chosen[link.path][:12]}… a moment before: run it again"
            raise SystemFailure(operation="repair", path=link.path, reason=reason, errno=errno.EAGAIN)


def _with_pins(
    repo: WriteRepo, findings: tuple[Finding, ...], timeout: float, *, dry_run: bool
) -> tuple[tuple[Finding, ...], bool]:
    """Give objects their names again that are gone and that a pin keeps.

    Returns:
        The findings, with those marked that are mended so; and whether there were any such objects: links to what needs them
        can be made then.
    """
    if not any(one.code in _GONE for one in findings):
        return findings, False
    known = list_pins(repo)
    back = {one for pin in known for one in pins.lacking(repo, pin)}
    marked = [one._replace(repaired=True) if one.code in _GONE and _comes_back(repo, one, back) else one for one in findings]
    if not dry_run:
        with repo.locked("shared", timeout):
            for pin in known:
                pins.put_back(repo, pin)
    return tuple(marked), bool(back)


def _comes_back(repo: ReadRepo, finding: Finding, back: set[ObjectId]) -> bool:
    if finding.code == "missing-object":
        return finding.path in {layout.object_path(one) for one in back}
    digest = ContentId.trusted(finding.path.rpartition("/")[2]).manifest_digest
    return digest is not None and all(set(one.objects) <= back for one in images.missing_content(repo, digest))


_GONE = ("missing-object", "content-missing")


def _links_alone(repo: ReadRepo, report: Report, *, owners: Sequence[str]) -> RepairPlan:
    return plan(repo, report, owners=owners)._replace(refs=(), spent=())


_CONTENT = ("wrong-object-digest", "wrong-layer-digest", "unreadable")
"""Codes that the check under the exclusive lock, which reads metadata alone, cannot find again."""


def of_both(first: Sequence[Finding], last: Sequence[Finding], *, content: bool = False) -> Sequence[Finding]:
    """The findings of the first check, repaired where the check after the recovery has them no more, and what came since.

    ``content`` says whether the last one has read all content, too.
    """
    again = {(one.code, one.path): one for one in last}
    unseen = () if content else _CONTENT
    findings = [one if one.code in unseen else again.get((one.code, one.path), one._replace(repaired=True)) for one in first]
    known = {(one.code, one.path) for one in findings}
    return in_order([*findings, *(one for one in last if (one.code, one.path) not in known)])


def _marked(findings: Sequence[Finding], made: RepairPlan, report: Report) -> tuple[Finding, ...]:
    """Findings with those that the plan mends marked."""
    links = {link.path for link in made.links}
    mended = {(code, path) for path in links for code in ("missing-link", "broken-link")}
    mended |= {(ref.code, ref.path) for ref in made.refs}
    mended |= {(ref.code, ref.path) for ref in report.roots.broken if _leads_to(ref) in links}
    recovered = ("pending-transaction", "left-over-file") if made.recovers else ()
    left = {
        path: f"; it is not taken out, because object {target[:12]}… is there and may be what it led to"
        for path, target in made.left
    }
    return tuple(
        one._replace(
            message=one.message + (left.get(one.path, "") if one.code == "dangling-ref" else ""),
            repaired=one.repaired or one.code in recovered or (one.code, one.path) in mended,
        )
        for one in findings
    )


def _execute(repo: WriteRepo, made: RepairPlan, time: str) -> None:
    """All but the refs; the caller holds the locks, and changes the refs afterwards."""
    try:
        if made.links:
            fsops.sync_filesystem(repo.fd)  # what the links lead to, first
            depth = 0
            for link in made.links:
                if _depth(link)[0] != depth:
                    depth = _depth(link)[0]
                    fsops.sync(repo.fd, layout.STREAMS)
                _make(repo, link)
            for tree in sorted({link.path.partition("/")[0] for link in made.links}):
                fsops.sync(repo.fd, tree)
        for ref in made.refs:
            quarantine.keep(repo, ref, time)
        if made.refs:
            fsops.sync(repo.fd, QUARANTINE)
        for file in made.spent:
            with suppress(FileNotFoundError):
                fsops.remove(repo.fd, file)
    except OSError as error:
        raise SystemFailure.of(error, "repair", repo.path) from error


def _make(repo: WriteRepo, link: LinkRepair) -> None:
    text = layout.object_link(ObjectId.trusted(link.object))
    if link.old is None:
        fsops.make_link(repo.fd, link.path, text)
        return
    if repo.read_link(link.path) != link.old:
        raise FormatError(structure="link", offset=0, wanted=link.old, found="something else", path=link.path)
    spare = f"{TMP}/fsck"
    with suppress(FileNotFoundError):
        fsops.remove(repo.fd, spare)
    fsops.make_link(repo.fd, spare, text)
    fsops.rename(repo.fd, spare, link.path)
