"""Forgetting what the log says of long ago.

Entries before a time go.  The last entry of each ref that is there stays, however old it is: without it the next look would
take the ref for one that another program has made.  Of what was done to the repository as a whole the last of each kind stays.
Lines that cannot be read stay as well: ``fsck`` tells of them.

Each file is replaced at once, under the refs lock; a stop leaves some of them done.  It is done once a day:
``cfs-tags/forgotten``, an empty file, has the time of the last look.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.repo import clock, fsops, layout, reflog
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import Note, RefChange

USUAL = 90 * 86400.0
"""Seconds that the log is kept where nobody says how long."""
_LOOKED = f"{layout.STATE}/forgotten"
_DAY = 86400.0


class Forgetting(NamedTuple):
    """What goes: how many entries, of which files.  No ref changes with it."""

    entries: int
    files: tuple[str, ...]
    changes: tuple[RefChange, ...] = ()


NOTHING = Forgetting(0, ())


def plan(repo: ReadRepo, keep: float | None, *, trusted: bool = False) -> Forgetting:
    """What would be forgotten now: nothing where it was looked less than a day ago, or the clock is not believed.

    Args:
        repo: whose log.
        keep: seconds that an entry stays; None: for ever.
        trusted: somebody says that the clock is right.
    """
    known = clock.read(repo, trusted=trusted)
    if keep is None or known.doubt is not None or 0 <= known.now - _looked(repo) < _DAY:
        return NOTHING
    return _plan(repo, reflog.timestamp(max(known.now - keep, 0.0)))


def forget(repo: WriteRepo, keep: float | None, note: Note, timeout: float) -> int:
    """Forget; says how many entries.  On a full disk nothing is.

    Raises:
        LockTimeout: another process changes refs.
        SystemFailure: the system refused; some files may be done.
    """
    if keep is None:
        return 0
    made = plan(repo, keep)
    before = reflog.timestamp(max(clock.read(repo).now - keep, 0.0))
    try:
        if made.entries:
            made = run.transact(repo, lambda: _plan(repo, before), note, timeout, prepare=lambda it: _write(repo, it, before))
    except SystemFailure as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return 0
    if clock.read(repo).doubt is None:
        with suppress(OSError):
            fsops.date(repo.fd, _LOOKED, clock.read(repo).now)
    return made.entries


def _plan(repo: ReadRepo, before: str) -> Forgetting:
    gone = {path: _lines(repo, path, before)[1] for path in (*reflog.paths(repo), *reflog.ORDERS)}
    return Forgetting(sum(gone.values()), tuple(path for path, number in gone.items() if number))


def _write(repo: WriteRepo, made: Forgetting, before: str) -> None:
    for path in made.files:
        kept, gone = _lines(repo, path, before)
        if not gone:
            continue  # it is not whole any more
        try:
            fsops.replace_file(repo.fd, path, b"".join(line + b"\n" for line in kept), f"{layout.TMP}/log")
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(repo.path, path)) from error


def _lines(repo: ReadRepo, path: str, before: str) -> tuple[list[bytes], int]:
    """The lines of a file that stay, and how many go; a file that is not whole stays as it is."""
    lines, whole = reflog.lines_of(repo, path)
    if not whole:
        return [], 0
    entries = [reflog.parse(line) for line in lines]
    last = {_subject(entry): number for number, entry in enumerate(entries) if entry is not None}
    kept = [
        line
        for number, (line, entry) in enumerate(zip(lines, entries, strict=True))
        if entry is None or entry.time >= before or (last[_subject(entry)] == number and _stands(repo, entry))
    ]
    return kept, len(lines) - len(kept)


def _subject(entry: reflog.Entry) -> str:
    return f"{entry.ref} {entry.action}" if entry.ref == reflog.WHOLE else entry.ref


def _stands(repo: ReadRepo, entry: reflog.Entry) -> bool:
    """Whether a ref is there, or may be."""
    if entry.ref == reflog.WHOLE:
        return True
    try:
        return repo.read_link(entry.ref) is not None
    except CfsTagsError:
        return True


def _looked(repo: ReadRepo) -> float:
    with suppress(OSError, CfsTagsError):
        return repo.status(_LOOKED).st_mtime
    return float("-inf")
