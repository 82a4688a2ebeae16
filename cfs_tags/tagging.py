"""Changing tags: each change is planned as a value, which is also what a dry run shows, then carried out.

Planners (``plan…``) only read and raise where something cannot be; :func:`apply` calls one under the locks and carries
its plan out.  What is made and moved names a manifest that is there and complete (:func:`contents.missing_parts`).
"""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import (
    BadRefLink,
    ExpectationFailed,
    IncompleteTarget,
    InvalidArgument,
    InvalidDigest,
    InvalidInstruction,
    LeaseEnded,
    OwnerRefused,
    TagExists,
    TagNotFound,
)
from cfs_tags.formats import layout
from cfs_tags.repo import contents, reflog, refs
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.refs import ABSENT, NO_NOTE, Note, RefChange
from cfs_tags.tags import (
    ENDED,
    HOMES,
    Tag,
    Taken,
    digest_of,
    find,
    kept_index,
    logged_digest,
    moment,
    owner_of,
    previous_digest,
    resolve,
    split_numbered,
    trash,
)
from cfs_tags.values import MAX_NAME_BYTES, ContentId, Digest, TagName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = [
    "Instruction",
    "TagPlan",
    "TagResult",
    "apply",
    "create",
    "delete",
    "expiry",
    "lacks_erofs",
    "parse_instructions",
    "plan",
    "plan_rename",
    "plan_restore",
    "rename",
    "restore",
]


class Instruction(NamedTuple):
    """One change that is asked for.

    ``verb``: ``create`` (the name must be free, or have that value already), ``move`` (it must exist), ``set`` (either),
    ``delete``, ``verify``.  ``target`` is text for :func:`resolve`; ``expected`` a digest, ``absent`` or None.
    ``home`` chooses ``shared`` or ``private``; None applies the rule.  ``expires`` makes a lease (``create``) or trash
    (``delete``).  ``line`` is where it was read, for errors; 0 for none.
    """

    verb: str
    name: str
    target: str | None = None
    expected: str | None = None
    home: str | None = None
    expires: str | None = None
    line: int = 0


class TagResult(NamedTuple):
    """What became, or would become, of a tag.  ``done``: created, moved, deleted, unchanged, verified, renamed, restored."""

    name: str
    done: str
    old: str | None
    new: str | None
    home: str


class TagPlan(NamedTuple):
    """Changes to refs, in order, and what they mean for tags."""

    changes: tuple[RefChange, ...]
    results: tuple[TagResult, ...]


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(repo: ReadRepo, instructions: Iterable[Instruction], *, owners: Sequence[str] = ()) -> TagPlan:
    """What a list of instructions comes to, all or nothing.

    Args:
        repo: where; only read.
        instructions: at most one for each name.
        owners: owners, besides ``app``, whose tags may be changed.

    Raises:
        TagExists, ExpectationFailed, TagNotFound, TargetNotFound, IncompleteTarget, OwnerRefused, InvalidTagName,
        InvalidInstruction: the first instruction that cannot be carried out says why.
    """
    planner = _Planner(repo, owners)
    for instruction in instructions:
        planner.add(instruction)
    return planner.plan()


def plan_rename(repo: ReadRepo, old: str, new: str, *, owners: Sequence[str] = (), force: bool = False) -> TagPlan:
    """Give a tag another name.  It stays in its home; ``force`` replaces a tag that has the new name.

    Raises:
        TagNotFound, TagExists, OwnerRefused, InvalidTagName, TargetNotFound, IncompleteTarget.
    """
    planner = _Planner(repo, owners)
    tag = planner.existing(old)
    digest = digest_of(tag)
    planner.check(digest)
    name = TagName.parse(new)
    if tag.home == "lease":
        path = f"{tag.path.rpartition('/')[0]}/{layout.encode_name(name)}"
    else:
        path = f"{HOMES[tag.home]}/{layout.encode_name(name)}"
    planner.allow(name)
    target = find(repo, new)
    if target is not None and target.path == tag.path:
        target = None  # only the place changes, if that: a name in a directory below oci/ becomes one of ours
    if target is not None and not force and not target.has_ended:
        raise TagExists(name=new, found=str(target.digest or target.link), wanted=digest)
    # the new name first: at no instant is the content without a ref
    link = layout.ref_link(path, ContentId.manifest(digest))
    replaced = target.link if target is not None and target.path == path else None
    changes = [RefChange(path, replaced, link, "rename"), RefChange(tag.path, tag.link, None, "rename")]
    if target is not None and target.path != path:
        changes.append(RefChange(target.path, target.link, None, "rename"))
    if tag.path == path:
        changes = []
    elif old != new:
        changes += _renamed_index(repo, old, new, digest)
    done = "renamed" if changes else "unchanged"
    return TagPlan(tuple(changes), (TagResult(new, done, old, digest, tag.home),))


def plan_restore(repo: ReadRepo, text: str, *, owners: Sequence[str] = ()) -> TagPlan:
    """Bring back a deleted tag, or move one back to an earlier value.

    Args:
        text: ``NAME``: out of the trash, else the value before the present one; ``NAME@{N}``: the value of that entry.

    Raises:
        ReflogEntryNotFound: there is no such entry, or the tag was absent then.
        TargetNotFound, IncompleteTarget: the content has been collected since.
    """
    tag = find(repo, text)
    numbered = None if tag is not None else split_numbered(text)
    name = numbered[0] if numbered is not None else text
    current = find(repo, name) if numbered is not None else tag
    if current is not None and current.has_ended:
        current = None
    kept = None
    if numbered is not None:
        digest = logged_digest(repo, *numbered)
    else:
        kept = next((kept for kept in reversed(trash(repo)) if kept.name == f"@trash/{name}"), None)
        if kept is not None and current is None:
            digest = digest_of(kept)
        else:
            kept = None
            digest = previous_digest(repo, name, current)
    planner = _Planner(repo, owners)
    planner.add(Instruction("set", name, "@" + digest))
    made = planner.plan()
    changes = [change._replace(action="restore") for change in made.changes]
    if kept is not None:
        changes.append(RefChange(kept.path, kept.link, None, "restore"))
    if made.changes:
        changes += _restored_index(repo, name, digest)
    results = [result._replace(done="restored") if made.changes else result for result in made.results]
    return TagPlan(tuple(changes), tuple(results))


def read_index(repo: ReadRepo, path: str) -> str | None:
    """What the ref of a kept index says; None where there is none, and for names that no file can have."""
    return repo.read_link(path) if len(os.fsencode(path.rpartition("/")[2])) <= MAX_NAME_BYTES else None


def lists(repo: ReadRepo, path: str, link: str, digest: Digest) -> bool:
    """Whether the index behind a ref lists a manifest."""
    try:
        index = kept_index(repo, layout.ref_target(path, link))
    except BadRefLink:
        return False
    return index is not None and any(entry.digest == digest for entry in index.manifests)


def _renamed_index(repo: ReadRepo, old: str, new: str, digest: Digest) -> Iterator[RefChange]:
    """The index that is kept with a tag takes its new name, too."""
    before, after = (f"{layout.INDEXES}/{layout.encode_name(name)}" for name in (old, new))
    link, replaced = read_index(repo, before), read_index(repo, after)
    if link is not None:
        if link != replaced:
            yield RefChange(after, replaced, link, "rename")
        yield RefChange(before, link, None, "rename")
    elif replaced is not None and not lists(repo, after, replaced, digest):
        yield RefChange(after, replaced, None, "rename")


def _restored_index(repo: ReadRepo, name: str, digest: Digest) -> Iterator[RefChange]:
    """The index that was kept with a tag, where that is still there and lists what the tag names again."""
    path = f"{layout.INDEXES}/{layout.encode_name(name)}"
    last = reflog.last_value(repo, path)
    if last is None or last.new is not None or last.old is None or read_index(repo, path) is not None:
        return
    if lists(repo, path, last.old, digest):
        yield RefChange(path, None, last.old, "restore")


_MANY = 50
"""Instructions from which on the names that are taken are read at once."""


class _Planner:
    def __init__(self, repo: ReadRepo, owners: Sequence[str]) -> None:
        self._repo = repo
        self._owners = owners
        self._changes: list[RefChange] = []
        self._results: list[TagResult] = []
        self._seen: set[str] = set()
        self._targets: dict[str, Digest] = {}
        self._checked: dict[Digest, bool] = {}
        self._taken: Taken | None = None

    @cached_property
    def _bootc(self) -> bool:
        return self._repo.is_bootc

    def plan(self) -> TagPlan:
        return TagPlan(tuple(self._changes), tuple(self._results))

    def add(self, instruction: Instruction) -> None:
        if instruction.name in self._seen:
            raise InvalidInstruction(
                line=instruction.line, text=instruction.name, reason="a name may be in one instruction only"
            )
        self._seen.add(instruction.name)
        tag = self._find(instruction)
        if instruction.expected is not None:
            self._compare(instruction, tag)
        match instruction.verb:
            case "verify":
                value = _value(tag)
                self._results.append(TagResult(instruction.name, "verified", value, value, tag.home if tag else ""))
            case "delete":
                self._delete(instruction, tag)
            case "create" | "move" | "set":
                self._set(instruction, tag)
            case verb:
                raise InvalidInstruction(line=instruction.line, text=verb, reason="no such instruction")

    def allow(self, name: str) -> None:
        """Refuse what belongs to another owner that was not named."""
        owner = owner_of(name)
        if owner != "app" and owner not in self._owners:
            raise OwnerRefused(name=name, owner=owner)

    def check(self, digest: Digest) -> None:
        """Refuse a manifest that is not there or not complete: nothing is to name it."""
        if digest not in self._checked:
            missing = contents.missing_parts(self._repo, digest)
            if missing:
                raise IncompleteTarget(target=digest, missing=missing)
            self._checked[digest] = self._bootc and lacks_erofs(self._repo, digest)

    def index(self, name: str, digest: Digest | None, action: str) -> None:
        """Have the index that is kept with a tag go where it has nothing to do with what the tag will name: nothing
        (``digest`` is None), or an image that it does not list."""
        path = f"{layout.INDEXES}/{layout.encode_name(name)}"
        link = read_index(self._repo, path)
        if link is not None and (digest is None or not lists(self._repo, path, link, digest)):
            self._changes.append(RefChange(path, link, None, action))

    def existing(self, name: str) -> Tag:
        tag = find(self._repo, name)
        if tag is None:
            raise TagNotFound(name=name)
        if tag.has_ended:
            raise LeaseEnded(name=name, digest=tag.value, expires=tag.expires or "")
        self.allow(name)
        return tag

    def _find(self, instruction: Instruction) -> Tag | None:
        name = instruction.name
        if not name.startswith("@") or instruction.verb != "delete":
            # one look at all names is cheaper than several at each
            if len(self._seen) == _MANY:
                self._taken = Taken(self._repo)
            if self._taken is not None and not self._taken.maybe(name):
                return None
            return find(self._repo, name)
        if name.startswith("@trash/"):
            return next((kept for kept in reversed(trash(self._repo)) if kept.name == name), None)
        # a tag of that name may be there all the same: somebody else's
        tag = find(self._repo, name)
        if tag is None and name.startswith("@deployment/"):
            raise InvalidArgument(argument="tag", value=name, reason="is a deployment ref: 'cfs-tag retire' removes those")
        return tag

    def _compare(self, instruction: Instruction, tag: Tag | None) -> None:
        found = _value(tag) or ABSENT
        wanted = instruction.expected
        if wanted != ABSENT and wanted is not None:
            try:
                wanted = Digest.parse(wanted.removeprefix("@"))
            except InvalidDigest as error:
                if not instruction.line:
                    raise
                raise InvalidInstruction(line=instruction.line, text=wanted, reason=f"is not {error.wanted}") from None
        if found != wanted:
            raise ExpectationFailed(ref=instruction.name, wanted=str(wanted), found=found)

    def _delete(self, instruction: Instruction, tag: Tag | None) -> None:
        if tag is None:
            raise TagNotFound(name=instruction.name)
        self.allow(instruction.name)
        if instruction.expires is not None and tag.digest is not None and tag.problem in (None, ENDED):
            path = self._expiring(layout.TRASH, instruction.expires, instruction.name)
            self._changes.append(RefChange(path, None, layout.ref_link(path, ContentId.manifest(tag.digest)), "delete"))
        self._changes.append(RefChange(tag.path, tag.link, None, "delete"))
        if instruction.expires is None:
            self.index(instruction.name, None, "delete")
        self._results.append(TagResult(instruction.name, "deleted", tag.value, None, tag.home))

    def _set(self, instruction: Instruction, tag: Tag | None) -> None:
        name = instruction.name
        ended = None
        if tag is not None and tag.has_ended:
            ended, tag = tag, None
        if tag is None:
            name = TagName.parse(name)
            if instruction.verb == "move":
                raise TagNotFound(name=name)
        digest = self._target(instruction)
        home, path = self._home(instruction, tag, digest)
        link = layout.ref_link(path, ContentId.manifest(digest))
        if tag is not None and tag.digest == digest and (tag.home == home or home is None) and instruction.expires is None:
            self._results.append(TagResult(name, "unchanged", digest, digest, tag.home))
            return
        ends = instruction.expires is not None and tag is not None and tag.home != "lease"
        if tag is not None and (tag.digest != digest or ends) and instruction.verb == "create" and instruction.expected is None:
            raise TagExists(name=name, found=tag.value, wanted=digest)
        self.allow(name)
        action = "create" if tag is None else "move"
        if tag is not None and tag.path == path:
            self._changes.append(RefChange(path, tag.link, link, action))
        else:
            # the new home first: at no instant is the content without a ref
            self._changes.append(RefChange(path, None, link, action))
            if tag is not None:
                self._changes.append(RefChange(tag.path, tag.link, None, action))
        if ended is not None:
            self._changes.append(RefChange(ended.path, ended.link, None, "expire"))
        if tag is None or tag.digest != digest:
            self.index(name, digest, action)
        self._results.append(TagResult(name, "created" if tag is None else "moved", _value(tag), digest, home))

    def _target(self, instruction: Instruction) -> Digest:
        text = instruction.target
        if text is None:
            raise InvalidInstruction(line=instruction.line, text=instruction.name, reason="the target is missing")
        digest = self._targets.get(text)
        if digest is None:
            digest = self._targets[text] = resolve(self._repo, text)
            self.check(digest)
        return digest

    def _home(self, instruction: Instruction, tag: Tag | None, digest: Digest) -> tuple[str, str]:
        """Home and path of a tag that is set: as asked, else as it was, else by the rule; never shared where bootc
        could choke on it, unless asked."""
        encoded = layout.encode_name(instruction.name)
        if instruction.expires is not None:
            return "lease", self._expiring(layout.LEASES, instruction.expires, instruction.name)
        home = instruction.home
        if home is None:
            home = tag.home if tag is not None and tag.home in ("shared", "private") else "shared"
            if home == "shared" and self._checked[digest]:
                home = "private"
        if tag is not None and tag.home == home:
            return home, tag.path
        return home, f"{HOMES[home]}/{encoded}"

    def _expiring(self, top: str, expires: str, name: str) -> str:
        number = 0
        while True:
            path = f"{top}/{expires}.{number}/{layout.encode_name(name)}"
            if self._repo.read_link(path) is None:
                return path
            number += 1


def lacks_erofs(repo: ReadRepo, digest: Digest) -> bool:
    """Whether bootc would build an EROFS image for this manifest if it had a shared tag.

    True for a container image whose config names none in the repository's own format version (composefs-rs 0.9.4,
    ``upgrade_repo``): for images without ``/usr`` and the like that fails, and bootc's collector with it.
    """
    image = contents.load(repo, digest)
    version = repo.meta.erofs_version if repo.meta is not None else 2
    key = contents.EROFS_KEY if version == 2 else f"{contents.EROFS_KEY}.v1"
    return image.manifest.is_container and key not in image.erofs


# -- doing -------------------------------------------------------------------------------------------------------------


def apply(
    repo: WriteRepo, planner: Callable[[], TagPlan], note: Note = NO_NOTE, timeout: float = DEFAULT_TIMEOUT
) -> tuple[TagPlan, refs.Outcome]:
    """Plan under the locks and carry out: see :func:`cfs_tags.repo.refs.transact`."""
    return refs.transact(repo, planner, note, timeout)


def create(
    repo: WriteRepo,
    name: str,
    target: str,
    *,
    force: bool = False,
    expected: str | None = None,
    home: str | None = None,
    expires: str | None = None,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> TagResult:
    """Make a tag, or move one.

    Args:
        repo: where.
        name: of the tag.
        target: what it names: anything :func:`resolve` knows.
        force: move a tag that exists.
        expected: move it only from this digest; ``absent``: only make it.
        home: ``shared`` or ``private``; None: shared unless bootc could choke on it.
        expires: make a lease until then (``YYYYMMDDThhmmssZ``).
        owners: owners besides ``app`` whose tags may be moved.
        note: for the reflog.
        timeout: seconds to wait for locks.

    Raises:
        TagExists, ExpectationFailed, IncompleteTarget, OwnerRefused: refused; nothing was changed.
        InvalidTagName, TagNotFound, TargetNotFound, AmbiguousName: it makes no sense here.
        LockTimeout, SystemFailure: see :func:`apply`.
    """
    instruction = Instruction("set" if force else "create", name, target, expected, home, expires)
    made, _ = apply(repo, lambda: plan(repo, [instruction], owners=owners), note, timeout)
    return made.results[0]


def delete(
    repo: WriteRepo,
    names: Iterable[str],
    *,
    expires: str | None = None,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> tuple[TagResult, ...]:
    """Remove tags, all or none; with ``expires`` their content is kept in the trash until then.

    Raises:
        TagNotFound, OwnerRefused: nothing was changed.
    """
    instructions = [Instruction("delete", name, expires=expires) for name in names]
    made, _ = apply(repo, lambda: plan(repo, instructions, owners=owners), note, timeout)
    return made.results


def expiry(seconds: float, now: float | None = None) -> str:
    """The name of an instant ``seconds`` from now (or from ``now``, seconds since 1970): ``YYYYMMDDThhmmssZ``."""
    return moment((time.time() if now is None else now) + seconds)


def parse_instructions(lines: Iterable[str]) -> Iterator[Instruction]:
    """Instructions from text, one a line; blank lines and those that start with ``#`` are left out.

    ::

        create NAME TARGET
        move NAME TARGET [EXPECTED]
        delete NAME [EXPECTED]
        verify NAME EXPECTED

    Words with blanks in them are quoted as for a shell.  EXPECTED is a digest or ``absent``.

    Raises:
        InvalidInstruction: names the line.
    """
    counts = {"create": (3, 3), "move": (3, 4), "delete": (2, 3), "verify": (3, 3)}
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        words = _words(text, number)
        if not words:
            continue
        if words[0] not in counts:
            raise InvalidInstruction(line=number, text=text, reason=f"no instruction {words[0]!r}")
        least, most = counts[words[0]]
        if not least <= len(words) <= most:
            raise InvalidInstruction(
                line=number, text=text, reason=f"{words[0]} takes {least - 1} to {most - 1} words, not {len(words) - 1}"
            )
        verb, name, *rest = words
        if verb in ("create", "move"):
            yield Instruction(verb, name, rest[0], rest[1] if len(rest) > 1 else None, line=number)
        else:
            yield Instruction(verb, name, None, rest[0] if rest else None, line=number)


def _words(text: str, number: int) -> list[str]:
    if "'" not in text and '"' not in text and "\\" not in text:
        words = text.split()
        return [] if not words or words[0].startswith("#") else words
    import shlex

    try:
        return shlex.split(text, comments=text.lstrip().startswith("#"))
    except ValueError as error:
        raise InvalidInstruction(line=number, text=text, reason=str(error)) from None


def rename(
    repo: WriteRepo,
    old: str,
    new: str,
    *,
    force: bool = False,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> TagResult:
    """Give a tag another name: :func:`plan_rename`, carried out."""
    made, _ = apply(repo, lambda: plan_rename(repo, old, new, owners=owners, force=force), note, timeout)
    return made.results[0]


def restore(
    repo: WriteRepo,
    text: str,
    *,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> TagResult:
    """Bring back a deleted tag, or an earlier value: :func:`plan_restore`, carried out."""
    made, _ = apply(repo, lambda: plan_restore(repo, text, owners=owners), note, timeout)
    return made.results[0]


def _value(tag: Tag | None) -> str | None:
    """What a tag names now: nothing where there is none, or it was a lease that has ended."""
    return tag.value if tag is not None and not tag.has_ended else None
