"""What cfs-tag itself keeps in a repository: journal, temporary links, history, quarantine."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, LockConflict, LockTimeout, SystemFailure
from cfs_tags.formats import layout
from cfs_tags.fsck import quarantine
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.repo import reflog, transactions
from cfs_tags.repo.journal import JOURNALS, TMP
from cfs_tags.repo.lock import Lock

if TYPE_CHECKING:
    from cfs_tags.repo.store import ReadRepo

__all__ = ["State", "check_state"]

_DOCUMENTS = (f"{layout.STATE}/seen.json", f"{layout.STATE}/undo/migration.json")
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
    journals, left_over = _left_by_a_crash(repo, findings)
    for path in _DOCUMENTS:
        _check_document(repo, path, findings)
    try:
        damaged = reflog.all_entries(repo).damaged
    except CfsTagsError as error:
        findings.append(finding("damaged-reflog", reflog.DIRECTORY, error.message))
    else:
        if damaged:
            findings.append(finding("damaged-reflog", reflog.DIRECTORY, f"{damaged} lines cannot be read"))
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


def _left_by_a_crash(repo: ReadRepo, findings: list[Finding]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Looked at with the lock of the writers held shared: what one is doing right now is not left over."""
    try:
        if not (repo.names(JOURNALS) or repo.names(TMP)):
            return (), ()
        lock = Lock.of(repo.fd, transactions.LOCK_FILE, os.path.join(repo.path, transactions.LOCK_FILE))
        with lock.hold("shared", repo.fd, transactions.LOCK_FILE, 0.0):
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
    started = tuple(name.removesuffix(".json") for name in journals)
    left_over = [name for name in _files(repo, TMP, findings) if not (started and name.startswith(started))]
    findings.extend(finding("left-over-file", f"{TMP}/{name}", "left over from an interrupted change") for name in left_over)
    return tuple(journals), tuple(left_over)


def _files(repo: ReadRepo, directory: str, findings: list[Finding]) -> list[str]:
    """What is no directory in a directory of ours, where nobody makes any."""
    names = sorted(repo.names(directory) or ())
    strange = [name for name in names if repo.is_directory(f"{directory}/{name}")]
    findings.extend(finding("damaged-state", f"{directory}/{name}", "it is a directory") for name in strange)
    return [name for name in names if name not in strange]


def _describe(repo: ReadRepo, path: str) -> str:
    try:
        document = json.loads(repo.read_file(path, _MAX) or b"")
        return f"a change of {len(document['changes'])} refs was interrupted"
    except (CfsTagsError, ValueError, TypeError, KeyError, RecursionError):
        return "torn: nothing had been changed yet"


def _check_document(repo: ReadRepo, path: str, findings: list[Finding]) -> None:
    try:
        data = repo.read_file(path, _MAX)
        if data is not None:
            json.loads(data)
    except (ValueError, RecursionError):
        findings.append(finding("damaged-state", path, "it is not JSON"))
    except CfsTagsError as error:
        findings.append(finding("damaged-state", path, error.message))
