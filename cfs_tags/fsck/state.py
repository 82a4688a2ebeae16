"""What cfs-tag itself keeps in a repository: journal, temporary links, history, quarantine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, LockConflict, LockTimeout, SystemFailure
from cfs_tags.formats import json_fields
from cfs_tags.fsck import quarantine
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.host.good import good_boots
from cfs_tags.host.refs import seen_before
from cfs_tags.repo import incoming, layout, reflog
from cfs_tags.repo.layout import JOURNALS, LOCK_FILE, TMP
from cfs_tags.repo.lock import Lock
from cfs_tags.repo.store import ReadRepo
from cfs_tags.repo.transaction.journal import Journal
from cfs_tags.tags import pins

_DOCUMENTS: Mapping[str, Callable[[ReadRepo], object] | None] = {
    f"{layout.STATE}/seen.json": seen_before,
    f"{layout.STATE}/good.json": good_boots,
    f"{layout.STATE}/maintain.json": None,
    f"{layout.STATE}/undo/migration.json": None,
    LOCK_FILE: lambda repo: _open(LOCK_FILE, repo),
}
"""Files of JSON and the one that is locked, and what reads them where the layers let it be asked."""
_MAX = 256 << 20


class State(NamedTuple):
    """Journals and temporary files that a crash left, quarantine records whose ref is back, and what was found."""

    journals: tuple[str, ...]
    left_over: tuple[str, ...]
    spent: tuple[str, ...]
    findings: list[Finding]


def check_state(repo: ReadRepo) -> State:
    """Look at everything in ``cfs-tags/``."""
    findings: list[Finding] = []
    journals, left_over = left_by_a_crash(repo, findings)
    for path, reader in _DOCUMENTS.items():
        _check_document(repo, path, reader or partial(_load, path), findings)
    try:
        homes = [f"{layout.PINNED}/{name}" for name in sorted(repo.names(layout.PINNED) or ())]
    except FormatError as error:
        findings.append(finding("damaged-state", layout.PINNED, error.message))
    else:
        for home in homes:
            _check_document(repo, f"{home}/{pins.RECORD}", partial(pins.read_record, home=home), findings)
    try:
        damaged = reflog.damage(repo)
    except CfsTagsError as error:
        findings.append(finding("damaged-reflog", reflog.DIRECTORY, error.message))
    else:
        if damaged:
            where = ", ".join(path.rpartition("/")[2] for path in damaged)
            findings.append(
                finding("damaged-reflog", reflog.DIRECTORY, f"{sum(damaged.values())} lines cannot be read: {where}")
            )
    spent = []
    for record in quarantine.records(repo):
        if record.problem:
            findings.append(finding("damaged-state", record.file, record.problem))
        elif quarantine.is_back(repo, record):
            spent.append(record.file)
        else:
            message = f"-> {record.link}: taken out on {record.time}: {record.reason}"
            findings.append(finding("quarantined-ref", record.path, message))
    return State(journals, left_over, tuple(spent), findings)


def left_by_a_crash(repo: ReadRepo, findings: list[Finding]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Looked at with the lock of the writers held shared: what one is doing right now is not left over."""
    try:
        if not (repo.names(JOURNALS) or repo.names(TMP) or incoming.left_over(repo)):
            return (), ()
        lock = Lock.of(repo.fd, LOCK_FILE, os.path.join(repo.path, LOCK_FILE))
        with lock.hold("shared", repo.fd, LOCK_FILE, 0.0):
            return _read(repo, findings)
    except (LockTimeout, LockConflict):
        return (), ()  # a writer is at work
    except SystemFailure:
        return _read(repo, findings)  # no lock, so no writer
    except FormatError as error:
        findings.append(finding("damaged-state", layout.STATE, error.message))
        return (), ()


def _read(repo: ReadRepo, findings: list[Finding]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    journals = _files(repo, JOURNALS, findings)
    for name in journals:
        path = f"{JOURNALS}/{name}"
        findings.append(finding("pending-transaction", path, _describe(repo, path)))
    # what a journal's own transaction needs is no left-over
    started = tuple(name.partition(".")[0] for name in journals)
    left_over = [
        f"{TMP}/{name}" for name in _files(repo, TMP, findings) if not (started and name.startswith(started))
    ] + incoming.left_over(repo)
    findings.extend(finding("left-over-file", path, "left over from an interrupted change") for path in left_over)
    return tuple(journals), tuple(left_over)


def _files(repo: ReadRepo, directory: str, findings: list[Finding]) -> list[str]:
    """Files in a directory of ours in which no program makes a directory."""
    names = sorted(repo.names(directory) or ())
    strange = [name for name in names if repo.is_directory(f"{directory}/{name}")]
    findings.extend(finding("damaged-state", f"{directory}/{name}", "it is a directory") for name in strange)
    return [name for name in names if name not in strange]


def _describe(repo: ReadRepo, path: str) -> str:
    try:
        journal = Journal.parse(repo.read_file(path, _MAX) or b"")
    except ValueError:
        return "torn: nothing had been changed yet"
    except CfsTagsError as error:
        return f"no journal of this program: {error.message}"
    if journal is None:
        return "no journal of this program: the next command that writes sets it aside"
    return f"a change of {len(journal.changes)} refs was interrupted"


def _open(path: str, repo: ReadRepo) -> None:
    fd = repo.open_file(path)
    if fd is not None:
        os.close(fd)


def _load(path: str, repo: ReadRepo) -> None:
    data = repo.read_file(path, _MAX)
    if data is not None:
        json_fields.load(data, "state file", _MAX)


def _check_document(repo: ReadRepo, path: str, reader: Callable[[ReadRepo], object], findings: list[Finding]) -> None:
    try:
        reader(repo)
    except CfsTagsError as error:
        findings.append(finding("damaged-state", path, error.message))
