"""Writes down what commands say and do, in a form that is the same on every machine and in every run."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pwd
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from support.trees import Node, copy_tree, node_of

__all__ = ["Recorder", "program"]

WIDTH = 150
"""Up to so many characters of a JSON value stand in one line."""

TIME = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
STAMP = re.compile(r"\b\d{8}T\d{6}Z\.\d+")
TRANSACTION = re.compile(r'("transaction": ?)"[0-9a-f]{16}"')
AGE = re.compile(r"\b(?:About )?(?:\d+|an?) (?:year|month|week|day|hour|minute|second)s? ago\b")
SLICES = re.compile(r'("slices": ?)\d+')
DIGITS = re.compile(r"(?<![0-9a-f])[0-9a-f]{64,128}(?![0-9a-f])")
CREATED = "2026-01-01T00:00:00Z"
"""The creation time in the recorded images, which is content and stays."""


class Said(NamedTuple):
    """Exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def program() -> Callable[[Sequence[str]], int]:
    """``cfs-tag`` as the installed distribution names it: takes words, returns the exit status."""
    (found,) = importlib.metadata.entry_points(group="console_scripts", name="cfs-tag")
    loaded: Callable[[Sequence[str]], int] = found.load()
    return loaded


class Recorder:
    """Two copies of a host, one asked in text and one in JSON, and the lines of the golden file.

    Args:
        source: The unpacked host, which is not changed.
        home: An empty directory, made the current one: commands name ``host`` and what lies beside it.
        places: Options that follow the name of commands that look at deployments.
    """

    def __init__(self, source: Path, home: Path, places: Sequence[str]) -> None:
        self.home = home
        self.places = tuple(places)
        self.lines: list[str] = []
        self._main = program()
        self._full: dict[str, str] = {}
        self._trees: dict[str, dict[str, Node]] = {}
        self._read: dict[tuple[int, ...], Node] = {}
        for form in ("text", "json"):
            copy_tree(source, home / form / "host")
            self._trees[form] = self._tree(form)

    # -- telling the story ---------------------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        """A heading."""
        self.lines += ["", f"# {text}"]

    def change(self, text: str, action: Callable[[Path], object]) -> None:
        """Do something to both hosts by other means than ``cfs-tag``; ``action`` is given the directory of ``host``."""
        self.title(text)
        for form in self._trees:
            action(self.home / form)
        self._show_changes()

    def run(self, *words: str, input: str = "", json: bool = True) -> None:
        """Run a command in text and, on the other copy, with ``--json``.

        A command without a JSON form (``json=False``) is run on both copies, and the second has to say the same.
        """
        shown = self._stable(shlex.join(["cfs-tag", *words]))
        self.lines += ["", f"$ {shown}"]
        self.lines += [f"< {self._stable(line)}" for line in input.splitlines()]
        text = self._call("text", words, input)
        self.lines += [f"| {line}" for line in self._stable(text.out).splitlines()]
        self.lines += [f"! {line}" for line in self._stable(text.err).splitlines()]
        self.lines.append(f"exit {text.status}")
        if json:
            said = self._call("json", [*words, "--json"], input)
            self.lines += [f"j {line}" for line in self._documents(said.out)]
            self.lines += [f"j! {line}" for line in self._stable(said.err).splitlines()]
            if said.status != text.status:
                self.lines.append(f"j exit {said.status}")
        elif (other := self._call("json", words, input)) != text:
            assert self._stable("\n".join(map(str, other))) == self._stable("\n".join(map(str, text))), shown
        self._show_changes()

    def on(self, command: str, *words: str, **keywords: Any) -> None:
        """The same on the host, with the options that name its places."""
        self.run("--sysroot", "host", command, *self.places, *words, **keywords)

    def repo(self, *words: str, **keywords: Any) -> None:
        """The same on the repository alone."""
        self.run("--repo", "host/composefs", *words, **keywords)

    def text(self) -> str:
        """The golden file."""
        return "\n".join(self.lines).lstrip("\n") + "\n"

    # -- running -------------------------------------------------------------------------------------------------------

    def _call(self, form: str, words: Sequence[str], input: str) -> Said:
        streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="\n") for data in (input.encode(), b"", b"")]
        with self._standing_in(self.home / form), _streams(*streams):
            status = self._main(list(words))
        out, err = (_written(stream) for stream in streams[1:])
        return Said(status, out, err)

    @contextmanager
    def _standing_in(self, place: Path) -> Iterator[None]:
        before = Path.cwd()
        known, pwd.getpwuid = pwd.getpwuid, lambda uid: pwd.struct_passwd(("user", "x", uid, uid, "", "/", ""))
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)
            pwd.getpwuid = known

    # -- what is the same in every run ---------------------------------------------------------------------------------

    def _stable(self, text: str) -> str:
        """Times, ids of transactions, temporary paths and versions as placeholders; long ids by their first digits.

        ``6c19d984f340[128]`` stands for the 128 digits that begin with these; no others in the same file do.
        """
        for place in (self.home / "text", self.home / "json", self.home):
            text = text.replace(str(place), "<here>")
        text = text.replace(importlib.metadata.version("cfs-tags"), "<version>")
        text = STAMP.sub("<stamp>", text)
        text = TIME.sub(lambda found: found[0] if found[0] == CREATED else "<time>", text)
        text = TRANSACTION.sub(r'\1"<transaction>"', text)
        text = SLICES.sub(r"\1<slices>", text)
        text = AGE.sub("<age>", text)
        return DIGITS.sub(self._short, text)

    def _short(self, found: re.Match[str]) -> str:
        digits = found[0]
        name = f"{digits[:12]}[{len(digits)}]"
        assert self._full.setdefault(name, digits) == digits, f"two ids that begin with {digits[:12]}"
        return name

    def _documents(self, out: str) -> Iterator[str]:
        """JSON documents, laid out to be read; anything else as it is, so that a change of form is seen."""
        for line in out.splitlines(keepends=True):
            try:
                document = json.loads(line)
            except ValueError:
                document = None
            if document is None or json.dumps(document, separators=(",", ":")) + "\n" != line:
                yield f"(as it is) {self._stable(line)}"
                continue
            yield from _laid_out(json.loads(self._stable_json(line)))

    def _stable_json(self, line: str) -> str:
        return self._stable(SLICES.sub(r'\1"<slices>"', line))

    def _tree(self, form: str) -> dict[str, Node]:
        """Everything below the directory of ``host`` but the state that is cfs-tag's own."""
        found: dict[str, Node] = {}
        pending = [""]
        while pending:
            parent = pending.pop()
            for entry in os.scandir(self.home / form / parent):
                name = f"{parent}{entry.name}"
                if name == "host/composefs/cfs-tags":
                    continue
                status = entry.stat(follow_symlinks=False)
                key = (status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_mode)
                if key not in self._read:
                    self._read[key] = node_of(Path(entry.path))
                found[name] = self._read[key]
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
        return found

    def _show_changes(self) -> None:
        shown = []
        for form, before in self._trees.items():
            now = self._trees[form] = self._tree(form)
            shown.append([self._stable(line) for line in _differences(before, now)])
        assert shown[0] == shown[1], "the two forms of a command did different things"
        self.lines += shown[0]


@contextmanager
def _streams(stdin: io.TextIOWrapper, stdout: io.TextIOWrapper, stderr: io.TextIOWrapper) -> Iterator[None]:
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = stdin, stdout, stderr
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    written = stream.buffer
    assert isinstance(written, io.BytesIO)
    return os.fsdecode(written.getvalue())


def _laid_out(value: Any, before: str = "", after: str = "", indent: int = 0) -> Iterator[str]:
    """A JSON value over as many lines as it takes."""
    margin = "  " * indent
    flat = f"{margin}{before}{json.dumps(value)}{after}"
    if not isinstance(value, dict | list) or not value or len(flat) <= WIDTH:
        yield flat
        return
    parts = (
        [(f"{json.dumps(key)}: ", part) for key, part in value.items()]
        if isinstance(value, dict)
        else [("", part) for part in value]
    )
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    yield f"{margin}{before}{opening}"
    for number, (key, part) in enumerate(parts, 1):
        yield from _laid_out(part, key, "," if number < len(parts) else "", indent + 1)
    yield f"{margin}{closing}{after}"


def _differences(before: dict[str, Node], now: dict[str, Node]) -> Iterator[str]:
    for path in sorted(before.keys() | now.keys()):
        old, new = before.get(path), now.get(path)
        if old == new:
            continue
        if old is not None and new is not None:
            yield f"~ {path} {_described(old)} => {_described(new)}"
        elif new is not None:
            yield f"+ {path} {_described(new)}"
        elif old is not None:
            yield f"- {path} {_described(old)}"


def _described(node: Node) -> str:
    if node.kind == "link":
        return f"-> {node.target}"
    if node.kind == "file":
        return f"{node.mode:o} {node.size} bytes sha256:{node.sha256}"
    return f"{node.kind} {node.mode:o}"
