"""Moving a host from origin-embedded roots to refs, with a proof, and back.

Today bootc computes what stays from origin files and boot entries at each collection.  :func:`plan` gives every
deployment its ref and compares two sets for each of them:

*before*
    what bootc's computed roots keep: the EROFS image with its objects, for every deployment that bootc sees; and the
    manifest with all that a collector reaches from it, where bootc can match one (bootc 1.16.9, ``gc.rs``).
*after*
    what ``cfsctl gc`` keeps from the deployment refs alone, without any tag and any computed root.

A plan that loses anything is refused.  Undoing runs the comparison backwards.
"""

from __future__ import annotations

import errno
import json
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.deploying import name_configs, plan_parts
from cfs_tags.errors import (
    CfsTagsError,
    DeploymentMismatch,
    ExpectationFailed,
    FormatError,
    NothingToUndo,
    SystemFailure,
    TargetNotFound,
    WouldLoseContent,
)
from cfs_tags.formats import bootc, layout
from cfs_tags.lookup import Index, look_up, ref_paths, ref_state
from cfs_tags.reachability import Closure, Graph, Rule
from cfs_tags.repo import contents, fsops, refs
from cfs_tags.repo.directory import Directory
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.refs import NO_NOTE, Note, RefChange
from cfs_tags.sysroot import SysrootView
from cfs_tags.values import ContentId, DeploymentId, Digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = [
    "MigratePlan",
    "OriginChange",
    "Proof",
    "Row",
    "UndoPlan",
    "UndoRow",
    "migrate",
    "plan",
    "plan_undo",
    "undo",
]

_RECORD = f"{layout.STATE}/undo/migration.json"
_UNDO = f"{layout.STATE}/undo"
_MAX_RECORD = 64 << 20


class Proof(NamedTuple):
    """Numbers of objects, streams and images together: kept before, kept after, and lost (which must be none)."""

    before: int
    after: int
    lost: int


class Row(NamedTuple):
    """What migrating means for one deployment.

    ``done``: ``complete`` (nothing to do), ``migrate`` (the whole ref), ``image-only`` (its manifest is not known: still
    bootable after any collection), ``nothing`` (no EROFS image: there is nothing to keep), ``damaged`` (its ref is complete,
    what it leads to is not), ``not-here`` (a boot entry of another system).  ``source`` is where the manifest came from.
    """

    id: DeploymentId
    done: str
    manifest: Digest | None
    source: str
    reason: str
    proof: Proof
    candidates: tuple[Digest, ...] = ()


class OriginChange(NamedTuple):
    """An origin file that gets the missing ``manifest_digest``: its path below the sysroot, old and new bytes."""

    id: DeploymentId
    path: str
    old: bytes
    new: bytes


class MigratePlan(NamedTuple):
    """Changes to refs and origins, and a row for each deployment."""

    changes: tuple[RefChange, ...]
    rows: tuple[Row, ...]
    origins: tuple[OriginChange, ...]

    @property
    def unresolved(self) -> bool:
        """Whether a deployment is left without any ref, or with one that does not keep it whole."""
        return any(row.done in ("nothing", "damaged") for row in self.rows)


class UndoRow(NamedTuple):
    """What undoing means for one ref or file: ``removed``, ``restored``, ``kept``, and why."""

    path: str
    done: str
    reason: str


class UndoPlan(NamedTuple):
    """Changes that take a migration back."""

    changes: tuple[RefChange, ...]
    rows: tuple[UndoRow, ...]
    origins: tuple[OriginChange, ...]
    directories: tuple[str, ...]


class _Record(NamedTuple):
    """``cfs-tags/undo/migration.json``: what the last migration wrote, so that it can be taken back exactly."""

    refs: tuple[tuple[str, str], ...]
    directories: tuple[str, ...]
    origins: tuple[tuple[str, str], ...]
    finished: bool


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(
    repo: ReadRepo,
    view: SysrootView,
    *,
    manifests: Mapping[DeploymentId, Digest] | None = None,
    write_origin: bool = False,
) -> MigratePlan:
    """What migrating this host comes to.

    Args:
        repo: where.
        view: the sysroot.
        manifests: the user's word for deployments whose look-up is ambiguous or finds nothing.
        write_origin: add ``manifest_digest`` to origins that lack it, where the ref is (or becomes) complete.

    Raises:
        WouldLoseContent: something that is kept today would not be kept by the refs.
        TargetNotFound: ``manifests`` names a deployment or a manifest that is not there.
        DeploymentMismatch: ``manifests`` names a manifest that was made into other EROFS images only.
    """
    index = Index(repo)
    graph = Graph(repo)
    named = dict(manifests or {})
    changes: list[RefChange] = []
    rows: list[Row] = []
    origins: list[OriginChange] = []
    lost: list[str] = []
    _check_given(repo, view, named, index)
    for name in sorted(view.seen):
        try:
            row, parts = _row(repo, view, name, index, graph, named.get(name))
        except CfsTagsError as error:
            row, parts = _without_image(name, error), ()
        graph.forget()
        rows.append(row)
        changes.extend(parts)
        if row.proof.lost:
            why = f" ({row.reason})" if row.reason else ""
            lost.append(f"deployment {name[:12]}…: {row.proof.lost} of {row.proof.before}{why}")
        if write_origin and row.manifest is not None and row.done in ("complete", "migrate"):
            origins.extend(_origin_change(view, name, row.manifest))
    if lost:
        raise WouldLoseContent(what="migrating", lost=tuple(lost))
    return MigratePlan(tuple(changes), tuple(rows), tuple(origins))


def _check_given(repo: ReadRepo, view: SysrootView, named: Mapping[DeploymentId, Digest], index: Index) -> None:
    for name, digest in named.items():
        if name not in view.seen:
            raise TargetNotFound(kind="deployment", name=name)
        made = contents.load(repo, digest).erofs.values()
        if made and name not in made and digest not in index.of_image(name):
            raise DeploymentMismatch(deployment=name, manifest=digest, images=tuple(sorted(set(made))))


def _row(
    repo: ReadRepo, view: SysrootView, name: DeploymentId, index: Index, graph: Graph, given: Digest | None
) -> tuple[Row, tuple[RefChange, ...]]:
    state = ref_state(repo, name)
    lookup = look_up(repo, view, name, index)
    digest = given or lookup.digest
    source = "given" if given is not None else lookup.source
    image = repo.image_object(name)
    if image is None and "state" not in view.seen[name] and state.status == "none":
        return Row(name, "not-here", None, "none", "another system's boot entry: nothing of it is here", Proof(0, 0, 0)), ()
    if state.status == "complete" and given is None and lookup.source == "ref":
        missing = _missing(repo, name, digest)
        if missing:
            return Row(name, "damaged", digest, "ref", "; ".join(missing), Proof(0, 0, 0)), ()
        kept = _of_ref(graph, repo, name, digest)
        return Row(
            name, "complete", digest, "ref", "its ref is complete", _prove(_today(graph, view, repo, name, index), kept)
        ), ()
    if lookup.ambiguous and given is None:
        fitting = ", ".join(lookup.candidates)
        reason = f"several manifests with different configs fit, --manifest ID=DIGEST says which: {fitting}"
    else:
        reason = "; ".join(lookup.notes) if digest is None else ""
    whole = True
    try:
        parts = plan_parts(repo, name, digest, "migrate")
        done = "migrate" if digest is not None else "image-only"
    except CfsTagsError as error:
        if digest is None or given is not None:
            return _without_image(name, error), ()
        reason = error.message
        whole = not _missing(repo, name, digest)
        digest = None
        try:
            parts = plan_parts(repo, name, None, "migrate")
            done = "image-only"
        except CfsTagsError as second:
            return _without_image(name, second), ()
    if not parts:
        done = "complete" if digest is not None else "image-only"
    before = _today(graph, view, repo, name, index, whole=whole)
    after = _of_ref(graph, repo, name, digest)
    return Row(name, done, digest, source, reason, _prove(before, after), lookup.candidates), parts


def _missing(repo: ReadRepo, name: DeploymentId, digest: Digest | None) -> tuple[str, ...]:
    """What is not there behind a complete ref."""
    assert digest is not None
    try:
        image = repo.image_object(name)
        if image is None or not repo.has_object(image):
            return (f"EROFS image images/{name} is gone",)
        return contents.missing_parts(repo, digest)
    except CfsTagsError as error:
        return (error.message,)


def _without_image(name: DeploymentId, error: CfsTagsError) -> Row:
    return Row(name, "nothing", None, "none", error.message, Proof(0, 0, 0))


def _today(
    graph: Graph, view: SysrootView, repo: ReadRepo, name: DeploymentId, index: Index, *, whole: bool = True
) -> list[Closure]:
    """What bootc's computed roots keep of a deployment, in parts.

    bootc sees a deployment that has a boot entry, a state directory and a readable origin.  It keeps the EROFS image, and
    the manifest that the origin names, else the first tagged one whose *plain* image is the deployment's.  Of a manifest
    that is not ``whole`` nothing counts: there is no image any more that a ref could keep.
    """
    origin = view.origins.get(name)
    places = view.seen.get(name, frozenset())
    if not isinstance(origin, bootc.Origin) or not places & {"boot-entry", "staged-entry"} or "state" not in places:
        return []
    kept = [graph.of_image(name)] if repo.image_object(name) is not None else []
    if not whole:
        return kept
    digest = origin.manifest_digest
    if digest is None:
        version = repo.meta.erofs_version if repo.meta is not None else 2
        plain = contents.EROFS_KEY if version == 2 else f"{contents.EROFS_KEY}.v1"
        for candidate in index.of_image(name):
            if index.tags_of(candidate) and contents.load(repo, candidate).erofs.get(plain) == name:
                digest = candidate
                break
    if digest is not None and repo.stream_object(ContentId.manifest(digest)) is not None:
        kept.append(graph.of_stream(ContentId.manifest(digest), Rule.LINKED))
    return kept


def _of_ref(graph: Graph, repo: ReadRepo, name: DeploymentId, digest: Digest | None) -> list[Closure]:
    """What stock ``cfsctl gc`` keeps from a deployment ref alone, in parts."""
    kept = [graph.of_image(name)]
    if digest is not None:
        kept.append(graph.of_stream(ContentId.manifest(digest), Rule.LINKED))
        config = ContentId.config(contents.load(repo, digest).manifest.config.digest)
        if repo.stream_object(config) is not None:
            kept.append(graph.of_stream(config, Rule.LINKED))
    return kept


def _prove(before: list[Closure], after: list[Closure]) -> Proof:
    had, kept = Closure.union(before), Closure.union(after)
    return Proof(_count(had), _count(kept), _count(had.missing_from(kept)))


def _count(closure: Closure) -> int:
    return len(closure.objects) + len(closure.streams) + len(closure.images)


def _origin_change(view: SysrootView, name: DeploymentId, digest: Digest) -> Iterator[OriginChange]:
    origin = view.origins.get(name)
    if not isinstance(origin, bootc.Origin) or origin.manifest_digest is not None:
        return
    path = f"state/deploy/{name}/{name}.origin"
    with Directory(view.sysroot.root) as top:
        data = top.read_file(path, bootc.MAX_ORIGIN)
    if data is not None:
        try:
            yield OriginChange(name, path, data, bootc.origin_with_manifest_digest(data, digest))
        except ExpectationFailed:
            return  # it says something there already, if nothing that can be read: not ours to decide


# -- doing -------------------------------------------------------------------------------------------------------------


def migrate(
    repo: WriteRepo,
    view: SysrootView,
    *,
    manifests: Mapping[DeploymentId, Digest] | None = None,
    write_origin: bool = False,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> MigratePlan:
    """Plan, write down what undoing needs, make all refs in one transaction, look at what was made, then write origins.

    Raises as :func:`plan` and :func:`cfs_tags.repo.refs.transact`.
    """

    def prepare(made: MigratePlan) -> None:
        if made.changes or made.origins:
            _write_record(repo, made)
            name_configs(repo, made.changes)

    made, _ = refs.transact(
        repo, lambda: plan(repo, view, manifests=manifests, write_origin=write_origin), note, timeout, prepare=prepare
    )
    for change in made.changes:
        found = repo.read_link(change.path)
        if found != change.new:
            raise SystemFailure(operation="verify", path=change.path, reason=f"it leads to {found}", errno=0)
    for origin in made.origins:
        _write_origin(view.sysroot.root, origin)
    record = _read_record(repo)
    if record is not None and not record.finished:  # also that of a run that was interrupted after its last change
        _save(repo, record._replace(finished=True))
    return made


def _write_record(repo: WriteRepo, made: MigratePlan) -> None:
    """What undoing needs, before anything is changed; a record of a migration that then changes nothing harms nobody."""
    repo.make_directories(_UNDO)
    directories: dict[str, None] = {}
    for change in made.changes:
        parent = change.path.rpartition("/")[0]
        while parent and not repo.is_directory(parent):
            directories[parent] = None
            parent = parent.rpartition("/")[0]
    # an unfinished one is of this very migration, which was interrupted and goes on now
    before = _read_record(repo)
    if before is None or before.finished:
        before = _Record((), (), (), False)
    _save(
        repo,
        _Record(
            (*before.refs, *((change.path, str(change.new)) for change in made.changes)),
            (*before.directories, *directories),
            (*before.origins, *((origin.path, _save_origin(repo, origin)) for origin in made.origins)),
            False,
        ),
    )


def _save(repo: WriteRepo, record: _Record) -> None:
    data = json.dumps(record._asdict(), indent=1).encode("ascii")
    try:
        fsops.replace_file(repo.fd, _RECORD, data, f"{_RECORD}.new", repo.owner)
        fsops.sync(repo.fd, _UNDO)
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, _RECORD)) from error


def _save_origin(repo: WriteRepo, origin: OriginChange) -> str:
    path = f"{_UNDO}/{origin.id}.origin"
    if repo.read_file(path, bootc.MAX_ORIGIN) != origin.old:
        try:
            fsops.replace_file(repo.fd, path, origin.old, f"{path}.new", repo.owner)
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(repo.path, path)) from error
    return path


def _write_origin(root: str, origin: OriginChange) -> bool:
    """Replace an origin file that still has the old bytes; mode, owner and extended attributes stay."""
    with Directory(root) as top:
        if top.read_file(origin.path, bootc.MAX_ORIGIN) != origin.old:
            return False
        try:
            fsops.rewrite_file(top.fd, origin.path, origin.new, f"{origin.path}.cfs-tag-new")
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(root, origin.path)) from error
    return True


# -- undoing -----------------------------------------------------------------------------------------------------------


def plan_undo(repo: ReadRepo, view: SysrootView, *, force: bool = False) -> UndoPlan:
    """What taking the last migration back comes to: the proof, backwards.

    Args:
        repo: where.
        view: the sysroot.
        force: also where content would become garbage: its manifest gets a tag ``migrated/<id>``, and an image part that
            nothing else keeps stays.

    Raises:
        NothingToUndo: there is no record of a migration.
        WouldLoseContent: content would become garbage: bootc has removed its own tag since, for example.
    """
    record = _read_record(repo)
    if record is None:
        raise NothingToUndo(path=os.path.join(repo.path, _RECORD))
    rows: list[UndoRow] = []
    changes: list[RefChange] = []
    for path, link in record.refs:
        found = repo.read_link(path)
        if found == link:
            changes.append(RefChange(path, link, None, "undo"))
            rows.append(UndoRow(path, "removed", "as it was written"))
        else:
            rows.append(UndoRow(path, "kept", "it is gone" if found is None else "it was moved since"))
    garbage = _garbage(repo, view, changes)
    if garbage and not force:
        raise WouldLoseContent(what="undoing", lost=tuple(garbage.values()))
    for name in garbage:
        changes = _keep_by_tag(repo, name, changes, rows)
    origins = tuple(_origins_back(repo, view, record, rows))
    return UndoPlan(tuple(changes), tuple(rows), origins, record.directories)


def _garbage(repo: ReadRepo, view: SysrootView, changes: Sequence[RefChange]) -> dict[DeploymentId, str]:
    """Deployments of which content is kept by the refs that go and by nothing else: refs, or roots that bootc computes."""
    graph = Graph(repo)
    index = Index(repo)
    going = {change.path for change in changes}
    names = sorted({DeploymentId.trusted(path.rpartition("/")[2]) for path in going})
    parts: list[Closure] = []
    for tree in (layout.STREAM_REFS, layout.IMAGE_REFS):
        for target in sorted({link.rpartition("/")[2] for path, link in refs.walk(repo, tree) if link and path not in going}):
            one = ContentId.trusted(target)
            parts.append(graph.of_stream(one, Rule.LINKED) if tree == layout.STREAM_REFS else graph.of_image(one))
    for name in view.seen:
        parts.extend(_today(graph, view, repo, name, index))
    kept = Closure.union(parts)
    garbage = {}
    for name in names:
        going_here: list[Closure] = []
        for path in ref_paths(name).values():
            link = repo.read_link(path) if path in going else None
            if link is None:
                continue
            target = ContentId.trusted(link.rpartition("/")[2])
            image = path.startswith(layout.IMAGES)
            going_here.append(graph.of_image(target) if image else graph.of_stream(target, Rule.LINKED))
        lost = _count(Closure.union(going_here).missing_from(kept)._replace(images=frozenset()))
        if lost:
            garbage[name] = f"deployment {name[:12]}…: {lost} objects and streams that nothing else keeps"
    return garbage


def _keep_by_tag(repo: ReadRepo, name: DeploymentId, changes: Sequence[RefChange], rows: list[UndoRow]) -> list[RefChange]:
    """``--force``: a tag for the manifest; the parts that a tag does not stand for, config and image, stay."""
    paths = ref_paths(name)
    manifest = repo.read_link(paths["manifest"])
    result = list(changes)
    if manifest is not None:
        path = f"{layout.PRIVATE_TAGS}/{layout.encode_name(f'migrated/{name}')}"
        link = layout.ref_link(path, manifest.rpartition("/")[2])
        found = repo.read_link(path)
        if found != link:
            result.insert(0, RefChange(path, found, link, "undo"))
        rows.append(UndoRow(path, "made", "nothing else keeps this manifest"))
    reasons = {
        paths["config"]: "the manifest may name an older writing of it",
        paths["image"]: "nothing else keeps this image bootable",
    }
    staying = [change.path for change in result if change.path in reasons]
    rows[:] = [row for row in rows if row.path not in staying]
    rows.extend(UndoRow(path, "kept", reasons[path]) for path in staying)
    return [change for change in result if change.path not in staying]


def _origins_back(repo: ReadRepo, view: SysrootView, record: _Record, rows: list[UndoRow]) -> Iterator[OriginChange]:
    with Directory(view.sysroot.root) as top:
        for path, saved in record.origins:
            old = repo.read_file(saved, bootc.MAX_ORIGIN)
            now = top.read_file(path, bootc.MAX_ORIGIN)
            if old is None or now is None or now == old:
                continue
            name = DeploymentId.trusted(path.split("/")[2])
            try:
                digest = bootc.parse_origin(now).manifest_digest
            except FormatError:
                digest = None
            if digest is not None and now == bootc.origin_with_manifest_digest(old, digest):
                rows.append(UndoRow(path, "restored", "as it was written"))
                yield OriginChange(name, path, now, old)
            else:
                rows.append(UndoRow(path, "kept", "it was changed since"))


def undo(
    repo: WriteRepo,
    view: SysrootView,
    *,
    force: bool = False,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> UndoPlan:
    """Take the last migration back: refs in one transaction, then origins, then directories that it made.

    Raises as :func:`plan_undo` and :func:`cfs_tags.repo.refs.transact`.
    """

    made, _ = refs.transact(repo, lambda: plan_undo(repo, view, force=force), note, timeout)
    for origin in made.origins:
        _write_origin(view.sysroot.root, origin)
    for path in sorted(made.directories, key=len, reverse=True):
        try:
            fsops.remove_directory(repo.fd, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise SystemFailure.of(error, "remove", os.path.join(repo.path, path)) from error
            # somebody uses it
    try:
        fsops.remove(repo.fd, _RECORD)
    except OSError as error:
        raise SystemFailure.of(error, "remove", os.path.join(repo.path, _RECORD)) from error
    return made


def _read_record(repo: ReadRepo) -> _Record | None:
    data = repo.read_file(_RECORD, _MAX_RECORD)
    if data is None:
        return None
    try:
        document = json.loads(data)
        record = _Record(
            tuple((str(path), str(link)) for path, link in document["refs"]),
            tuple(str(path) for path in document["directories"]),
            tuple((str(path), str(saved)) for path, saved in document["origins"]),
            bool(document["finished"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        record = None
    if record is None or not _sane(record):
        raise FormatError(
            structure="record of the migration",
            offset=0,
            wanted="refs, directories and origins of deployments",
            found="something else",
            path=os.path.join(repo.path, _RECORD),
        )
    return record


def _sane(record: _Record) -> bool:
    """Whether a record names only what a migration writes: a file on disk does not get to name anything else."""
    shape = r"[0-9a-f]{64}(?:[0-9a-f]{64})?"
    parts = "|".join(re.escape(top) for top in (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES))
    return (
        all(re.fullmatch(f"(?:{parts})/{shape}", path) for path, _ in record.refs)
        and all(re.fullmatch(r"(?:streams|images)(?:/refs(?:/cfs-tags(?:/[a-z]+)?)?)?", path) for path in record.directories)
        and all(
            re.fullmatch(rf"state/deploy/({shape})/\1\.origin", path) and re.fullmatch(f"{_UNDO}/{shape}\\.origin", saved)
            for path, saved in record.origins
        )
    )
