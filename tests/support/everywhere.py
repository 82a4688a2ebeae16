"""Commands that are killed, or refused one operation, at every place; and what has to be true afterwards.

A :class:`Scene` is a directory with a host and a command that is run in it.  :func:`run_attempt` copies the scene, runs
the command in a forked child that is killed at, or fails, one operation of ``fsops`` or one look at a link, file or
directory, and looks at what is left:

* no object that was there is gone, but for those that the command itself collects;
* the checks of cfsctl and of cfs-tag find nothing that they did not find before, but for a journal that waits;
* an error is an error of the program's own with a true text, a success is complete;
* the command run once more ends where an undisturbed run ends, and leaves no journal and no spare files;
* the log names, as the newest value of each ref, the value that the ref has.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.metadata
import io
import itertools
import json
import mmap
import os
import pkgutil
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from functools import partial
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

from cfs_tags import Repository
from cfs_tags.repo import beneath, reflog
from support.interrupt import Watch, watched_operations
from support.peers import Cfsctl

__all__ = [
    "Attempt",
    "Fault",
    "Scene",
    "attempts_of",
    "copy_scene",
    "in_workers",
    "judge",
    "run_all",
    "run_attempt",
    "run_words",
]

T = TypeVar("T")

KILLED = -signal.SIGKILL
STAMP = re.compile(r"\d{8}T\d{6}Z\.\d+")
EMPTY = ("journal", "tmp")
"""Directories of ``cfs-tags/`` that hold something during a change alone."""


# -- running the program in a child ------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What a run came to: exit status (negative: the signal), standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def findings(self) -> list[tuple[str, str]]:
        """Code and place of what ``fsck --json`` found, notes left out."""
        rows = json.loads(self.out)["result"]["findings"]
        return sorted((row["code"], str(row["path"])) for row in rows if row["severity"] != "note")


def run_words(
    place: Path,
    words: Sequence[str],
    input: str = "",
    around: AbstractContextManager[Any] | None = None,
    strace: Sequence[str | Path] = (),
) -> Said:
    """Run ``cfs-tag`` in a forked child whose current directory is ``place``; ``around`` is entered in the child.

    The child ends as a process does that is killed: nothing of it is cleared up by this one.

    Args:
        place: a directory.
        words: the command.
        input: its standard input.
        around: as said.
        strace: strace and its options, with which the child is traced from the command on; no interpreter is started.
    """
    main = _program()
    with (place / ".out").open("w+b") as out, (place / ".err").open("w+b") as err:
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                if strace:
                    os.kill(os.getpid(), signal.SIGSTOP)
                os.chdir(place)
                sys.stdin = io.TextIOWrapper(io.BytesIO(input.encode()))
                sys.stdout = os.fdopen(out.fileno(), "w", closefd=False)
                sys.stderr = os.fdopen(err.fileno(), "w", closefd=False)
                with around or nullcontext():
                    status = main(list(words))
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc(file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(status)
        with _traced(pid, strace) if strace else nullcontext():
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "surrogateescape"))
    for file_name in (".out", ".err"):
        (place / file_name).unlink()
    return Said(status, *texts)


@contextmanager
def _traced(pid: int, strace: Sequence[str | Path]) -> Iterator[None]:
    """Have strace follow a child that stops itself, and let it go on; at the end the trace is whole."""
    os.waitpid(pid, os.WUNTRACED)
    tracer = subprocess.Popen([*strace, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not re.search(r"^TracerPid:\s+[1-9]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            assert tracer.poll() is None, tracer.communicate()[1].decode()
            time.sleep(0.001)
        os.kill(pid, signal.SIGCONT)
        yield
    finally:
        if tracer.poll() is None and os.path.exists(f"/proc/{pid}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        tracer.communicate(timeout=60)


@functools.cache
def _program() -> Callable[[Sequence[str]], int]:
    """``cfs-tag`` as the installed distribution names it, with all its modules: children need not import them again."""
    (found,) = importlib.metadata.entry_points(group="console_scripts", name="cfs-tag")
    main: Callable[[Sequence[str]], int] = found.load()
    package = importlib.import_module(found.module.partition(".")[0])
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(("__main__", ".page", ".varlink", ".lan")):  # these change nothing, and make each fork dear
            importlib.import_module(module.name)
    lazily = ("ctypes", "fcntl", "filelock", "hashlib", "pwd", "tarfile", "compression.zstd", "backports.zstd")
    for module_name in lazily:  # what the program imports where it is used, a child would import each time
        with suppress(ImportError):
            importlib.import_module(module_name)
    with redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        main(["--version"])
    gc.collect()
    gc.freeze()  # a collection in a child would copy all that is here
    return main


class Fault(NamedTuple):
    """What happens at operation ``number`` (from 0): a kill ``before``, ``after`` or ``torn`` (half of its bytes are written),
    or an ``error`` with this ``errno``, once; or that error at ``look`` ``number``."""

    kind: str
    number: int
    errno: int = 0

    def __str__(self) -> str:
        if self.kind == "look":
            return f"{os.strerror(self.errno)} at look {self.number}"
        error = f" {os.strerror(self.errno)}" if self.errno else ""
        return f"{self.kind}{error} at operation {self.number}"


@contextmanager
def _looks(called: Callable[[int], None]) -> Iterator[None]:
    """Context in which ``called`` is told the number (from 0) of every look at what is on the disk."""
    numbers = itertools.count()

    def watch(original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            called(next(numbers))
            return original(*args)

        return watched

    with ExitStack() as stack:
        for name in ("open_at", "read_link", "status"):
            stack.enter_context(patch.object(beneath, name, watch(getattr(beneath, name))))
        yield


@contextmanager
def _fault(fault: Fault, counter: mmap.mmap) -> Iterator[None]:
    """Context in which the fault happens; ``counter`` is told the number of operations and whether it did."""
    is_look = fault.kind == "look"

    def kill() -> None:
        counter[8:16] = struct.pack("<Q", 1)
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        counter[8:16] = struct.pack("<Q", 1)
        raise OSError(fault.errno, os.strerror(fault.errno))

    def called(number: int, name: str) -> Watch | None:
        counter[0:8] = struct.pack("<Q", number + 1)
        if number != fault.number:
            return None
        return Watch(fail if fault.kind == "error" else kill, after=fault.kind == "after", torn=fault.kind == "torn")

    with _looks(lambda number: fail() if number == fault.number else None) if is_look else watched_operations(called):
        yield


# -- scenes ------------------------------------------------------------------------------------------------------------


class Scene:
    """A host in a directory, and a command.

    Attributes:
        name: says what is done.
        home: holds ``host`` and what lies beside it; only ever copied.
        words: of the command; ``host`` is its host.
        input: its standard input.
        collects: objects may go.
        operations: names of the operations of an undisturbed run, in order.
        looks: how often that run looks at what is on the disk.
    """

    def __init__(self, name: str, home: Path, words: Sequence[str], input: str = "", *, collects: bool = False) -> None:
        self.name, self.home, self.words, self.input, self.collects = name, home, tuple(words), input, collects
        self.operations: list[str] = []
        self.looks = 0
        self.before = contents(home)
        self.end: dict[str, str] = {}
        self.known: list[tuple[str, str]] = []
        """What fsck finds before or after an undisturbed run."""
        self.comes_to_more = False
        """Whether the command, once it was done, comes to something else when it is run again."""
        self.peer_agrees = True
        """Whether cfsctl finds nothing then."""
        self.copied_to: Path | None = None
        self.copied: dict[str, Entry] = {}
        """Where the last copy of this process is, and what was there when it had been made."""
        self.checked: set[frozenset[tuple[str, str]]] = set()
        """Contents of the repository of which both checks have said that they are sound."""

    def rehearse(self, work: Path, cfsctl: Cfsctl) -> None:
        """Run the command undisturbed: it has to succeed, and what it leaves is where every attempt has to end."""
        place = copy_scene(self, work)
        found = run_words(place, FSCK)
        self.known = found.findings
        complaints = _of_cfsctl(cfsctl, place)
        with _shared() as counter:
            listing = place.parent / f"{place.name}.operations"
            said = run_words(place, self.words, self.input, _listed(listing, counter))
            assert said.status == 0, (self.name, said)
            self.looks = struct.unpack("<Q", counter[:8])[0]
        self.operations = listing.read_text().split()
        self.end = contents(place)
        self.known = sorted({*self.known, *run_words(place, FSCK).findings})
        self.peer_agrees = not complaints and not _of_cfsctl(cfsctl, place)
        run_words(place, self.words, self.input)
        self.comes_to_more = contents(place) != self.end
        assert self.before != self.end or self.operations, self.name


REPO = "host/composefs"
FSCK = ("--repo", REPO, "fsck", "--json")
WAITING = frozenset({"pending-transaction", "partial-deployment-ref", "partial-pin", "name-in-two-homes"})
"""Findings that say no more than that the next writer has to finish something, where there is the first of them."""


@contextmanager
def _shared() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 16) as memory:
        yield memory


@contextmanager
def _listed(path: Path, counter: mmap.mmap) -> Iterator[None]:
    with path.open("w") as file:

        def called(number: int, name: str) -> Watch | None:
            file.write(f"{name}\n")
            file.flush()
            return None

        def looked(number: int) -> None:
            counter[:8] = struct.pack("<Q", number + 1)

        with watched_operations(called), _looks(looked):
            yield


def contents(home: Path) -> dict[str, str]:
    """Path to what is there, of files and links; stamps of trash and leases are no part of it.

    Of cfs-tag's own state only the order of good boots counts.
    """
    found = {}
    pending = [""]
    while pending:
        parent = pending.pop()
        for entry in os.scandir(f"{home}/{parent}"):
            name = f"{parent}{entry.name}"
            if name == f"{REPO}/cfs-tags":
                good = Path(entry.path, "good.json")
                if good.exists():
                    found[f"{name}/good.json"] = " ".join(boot["id"] for boot in json.loads(good.read_text())["boots"])
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                pending.append(f"{name}/")
            elif stat.S_ISLNK(status.st_mode):
                name = STAMP.sub("STAMP", name)
                found[name if name not in found else f"{name} twice"] = f"-> {os.readlink(entry.path)}"
            elif f"{REPO}/objects/" in name:
                found[name] = f"{status.st_size} bytes"  # a name says what is in it; fsck --content is another test
            else:
                found[name] = Path(entry.path).read_bytes().hex()
    return found


def copy_scene(scene: Scene, place: Path) -> Path:
    """A copy to act on, in place of what is at ``place``."""
    if scene.copied_to != place:
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        scene.copied_to, scene.copied = place, {}
    _make_alike(scene, place)
    if scene.collects:
        time.sleep(0.012)  # a tick of the file system's clock: what is there is older than a collection that starts now
    return place


def _make_alike(scene: Scene, place: Path) -> None:
    """Make ``place`` a copy of the scene; entries that an attempt left untouched stay as they are."""
    wanted = _entries(scene.home)
    found = _entries(place)
    for name in sorted(found, reverse=True):
        if name in wanted and scene.copied.get(name) == found[name]:
            continue
        path = place / name
        if stat.S_ISDIR(found[name].mode):
            if name not in wanted:
                path.rmdir()
        else:
            path.unlink()
            del found[name]
    for name in sorted(wanted):
        if name in found and (stat.S_ISDIR(wanted[name].mode) or scene.copied.get(name) == found[name]):
            continue
        source, path = scene.home / name, place / name
        if stat.S_ISDIR(wanted[name].mode):
            path.mkdir()
        else:
            shutil.copy2(source, path, follow_symlinks=False)
        shutil.copystat(source, path, follow_symlinks=False)
    scene.copied = _entries(place)


class Entry(NamedTuple):
    """What tells that a file or link is the same as before: its mode, number, size and times."""

    mode: int
    number: int
    size: int
    modified: int
    changed: int


def _entries(place: Path) -> dict[str, Entry]:
    """Everything below a directory; the numbers of directories are no part of it."""
    found = {}
    pending = [""]
    while pending:
        parent = pending.pop()
        for entry in os.scandir(f"{place}/{parent}"):
            status = entry.stat(follow_symlinks=False)
            name = f"{parent}{entry.name}"
            if stat.S_ISDIR(status.st_mode):
                pending.append(f"{name}/")
                found[name] = Entry(status.st_mode, 0, 0, 0, 0)
            else:
                found[name] = Entry(status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


# -- attempts ----------------------------------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """One run of the command of scene number ``scene`` with a fault."""

    scene: int
    fault: Fault


def attempts_of(scenes: Sequence[Scene], errors: Sequence[int]) -> tuple[list[Attempt], list[Attempt], list[Attempt]]:
    """Every kill, every error of an operation and every error of a look that there is in these scenes."""
    kills, failures, looks = [], [], []
    for number, scene in enumerate(scenes):
        for place, operation in enumerate(scene.operations):
            kinds = ("before", "after", "torn") if operation in ("append", "create_file", "write") else ("before", "after")
            kills += [Attempt(number, Fault(kind, place)) for kind in kinds]
            failures += [Attempt(number, Fault("error", place, error)) for error in errors]
        looks += [Attempt(number, Fault("look", place, errors[place % len(errors)])) for place in range(scene.looks)]
    return kills, failures, looks


def run_attempt(scene: Scene, fault: Fault, place: Path, cfsctl: Cfsctl) -> bool:
    """Run the command with a fault and look at what is left; whether it came to that fault.

    Raises:
        AssertionError: something is wrong; the text says what.
    """
    copy_scene(scene, place)
    with _shared() as counter:
        said = run_words(place, scene.words, scene.input, _fault(fault, counter))
        happened = bool(struct.unpack("<QQ", counter[:16])[1])
    if not happened:
        assert said.status == 0, said
        return False
    assert fault.kind in ("error", "look") or said.status == KILLED, said
    judge(scene, said, place, cfsctl, at_its_end=fault == Fault("after", len(scene.operations) - 1))
    return True


def judge(scene: Scene, said: Said, place: Path, cfsctl: Cfsctl, *, at_its_end: bool = False) -> None:
    """Look at what a run left that was killed or met an error, then run the command again.

    Args:
        scene: whose command it was.
        said: what the run came to.
        place: where.
        cfsctl: the peer that looks at it, too.
        at_its_end: it was killed when all was done: nothing on the disk tells it from a command that had returned.

    Raises:
        AssertionError: something is wrong; the text says what.
    """
    left = contents(place)
    if said.status != KILLED:
        _judge_what_was_said(scene, said, left)
    _judge_what_is_left(scene, place, left, cfsctl)
    if scene.comes_to_more and (said.status == 0 or (at_its_end and left == scene.end)):
        _judge_the_log(scene, place)
        return
    again = run_words(place, scene.words, scene.input)
    end = contents(place)
    assert "Traceback" not in again.err, again
    assert end == scene.end, f"run again it ended elsewhere: {_difference(scene.end, end)}; it said {again}"
    for name in EMPTY:
        where = place / REPO / "cfs-tags" / name
        assert not where.is_dir() or not os.listdir(where), f"left in {name}/: {os.listdir(where)}; again it said {again}"
    _judge_what_is_left(scene, place, end, cfsctl)
    _judge_the_log(scene, place)


def _judge_what_was_said(scene: Scene, said: Said, left: dict[str, str]) -> None:
    assert said.status in (0, 1, 3, 4, 5, 6), said
    assert "Traceback" not in said.err, said
    assert "internal" not in said.err, said
    if said.status == 0 and not _was_kept(scene, said, left):
        assert left == scene.end, f"it said it was done: {_difference(scene.end, left)}; {said}"
    if "nothing was changed" in said.err:
        assert left == scene.before, f"it said nothing was changed: {_difference(scene.before, left)}; {said}"


def _was_kept(scene: Scene, said: Said, left: dict[str, str]) -> bool:
    """Whether nothing but what was to go is still there, because something was not read, and that it stays was said."""
    other = {name for name in left.keys() | scene.end.keys() if left.get(name) != scene.end.get(name)}
    kept = all(name not in scene.end and left[name] == scene.before.get(name) for name in other)
    nothing = left == scene.before and "every tag stays" in said.out
    return nothing or (kept and "could not be read" in said.out + said.err)


def _judge_what_is_left(scene: Scene, place: Path, left: dict[str, str], cfsctl: Cfsctl) -> None:
    objects = {name for name in scene.before if name.startswith(f"{REPO}/objects/")}
    if scene.collects:
        objects &= scene.end.keys()
    gone = {name for name in objects if left.get(name) != scene.before[name]}
    assert not gone, f"objects are gone: {sorted(gone)}"
    state = place / REPO / "cfs-tags"
    waiting = any((state / name).is_dir() and os.listdir(state / name) for name in EMPTY)
    key = frozenset({*left.items(), ("waiting", str(waiting))})
    if key in scene.checked:
        return
    found = [one for one in run_words(place, FSCK).findings if one not in scene.known]
    codes = {code for code, _ in found}
    assert not found or (waiting and "pending-transaction" in codes <= WAITING), f"fsck finds {found}"
    complaints = _of_cfsctl(cfsctl, place)
    assert not complaints or not scene.peer_agrees, complaints
    scene.checked.add(key)


def _of_cfsctl(cfsctl: Cfsctl, place: Path) -> str:
    """What the checks of cfsctl say where they fail: of content, and of what its collector would stop at."""
    for words in (("fsck",), ("gc", "-n")):
        said = cfsctl(place / REPO, "--no-upgrade", *words, check=False)
        if said.returncode != 0:
            return said.stdout + said.stderr
    return ""


def _judge_the_log(scene: Scene, place: Path) -> None:
    """The newest entry of each ref in the log names the value that it has.

    Where the command makes one ref and nothing else, there is no journal, and the log may lack that it was made.
    """
    with Repository.open(place / REPO) as repo:
        entries = reflog.all_entries(repo).entries
    newest = {entry.ref: entry.new for entry in entries if entry.ref != reflog.WHOLE}
    made = [name for name in scene.end if "/refs/" in name and scene.before.get(name) != scene.end[name]]
    makes_one = len(made) == 1 and made[0] not in scene.before
    for ref, wanted in newest.items():
        path = place / REPO / ref
        has = os.readlink(path) if path.is_symlink() else None
        if has is None or wanted is None:
            assert has is wanted or (makes_one and wanted is None), f"the log says {wanted} of {ref}, it is {has}"
        else:
            assert has == wanted, f"the log says {wanted} of {ref}, it is {has}"


def _difference(wanted: dict[str, str], found: dict[str, str]) -> str:
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return "; ".join(f"{name}: wanted {_short(wanted.get(name))}, found {_short(found.get(name))}" for name in names[:8])


def _short(text: str | None) -> str:
    return "nothing" if text is None else text[:90]


# -- many --------------------------------------------------------------------------------------------------------------


def in_workers(tasks: Sequence[T], work: Callable[[T, Path], Any], home: Path, workers: int) -> list[Any]:
    """Do at most 256 tasks in forked children, each of which takes the next when it is done with one.

    Args:
        tasks: the longest first.
        work: is given a task and a directory that no other child uses; what it returns can be JSON.
        home: where these directories are made.
        workers: how many children.

    Returns:
        what ``work`` returned, in no order.
    """
    tickets, writing = os.pipe()
    os.write(writing, bytes(range(len(tasks))))
    os.close(writing)
    children = []
    for worker in range(workers):
        place = home / f"worker-{worker}"
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                place.mkdir(exist_ok=True)
                done = []
                while ticket := os.read(tickets, 1):
                    done.append(work(tasks[ticket[0]], place))
                (place / "done.json").write_text(json.dumps(done))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append((pid, place))
    os.close(tickets)
    found = []
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in children]
    assert not any(statuses), "a worker failed"
    for _, place in children:
        found += json.loads((place / "done.json").read_text())
    return found


@contextmanager
def fresh_processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that leaves no child: what tracks its semaphores would be one as long as this process lives."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def run_all(
    scenes: Sequence[Scene],
    attempts: Iterable[Attempt],
    work: Path,
    cfsctl: Cfsctl,
    workers: int,
    *,
    enough: int = 1_000_000,
) -> tuple[int, list[str]]:
    """Run attempts in so many processes; gives how many came to their fault, and a line for each that went wrong.

    The processes are fresh, because a command that is forked from a small one takes half as long; one alone is this one, so
    that what a test has replaced is replaced in it.  After ``enough`` that went wrong the rest of a scene is left out.
    """
    by_scene: dict[int, list[Attempt]] = {}
    for attempt in sorted(attempts):
        by_scene.setdefault(attempt.scene, []).append(attempt)
    some = sorted(by_scene.values(), key=len, reverse=True)
    run = partial(_run_some, work=work, cfsctl=cfsctl, enough=enough)
    with fresh_processes(workers) as pool:
        mapped = map if workers == 1 else pool.map
        found = list(mapped(run, [scenes[attempts[0].scene] for attempts in some], some))
    return sum(done for done, _ in found), [line for _, lines in found for line in lines]


def _run_some(scene: Scene, attempts: Sequence[Attempt], work: Path, cfsctl: Cfsctl, enough: int) -> tuple[int, list[str]]:
    place = work / f"{os.getpid()}-{attempts[0].scene}"
    done, failures = 0, []
    for _, fault in attempts:
        try:
            done += run_attempt(scene, fault, place, cfsctl)
        except AssertionError as error:
            done += 1
            name = "" if fault.kind == "look" else f" ({scene.operations[fault.number]})"
            failures.append(f"{scene.name}: {fault}{name}: {error}")
            if len(failures) >= enough:
                break
    return done, failures
