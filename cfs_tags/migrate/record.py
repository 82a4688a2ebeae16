"""The record of a migration, from which it can be taken back, and the origin files that it completes."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cfs_tags.errors import ExpectationFailed, FormatError, SystemFailure
from cfs_tags.formats import json_fields
from cfs_tags.formats.boot.origin import MAX_ORIGIN, Origin, origin_with_manifest_digest
from cfs_tags.formats.boot.paths import STATE_DEPLOY, origin_name
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.repo import fsops, layout
from cfs_tags.repo.beneath import Parent
from cfs_tags.repo.directory import Directory
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction.change import RefChange
from cfs_tags.values import DeploymentId, Digest

RECORD = f"{layout.STATE}/undo/migration.json"
_UNDO = f"{layout.STATE}/undo"
_MAX_RECORD = 64 << 20


class OriginChange(NamedTuple):
    """An origin file that gets the missing ``manifest_digest``: its path below the sysroot, old and new bytes."""

    id: DeploymentId
    path: str
    old: bytes
    new: bytes


class Record(NamedTuple):
    """``cfs-tags/undo/migration.json``: what the last migration wrote, so that it can be taken back exactly."""

    refs: tuple[tuple[str, str], ...]
    directories: tuple[str, ...]
    origins: tuple[tuple[str, str], ...]
    finished: bool


def read_record(repo: ReadRepo) -> Record | None:
    """The record of the last migration; None where there is none.

    Raises:
        FormatError: it cannot be read, or names something that no migration writes.
    """
    data = repo.read_file(RECORD, _MAX_RECORD)
    if data is None:
        return None
    try:
        document = json_fields.load(data, "record of the migration", _MAX_RECORD)
        record = Record(
            tuple((str(path), str(link)) for path, link in document["refs"]),
            tuple(str(path) for path in document["directories"]),
            tuple((str(path), str(saved)) for path, saved in document["origins"]),
            bool(document["finished"]),
        )
    except (FormatError, ValueError, TypeError, KeyError):
        record = None
    if record is None or not _sane(record):
        raise FormatError(
            structure="record of the migration",
            offset=0,
            wanted="refs, directories and origins of deployments",
            found="something else",
            path=os.path.join(repo.path, RECORD),
        )
    return record


def write_record(repo: WriteRepo, changes: Sequence[RefChange], origins: Sequence[OriginChange]) -> None:
    """What undoing needs, before anything is changed; a record of a migration that then changes nothing is harmless."""
    repo.make_directories(_UNDO)
    directories: dict[str, None] = {}
    for change in changes:
        parent = change.path.rpartition("/")[0]
        while parent and not repo.is_directory(parent):
            directories[parent] = None
            parent = parent.rpartition("/")[0]
    # an unfinished record is of this migration: it was interrupted, and continues now
    before = read_record(repo)
    if before is None or before.finished:
        before = Record((), (), (), False)
    save(
        repo,
        Record(
            (*before.refs, *((change.path, str(change.new)) for change in changes)),
            (*before.directories, *directories),
            (*before.origins, *((origin.path, _save_origin(repo, origin)) for origin in origins)),
            False,
        ),
    )


def save(repo: WriteRepo, record: Record) -> None:
    """Write a record, and have it on disk."""
    data = json.dumps(record._asdict(), indent=1).encode("ascii")
    try:
        fsops.replace_file(repo.fd, RECORD, data, f"{RECORD}.new")
        fsops.sync(repo.fd, _UNDO)
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, RECORD)) from error


def _sane(record: Record) -> bool:
    """Whether a record names only what a migration writes: a file on disk does not get to name anything else."""
    shape = r"[0-9a-f]{64}(?:[0-9a-f]{64})?"
    parts = "|".join(re.escape(top) for top in (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES))
    trees = f"{layout.STREAMS}|{layout.IMAGES}"
    refs = f"{layout.STREAM_REFS}|{layout.IMAGE_REFS}"
    ours = f"{layout.OUR_REFS}|{layout.OUR_IMAGE_REFS}"
    return (
        all(re.fullmatch(f"(?:{parts})/{shape}", path) for path, _ in record.refs)
        and all(re.fullmatch(f"(?:{trees})|(?:{refs})|(?:{ours})(?:/[a-z]+)?", path) for path in record.directories)
        and all(
            re.fullmatch(shape, name := path.removeprefix(f"{STATE_DEPLOY}/").partition("/")[0])
            and (path, saved) == _origin_paths(DeploymentId.trusted(name))
            for path, saved in record.origins
        )
    )


def origin_change(view: SysrootView, name: DeploymentId, digest: Digest) -> Iterator[OriginChange]:
    """The change that completes an origin file; none where it says something there already.  Raises as
    :func:`refuse_unwritable`."""
    origin = view.origins.get(name)
    if not isinstance(origin, Origin) or origin.manifest_digest is not None:
        return
    path, _ = _origin_paths(name)
    with Directory(view.sysroot.root) as top:
        data = top.read_file(path, MAX_ORIGIN)
    if data is not None:
        try:
            change = OriginChange(name, path, data, origin_with_manifest_digest(data, digest))
        except ExpectationFailed:
            return  # it says something there already, if nothing that can be read: not ours to decide
        refuse_unwritable(view.sysroot.root, path)
        yield change


def refuse_unwritable(root: str, path: str) -> None:
    """Refuse before the first ref is changed what could not be finished: the origin files are mostly root's.

    Raises:
        SystemFailure: this process may not replace that file by one of the same owner.
    """
    with Directory(root) as top, Parent(top.fd, path) as (fd, name):
        mine = os.geteuid() in (0, os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid)
        if not mine or not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
            error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise SystemFailure.of(error, "write", os.path.join(root, path))


def _origin_paths(name: DeploymentId) -> tuple[str, str]:
    """Where the origin of a deployment is, from the sysroot, and where its bytes are saved, from the repository."""
    return f"{STATE_DEPLOY}/{name}/{origin_name(name)}", f"{_UNDO}/{origin_name(name)}"


def _save_origin(repo: WriteRepo, origin: OriginChange) -> str:
    _, path = _origin_paths(origin.id)
    if repo.read_file(path, MAX_ORIGIN) != origin.old:
        try:
            fsops.replace_file(repo.fd, path, origin.old, f"{path}.new")
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(repo.path, path)) from error
    return path


def rewrite_origin(root: str, origin: OriginChange) -> bool:
    """Replace an origin file that still has the old bytes; mode, owner and extended attributes stay."""
    with Directory(root) as top:
        if top.read_file(origin.path, MAX_ORIGIN) != origin.old:
            return False
        try:
            fsops.rewrite_file(top.fd, origin.path, origin.new, f"{origin.path}.cfs-tag-new")
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(root, origin.path)) from error
    return True
