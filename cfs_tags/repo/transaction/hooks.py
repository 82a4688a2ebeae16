"""Programs of the administrator that are told of moves of refs: before them, when they may refuse, and after.

They are the files in ``/etc/cfs-tags/hooks.d/pre`` and ``…/post``, in the order of their names.  One that may not be executed
refuses: a guard that somebody forgot to switch on must not let everything pass.  None is ever read from a repository, whose
owner could have root run it; they run as the user that works in the repository, which is its owner where root became that
user.  One that others than root and this user could have written is not run, and refuses.

Each gets one JSON document on standard input, an environment of its own, no terminal and no descriptor of ours: what it
leaves running never holds a lock.  The beginning of what it says is kept for the error; the rest is read and dropped, until
it ends.  Hooks before a change run while the refs are locked,
so that what they are told is what is made; that is why their time is short.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, RefusedError, printable
from cfs_tags.repo import fsops, layout
from cfs_tags.repo.directory import leads_nowhere
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction.change import Note, RefChange

if TYPE_CHECKING:
    import subprocess

_DIRECTORY = "/etc/cfs-tags/hooks.d"
"""Where they are, in ``pre`` and ``post``."""
PATIENCE = {"pre": 10.0, "post": 60.0}
"""Seconds that all hooks together may take, before and after a change."""
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_MOST_SAID = 1000
"""Bytes of what a hook says that are shown, and kept."""
_PIECE = 1 << 16
_GLANCE = 0.05
"""Seconds between two looks whether a hook has ended that keeps silent."""
_MOST_LINKS = 40  # as the kernel has it


class _Hook(NamedTuple):
    """A program, and why it is not run, if it is not."""

    path: str
    problem: str | None


def before(repo: WriteRepo, changes: Sequence[RefChange], note: Note) -> None:
    """Ask the hooks about changes that are going to be made.

    Raises:
        RefusedError (hook-refused): one of them refuses, cannot be run, or takes too long; nothing is to be changed.
    """
    failed = _run("pre", repo, changes, note, go_on=False)
    if failed:
        hook, reason = failed[0]
        raise RefusedError("hook-refused", hook=hook, reason=reason)


def after(repo: WriteRepo, changes: Sequence[RefChange], note: Note) -> None:
    """Tell the hooks about changes that were made; what fails is told by ``repo.recovered``."""
    for hook, reason in _run("post", repo, changes, note, go_on=True):
        repo.recovered.append(CfsTagsError("hook-failed", hook=hook, reason=reason))


def _run(when: str, repo: WriteRepo, changes: Sequence[RefChange], note: Note, *, go_on: bool) -> list[tuple[str, str]]:
    """Run all hooks, or until one fails; gives those that did, and why."""
    moved = [change for change in changes if change.old != change.new]
    if not moved:
        return []
    failed: list[tuple[str, str]] = []
    document = b""
    end = 0.0
    for hook in _hooks(when):
        from time import monotonic

        if not document:
            document, end = _document(when, repo, moved, note), monotonic() + PATIENCE[when]
        reason = hook.problem or _call(hook.path, when, document, end - monotonic(), PATIENCE[when])
        if reason is not None:
            failed.append((hook.path, reason))
            if not go_on:
                break
    return failed


def _hooks(when: str) -> Iterator[_Hook]:
    home = f"{_DIRECTORY}/{when}"
    try:
        names = sorted(os.listdir(home))
    except FileNotFoundError:
        above = os.path.dirname(_DIRECTORY), _DIRECTORY, home
        yield from (_Hook(path, "it is a link that leads to nothing") for path in above if leads_nowhere(path))
        return
    except OSError as error:
        yield _Hook(home, error.strerror or str(error))
        return
    for name in names:
        path = f"{home}/{name}"
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                continue
            if not found.st_mode & 0o111:
                yield _Hook(path, "it is not executable: chmod +x it, or move it away")
                continue
            problem = next(filter(None, map(_openness, _way(path))), None)
        except FileNotFoundError:
            if os.path.islink(path):
                yield _Hook(path, "it is a link that leads to nothing")
            continue
        except OSError as error:
            yield _Hook(path, error.strerror or str(error))
            continue
        yield _Hook(path, problem)


def _way(path: str) -> Iterator[str]:
    """Every directory and link that the system comes by on the way to a file, and the file: who can write one of them chooses
    what is found."""
    place, left, links = "/", [part for part in reversed(path.split("/")) if part], 0
    yield place
    while left:
        part = left.pop()
        here = os.path.dirname(place) if part == ".." else os.path.join(place, part) if part != "." else place
        yield here
        if not os.path.islink(here):
            place = here
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(here)
        place = "/" if target.startswith("/") else place
        left += [part for part in reversed(target.split("/")) if part]


def _openness(path: str) -> str | None:
    """Who besides root and this user could have written a file, directory or link, or put another in its place.

    In a directory such as ``/tmp``, where all may write and each remove its own alone (sticky), nobody can.
    """
    found = os.lstat(path)
    if found.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to user {found.st_uid}"
    is_guarded = stat.S_ISLNK(found.st_mode) or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX)
    return f"others can write {path}" if found.st_mode & 0o022 and not is_guarded else None


def _document(when: str, repo: WriteRepo, changes: Sequence[RefChange], note: Note) -> bytes:
    moves = [
        {
            "ref": change.path,
            "name": _name(change.path),
            "action": change.action,
            "old": None if change.old is None else layout.named_by(change.old),
            "new": None if change.new is None else layout.named_by(change.new),
        }
        for change in changes
    ]
    where = os.path.abspath(repo.path)  # a hook is in another directory
    document = {"schema": 1, "when": when, "repository": where, "reason": note.reason, "by": note.by, "moves": moves}
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


def _name(path: str) -> str | None:
    """The name of a tag or lease; None of another ref."""
    home, _, component = path.rpartition("/")
    above, _, expiry = home.rpartition("/")
    is_tag = home in (layout.SHARED_TAGS, layout.PRIVATE_TAGS)
    if is_tag or (above == layout.LEASES and layout.expiry_of(expiry) is not None):
        return layout.decode_name(component)
    return None


def _call(path: str, when: str, document: bytes, seconds: float, whole: float) -> str | None:
    """Run a hook; why it failed, if it did."""
    import subprocess

    if seconds <= 0:
        return f"the hooks before it took {whole:g} seconds"
    given = os.memfd_create("moves")
    heard, said = os.pipe()
    try:
        fsops.write(given, document)  # in memory: one that reads nothing keeps nobody waiting
        os.lseek(given, 0, os.SEEK_SET)
        try:
            hook = subprocess.Popen(
                [path, when],
                stdin=given,
                stdout=said,
                stderr=said,
                cwd="/",
                env={**_ENVIRONMENT, "CFS_TAGS_HOOK": when},
                start_new_session=True,
            )
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(said)
        try:
            words, status = _listen(hook, heard, seconds)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(hook.pid, signal.SIGKILL)
            hook.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return f"it took longer than {whole:g} seconds"
            raise
        if status == 0:
            return None
        ended = f"exit status {status}" if status > 0 else f"signal {-status}"
        shown = printable(words.decode("utf-8", "replace").strip().replace("\n", "; "))
        return f"{ended}: {shown}" if shown else ended
    finally:
        os.close(given)
        os.close(heard)


def _listen(hook: subprocess.Popen[bytes], heard: int, seconds: float) -> tuple[bytes, int]:
    """The beginning of what a hook says, and its exit status.  What it leaves running may keep the pipe open.

    Raises:
        TimeoutExpired: it has not ended in that many seconds.
    """
    import select
    from time import monotonic

    end, words = monotonic() + seconds, b""
    while True:
        status = hook.poll()  # first: what it said by its end is in the pipe then
        left = end - monotonic()
        ready, _, _ = select.select([heard], (), (), 0 if status is not None else max(0.0, min(left, _GLANCE)))
        piece = os.read(heard, _PIECE) if ready else None
        words += (piece or b"")[: _MOST_SAID - len(words)]
        if piece == b"":
            return words, hook.wait(max(0.0, end - monotonic()))
        if status is not None and (piece is None or len(words) == _MOST_SAID):
            return words, status
        if left <= 0:
            hook.wait(0)
