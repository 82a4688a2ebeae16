"""What a disk may hold after a power cut: built from the system calls of a real run.

strace writes down every call that changes files, with its bytes.  From that, :class:`Recording` knows the order of the
changes and what was synced when; :meth:`Recording.state` gives one of the many states that may be on disk if the power
goes at some instant.  What is held to:

* what a name stands for changes as the calls say, one after the other; a later change of a name is not there without
  the earlier ones, nor a name without its directory; renames and exchanges are whole;
* ``fsync`` of a directory makes all earlier changes of its names last, of a file its bytes, ``syncfs`` everything;
* everything else may be there or not, in any order: names before bytes, one directory before another.  Bytes that were
  not synced may be missing, all or from some place on.

That is less than ext4 promises (it keeps the order of names) and what btrfs and POSIX do.
"""

from __future__ import annotations

import codecs
import os
import random
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from support.everywhere import Said, run_words

__all__ = ["CALLS", "Recording", "build", "record"]

CALLS = (
    *("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "symlink", "symlinkat", "link", "linkat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "write", "pwrite64", "writev", "pwritev"),
    *("truncate", "ftruncate", "fallocate", "copy_file_range", "sendfile", "splice"),
    *("fsync", "fdatasync", "syncfs", "sync", "sync_file_range"),
)
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)(.*)$", re.DOTALL)
_UNFINISHED = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_DESCRIPTOR = re.compile(r"^(?:AT_FDCWD|(\d+))<(.*)>(?:\(deleted\))?$", re.DOTALL)
_ARGUMENT = re.compile(r'"(?:[^"\\]|\\.)*"(?:\.\.\.)?|<[^>]*>(?:\(deleted\))?|\{[^}]*\}|\[[^\]]*\]|[^,"<{\[]+|,', re.DOTALL)


class Inode(NamedTuple):
    """A regular file, whatever it is called: of the base (its path), or made by the run (a number)."""

    key: str


class Link(NamedTuple):
    """A symbolic link."""

    target: str


class Folder(NamedTuple):
    """A directory."""


Value = Inode | Link | Folder | None
"""What a name stands for; None where there is nothing."""


class Names(NamedTuple):
    """A change of what names stand for, made in one step."""

    values: dict[str, Value]


class Bytes(NamedTuple):
    """A change of a file: bytes at a place, None for its end; or, without bytes, its size."""

    inode: Inode
    place: int | None
    data: bytes | None


class Sync(NamedTuple):
    """What was made to last: a file, the names of a directory, or, with neither, everything.  ``since``: what came before."""

    inode: Inode | None
    folder: str | None
    since: int


Step = Names | Bytes | Sync


class State(NamedTuple):
    """What is on disk: path to value, and the bytes of files that the run wrote to."""

    names: dict[str, Value]
    contents: dict[Inode, bytes]


def record(
    strace: str,
    words: Sequence[str],
    place: Path,
    options: Sequence[str] = (),
    input: str = "",
    around: AbstractContextManager[Any] | None = None,
) -> tuple[Said, str]:
    """Run ``cfs-tag`` under strace in ``place``: what it said, and the trace.  ``around`` is entered in the child."""
    trace = place.parent / f"{place.name}.trace"
    command: list[str | Path] = [strace, "-f", "-y", "-qq", "-s", "100000000", "-e", "signal=none", "-o", trace]
    said = run_words(place, words, input, around, [*command, "-e", f"trace={','.join(CALLS)}", *options])
    return said, trace.read_text("latin-1")


class Recording:
    """The changes below a directory, from traces of commands that ran one after the other.

    Args:
        base: the directory before the first command.
        place: where the commands ran, a copy of it.
    """

    def __init__(self, base: Path, place: Path) -> None:
        self.base = base
        self.place = str(place)
        self.steps: list[Step] = []
        self.start = dict(_names_of(base))
        self._now = dict(self.start)
        self._made = 0
        self._open: dict[str, tuple[Inode | None, bool]] = {}
        self._places: dict[str, int] = {}
        self._needs: list[set[int]] = []
        self._last: dict[str, int] = {}

    def add(self, trace: str) -> None:
        """Read the trace of the next command."""
        self._open.clear()
        started: dict[str, tuple[str, int]] = {}
        for line in trace.splitlines():
            if (found := _UNFINISHED.match(line)) is not None:
                started[found[1]] = (found[3], len(self.steps))
                continue
            since = len(self.steps)
            if (found := _RESUMED.match(line)) is not None:
                if found[1] not in started:
                    continue
                first, since = started.pop(found[1])
                line = f"{found[1]} {found[2]}({first}{found[3]}"
            found = _LINE.match(line)
            if found is None or int(found[4]) < 0:
                continue
            self._call(found[2], _arguments(found[3]), found[4] + found[5].strip(), since)

    # -- reading calls -------------------------------------------------------------------------------------------------

    def _call(self, name: str, words: list[str], result: str, since: int) -> None:
        match name:
            case "open" | "creat" | "openat" | "openat2":
                self._opened(words if name in ("openat", "openat2") else ["AT_FDCWD<.>", *words], result)
            case "mkdir" | "mkdirat":
                self._name({self._path(words[-3:-1]): Folder()})
            case "symlink" | "symlinkat":
                self._name({self._path(words[1:]): Link(_text(words[0]))})
            case "link" | "linkat":
                self._linked(words)
            case "rename" | "renameat" | "renameat2":
                self._renamed(name, words)
            case "unlink" | "rmdir":
                self._name({self._path(words): None})
            case "unlinkat":
                self._name({self._path(words[:2]): None})
            case "write":
                self._wrote(words[0], words[1], None)
            case "pwrite64":
                self._wrote(words[0], words[1], int(words[3]))
            case "ftruncate":
                inode = self._open.get(_number(words[0]), (None, False))[0]
                if inode is not None and self._inside(words[0]) is not None:
                    self._step(Bytes(inode, int(words[1]), None))
            case "fsync" | "fdatasync":
                self._synced(words[0], since)
            case "syncfs":
                if self._inside(words[0]) is not None:
                    self._step(Sync(None, None, since))
            case "sync":
                self._step(Sync(None, None, since))
            case _:
                assert not any(self._inside(word) for word in words), f"{name} is not understood"

    def _opened(self, words: list[str], result: str) -> None:
        descriptor, flags = _number(result), words[2]
        path = self._inside(words[0], _text(words[1]))
        self._open[descriptor] = (None, False)
        self._places[descriptor] = 0
        if path is None:
            return
        if "O_TMPFILE" in flags:
            self._open[descriptor] = (self._new(), False)
            return
        there = self._now.get(path)
        if there is None and "O_CREAT" in flags:
            there = self._new()
            self._name({path: there})
        if isinstance(there, Inode):
            self._open[descriptor] = (there, "O_APPEND" in flags)
            if "O_TRUNC" in flags:
                self._step(Bytes(there, 0, None))

    def _linked(self, words: list[str]) -> None:
        source, target = (words[1], words[2:4]) if len(words) > 2 else (words[0], words[1:])
        path = self._path(target)
        text = _text(source)
        inode = (
            self._open[text.rpartition("/")[2]][0] if text.startswith("/proc/self/fd/") else self._now[self._path(words[:2])]
        )
        if path:
            assert inode is not None, words
            self._name({path: inode})

    def _renamed(self, name: str, words: list[str]) -> None:
        old, new = (
            (self._path(words[:1]), self._path(words[1:]))
            if name == "rename"
            else (self._path(words[:2]), self._path(words[2:4]))
        )
        if not old or not new:
            assert not old, f"renamed out of sight: {words}"
            return
        exchanges = name == "renameat2" and "RENAME_EXCHANGE" in words[4]
        moved = self._now.get(old)
        assert not isinstance(moved, Folder), f"a directory was renamed: {words}"
        self._name({old: self._now.get(new) if exchanges else None, new: moved})

    def _wrote(self, descriptor: str, data: str, place: int | None) -> None:
        number = _number(descriptor)
        inode, appends = self._open.get(number, (None, False))
        if inode is None or self._inside(descriptor) is None:
            return  # what was opened before under this number may be a pipe now: closing is not traced
        written = _bytes(data)
        if place is None and not appends:
            place = self._places[number]
            self._places[number] += len(written)
        self._step(Bytes(inode, place, written))

    def _synced(self, descriptor: str, since: int) -> None:
        inode = self._open.get(_number(descriptor), (None, False))[0]
        folder = self._inside(descriptor)
        if folder is None:
            return
        if inode is not None:
            self._step(Sync(inode, None, since))
        else:
            self._step(Sync(None, folder, since))

    def _new(self) -> Inode:
        self._made += 1
        return Inode(f"#{self._made}")

    def _name(self, values: dict[str, Value]) -> None:
        if "" in values:
            return  # somewhere else
        self._now.update(values)
        self._step(Names(values))

    def _step(self, step: Step) -> None:
        needs = set()
        if isinstance(step, Names):
            for path in step.values:
                needs |= {self._last[each] for each in (path, os.path.dirname(path)) if each in self._last}
                if step.values[path] is None:  # a directory that goes is empty
                    needs |= {number for each, number in self._last.items() if os.path.dirname(each) == path}
                self._last[path] = len(self.steps)
        self.steps.append(step)
        self._needs.append(needs)

    def _inside(self, descriptor: str, path: str = "") -> str | None:
        """A path relative to the directory; None where it is somewhere else."""
        found = _DESCRIPTOR.match(descriptor)
        start = found[2] if found is not None else ""
        whole = os.path.normpath(os.path.join(start, path))
        return whole[len(self.place) + 1 :] if f"{whole}/".startswith(f"{self.place}/") else None

    def _path(self, words: list[str]) -> str:
        """The same of a descriptor and a name, or of a whole path; empty where it is somewhere else."""
        if len(words) == 1:
            return self._inside("", _text(words[0])) or ""
        return self._inside(words[0], _text(words[1])) or ""

    # -- states --------------------------------------------------------------------------------------------------------

    def lasting(self, until: int) -> tuple[set[int], dict[Inode, int]]:
        """What is on disk for certain when so many steps were made: changes of names, and of each file the last step."""
        names: set[int] = set()
        files: dict[Inode, int] = {}
        for step in self.steps[:until]:
            if not isinstance(step, Sync):
                continue
            for number, earlier in enumerate(self.steps[: step.since]):
                match earlier:
                    case Names(values) if step.inode is None:
                        if step.folder is None or any(os.path.dirname(path) == step.folder for path in values):
                            names.add(number)
                    case Bytes(inode, _, _) if step.inode == inode or (step.inode is None and step.folder is None):
                        files[inode] = max(number, files.get(inode, -1))
        pending = list(names)
        while pending:
            for need in self._needs[pending.pop()] - names:
                names.add(need)
                pending.append(need)
        return names, files

    def state(self, until: int, chance: random.Random, how: str | None = None) -> State:
        """A state of the disk when the power goes after so many steps.

        Args:
            until: the steps.
            chance: for what is chosen.
            how: of what was not synced is there ``least`` (nothing), ``most`` (all), what came before some step (``in order``)
                or ``some``; None chooses one of these.
        """
        lasting, files = self.lasting(until)
        how = how or chance.choice(["least", "most", "in order", "some", "some"])
        bound = chance.randrange(until + 1)
        share = chance.random()
        chosen: set[int] = set()
        for number, step in enumerate(self.steps[:until]):
            if not isinstance(step, Names):
                continue
            wanted = {"least": False, "most": True, "in order": number < bound, "some": chance.random() < share}[how]
            if number in lasting or (wanted and self._needs[number] <= chosen):
                chosen.add(number)
        names = dict(self.start)
        for number in sorted(chosen):
            step = self.steps[number]
            assert isinstance(step, Names)
            names.update(step.values)
        contents = self._contents(until, files, chance, {"least": 0.0, "most": 1.0}.get(how, share))
        return State({path: value for path, value in names.items() if value is not None}, contents)

    def _contents(self, until: int, files: dict[Inode, int], chance: random.Random, share: float) -> dict[Inode, bytes]:
        """The bytes of each file that was written to: all that was synced, and of the rest the beginning."""
        contents: dict[Inode, bytes] = {}
        ended = set()
        for number, step in enumerate(self.steps[:until]):
            if not isinstance(step, Bytes) or step.inode in ended:
                continue
            if step.inode not in contents:
                source = self.base / step.inode.key
                contents[step.inode] = b"" if step.inode.key.startswith("#") else source.read_bytes()
            if number > files.get(step.inode, -1) and chance.random() >= share:
                ended.add(step.inode)
                part = chance.choice([0.0, 0.0, 0.5])
                if step.data is None or part == 0:
                    continue
                step = step._replace(data=step.data[: int(len(step.data) * part)])
            contents[step.inode] = _written(contents[step.inode], step)
        return contents


def _written(before: bytes, step: Bytes) -> bytes:
    if step.data is None:
        assert step.place is not None
        return before[: step.place].ljust(step.place, b"\0")
    place = len(before) if step.place is None else step.place
    return before[:place].ljust(place, b"\0") + step.data + before[place + len(step.data) :]


def _arguments(text: str) -> list[str]:
    words, current = [], ""
    for part in _ARGUMENT.findall(text):
        if part == ",":
            words.append(current.strip())
            current = ""
        else:
            current += part
    return [*words, current.strip()]


def _number(word: str) -> str:
    return re.match(r"\d*", word)[0]  # type: ignore[index]


def _bytes(word: str) -> bytes:
    assert word.endswith('"'), f"cut short: {word[-40:]}"
    return codecs.escape_decode(word[1:-1].encode("latin-1"))[0]


def _text(word: str) -> str:
    return os.fsdecode(_bytes(word))


def _names_of(base: Path) -> Iterator[tuple[str, Value]]:
    pending = [""]
    while pending:
        parent = pending.pop()
        for entry in os.scandir(f"{base}/{parent}"):
            name = f"{parent}{entry.name}"
            if entry.is_symlink():
                yield name, Link(os.readlink(entry.path))
            elif entry.is_dir():
                yield name, Folder()
                pending.append(f"{name}/")
            else:
                yield name, Inode(name)


def build(recording: Recording, state: State, place: Path) -> None:
    """Make ``place``, which is a copy of the base, what the disk holds."""
    changed = {
        path for path in recording.start.keys() | state.names.keys() if recording.start.get(path) != state.names.get(path)
    }
    changed |= {path for path, value in state.names.items() if isinstance(value, Inode) and value in state.contents}
    for path in sorted(changed, reverse=True):
        whole = place / path
        if not os.path.lexists(whole):
            continue
        if stat.S_ISDIR(whole.lstat().st_mode):
            shutil.rmtree(whole) if not isinstance(state.names.get(path), Folder) else None
        else:
            whole.unlink()
    for path in sorted(changed):
        match state.names.get(path):
            case Folder():
                (place / path).mkdir(exist_ok=True)
            case Link(target):
                (place / path).symlink_to(target)
            case Inode(key) as inode:
                data = state.contents.get(inode)
                if data is None:
                    data = b"" if key.startswith("#") else (recording.base / key).read_bytes()
                (place / path).write_bytes(data)
