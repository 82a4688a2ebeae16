"""Migrating, and taking a migration back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cfs_tags.errors import FormatError, NotFoundError, RefusedError, SystemFailure
from cfs_tags.formats.boot.origin import MAX_ORIGIN, origin_with_manifest_digest, parse_origin
from cfs_tags.graph import Closures, Rule
from cfs_tags.host.lookup import Index, ref_paths
from cfs_tags.host.refs import name_configs
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.migrate.plan import MigratePlan, plan, today
from cfs_tags.migrate.record import (
    RECORD,
    OriginChange,
    Record,
    read_record,
    refuse_unwritable,
    rewrite_origin,
    save,
    write_record,
)
from cfs_tags.repo import fsops, layout, refs
from cfs_tags.repo.directory import Directory
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.values import DeploymentId, Digest


def migrate(
    repo: WriteRepo,
    view: SysrootView,
    *,
    manifests: Mapping[DeploymentId, Digest] | None = None,
    write_origin: bool = False,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
) -> MigratePlan:
    """Plan, write down what undoing needs, make all refs in one transaction, look at what was made, then write origins.

    Raises as :func:`plan` and :func:`cfs_tags.repo.transaction.run.transact`.
    """

    def prepare(made: MigratePlan) -> None:
        if made.changes or made.origins:
            write_record(repo, made.changes, made.origins)
            name_configs(repo, made.changes)

    made = run.transact(
        repo,
        lambda: plan(repo, view, manifests=manifests, write_origin=write_origin, progress=progress),
        note,
        timeout,
        prepare=prepare,
    )
    for change in made.changes:
        found = repo.read_link(change.path)
        if found != change.new:
            raise SystemFailure(operation="verify", path=change.path, reason=f"it leads to {found}", errno=0)
    for origin in made.origins:
        rewrite_origin(view.sysroot.root, origin)
    record = read_record(repo)
    if record is not None and not record.finished:  # also that of a run that was interrupted after its last change
        save(repo, record._replace(finished=True))
    if made.changes or made.origins:
        facts = {"deployments": len(made.rows), "refs": len(made.changes), "origins": len(made.origins)}
        run.record(repo, "migrate", {**facts, **made.proof._asdict()}, note, timeout)
    return made


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


def plan_undo(repo: ReadRepo, view: SysrootView, *, force: bool = False) -> UndoPlan:
    """Plan to take the last migration back: the proof, backwards.

    Args:
        repo: where.
        view: the sysroot.
        force: also where content would become garbage: its manifest gets a tag ``migrated/<id>``, and an image part that
            nothing else keeps stays.

    Raises:
        NotFoundError: there is no record of a migration.
        RefusedError (would-lose-content): content would become garbage: bootc has removed its own tag since, for example.
    """
    record = read_record(repo)
    if record is None:
        raise NotFoundError("nothing-to-undo", path=os.path.join(repo.path, RECORD))
    rows: list[UndoRow] = []
    changes: list[RefChange] = []
    for path, link in record.refs:
        found = repo.read_link(path)
        if found == link:
            changes.append(RefChange(path, link, None, "undo"))
            rows.append(UndoRow(path, "removed", "as it was written"))
        else:
            rows.append(UndoRow(path, "kept", "already gone" if found is None else "it was moved since"))
    garbage = _garbage(repo, view, changes)
    if garbage and not force:
        raise RefusedError("would-lose-content", what="undoing", lost=tuple(garbage.values()))
    for name in garbage:
        changes = _keep_by_tag(repo, name, changes, rows)
    origins = tuple(_origins_back(repo, view, record, rows))
    return UndoPlan(tuple(changes), tuple(rows), origins, record.directories)


def _garbage(repo: ReadRepo, view: SysrootView, changes: Sequence[RefChange]) -> dict[DeploymentId, str]:
    """Deployments of which content is kept by the refs that go and by nothing else: refs, or roots that bootc computes."""
    closures = Closures(repo, Rule.LINKED)
    index = Index(repo)
    going = {change.path for change in changes}
    roots = {
        f"{path.partition('/')[0]}/{link.rpartition('/')[2]}"
        for path, link in refs.everything(repo).items()
        if link and path not in going
    }
    for name in view.seen:
        roots.update(today(view, repo, name, index))
    kept = closures.of(sorted(roots))
    garbage = {}
    for name in sorted({DeploymentId.trusted(path.rpartition("/")[2]) for path in going}):
        links = {path: repo.read_link(path) for path in ref_paths(name).values() if path in going}
        ends = [f"{path.partition('/')[0]}/{link.rpartition('/')[2]}" for path, link in links.items() if link is not None]
        lost = closures.lost(closures.of(ends), kept, images=False)
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


def _origins_back(repo: ReadRepo, view: SysrootView, record: Record, rows: list[UndoRow]) -> Iterator[OriginChange]:
    with Directory(view.sysroot.root) as top:
        for path, saved in record.origins:
            old = repo.read_file(saved, MAX_ORIGIN)
            now = top.read_file(path, MAX_ORIGIN)
            if old is None or now is None or now == old:
                continue
            name = DeploymentId.trusted(path.split("/")[2])
            try:
                digest = parse_origin(now).manifest_digest
            except FormatError:
                digest = None
            if digest is not None and now == origin_with_manifest_digest(old, digest):
                refuse_unwritable(view.sysroot.root, path)
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

    Raises as :func:`plan_undo` and :func:`cfs_tags.repo.transaction.run.transact`.
    """

    made = run.transact(repo, lambda: plan_undo(repo, view, force=force), note, timeout)
    for origin in made.origins:
        rewrite_origin(view.sysroot.root, origin)
    for path in sorted(made.directories, key=len, reverse=True):
        try:
            fsops.remove_directory(repo.fd, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise SystemFailure.of(error, "remove", os.path.join(repo.path, path)) from error
            # it is in use
    try:
        fsops.remove(repo.fd, RECORD)
    except OSError as error:
        raise SystemFailure.of(error, "remove", os.path.join(repo.path, RECORD)) from error
    run.record(repo, "undo", {"refs": len(made.changes), "origins": len(made.origins)}, note, timeout)
    return made
