"""One of the processes that work on one repository at the same time, and what it writes down: ``python crowd.py SPEC``.

SPEC is a file with a JSON object (:class:`Spec`).  Every operation has two lines in the file ``out``: one before it is
called, one after it returned; an operation whose second line is missing was killed.  Instants are those of the
monotonic clock, which is one for all processes.

=========  ========================================================================================================
writer     changes tags by cfs-tag: one, two at once, several; imports an image and looks that it is whole
reader     reads tags by cfs-tag, and looks with the lock of the repository that what a tag leads to is there
collector  ``cfs-tag gc``
peer       tags, pulls, lists and removes by the real cfsctl
stock      ``cfsctl gc``
=========  ========================================================================================================
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from cfs_tags.cli.main import main
from cfs_tags.repo import fsops
from support.garbage import content, object_of, parse_stream

__all__ = ["PAIR", "Spec"]

PAIR = ("pair/a", "pair/b")
"""Two tags that only cfs-tag changes, always both, and to the same value."""
Learn = Callable[[Sequence[str], int, Any], None]
WAIT = "120"
"""Seconds that a command waits for locks."""


class Spec(NamedTuple):
    """What a process is told."""

    role: str
    repo: str
    operations: int
    seed: int
    cfsctl: str
    layout: str
    out: str
    stop: str
    """Collectors go on until there is this file."""
    registers: list[str]
    held: list[str]
    """Digests of manifests that are always there."""
    loose: list[str]
    """Names in the layout of images that come and go."""
    slow: bool = False
    """Let every change of the disk take some milliseconds more, so that much happens between two of them."""
    careless: bool = False
    """Break cfs-tag: what came out of an exchange is taken for what had been there some time before."""


class Worker:
    """What all of them have."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.random = random.Random(spec.seed)
        self.repo = Path(spec.repo)
        self.out = open(spec.out, "a", buffering=1)  # noqa: SIM115  (as long as the process)
        self.known: dict[str, str] = {}

    def run(self) -> None:
        """Work until so much is done, or the others are."""
        for number in range(self.spec.operations):
            if os.path.exists(self.spec.stop):
                return
            self.step(number)

    def step(self, number: int) -> None:
        """Do one thing."""
        match self.spec.role:
            case "writer":
                self.write()
            case "reader":
                self.read()
            case "collector":
                self.ours("gc", "--no-sysroot")
                time.sleep(self.random.uniform(0, 0.2))
            case "peer":
                self.peer(number)
            case "stock":
                self.cfsctl("gc")
                time.sleep(self.random.uniform(0.2, 1))

    # -- cfs-tag -------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """One change of tags, or a look at them."""
        name, other, third = self.random.sample(self.spec.registers, 3)
        target = f"@{self.random.choice(self.spec.held)}"
        expected = self.known.get(name, "absent")
        match self.random.randrange(20):
            case 0 | 1 | 2:
                self.ours("create", name, target, "--force")
            case 3 | 4 | 5 | 6:
                self.ours("create", name, target, "--expect", expected)
            case 7:
                self.ours("create", name, target)
            case 8:
                self.ours("delete", name)
            case 9:
                self.ours("delete", name, "--keep-for", "1h")
            case 10:
                self.ours("restore", name)
            case 11 | 12:
                self.ours("rename", name, other, *self.random.choice([(), ("--force",)]))
            case 13 | 14:
                lines = [f"move {name} {target}", f"move {other} {target}", f"delete {third}"]
                if expected == "absent":
                    lines[0] = f"create {name} {target}"
                self.ours("update", "--stdin", input="\n".join(lines) + "\n")
            case 15 | 16:
                self.ours("update", "--stdin", input="".join(f"move {one} {target}\n" for one in PAIR))
                self.verify_pair()
            case 17:
                self.ours("resolve", name)
            case 18:
                self.ours("list", "r/*", "pair/*")
            case _:
                self.own_image()

    def verify_pair(self) -> None:
        """Look at both at once, with the lock of those that change them."""
        value = self.known.get(PAIR[0], self.spec.held[0])
        self.ours("update", "--stdin", input="".join(f"verify {one} {value}\n" for one in PAIR))

    def own_image(self) -> None:
        """An image of this process alone: it is whole as long as it has its tag."""
        image = self.random.choice(self.spec.loose)
        name = f"own/{self.spec.seed}"
        self.ours("import", f"oci:{self.spec.layout}:{image}", name, "--force", "--shared")
        self.look(name)
        if self.random.random() < 0.5:
            self.ours("delete", name)

    def read(self) -> None:
        """One look."""
        name = self.random.choice(self.spec.registers)
        match self.random.randrange(6):
            case 0 | 1:
                self.ours("resolve", name)
            case 2 | 3:
                self.ours("list", "r/*", "pair/*")
            case 4:
                self.look(name)
            case _:
                self.look(self.random.choice(PAIR))

    def ours(self, *words: str, input: str = "") -> None:
        """A command of cfs-tag, in this process."""
        if words[0] not in ("resolve", "list"):
            words = (*words, "--lock-timeout", WAIT)

        def call() -> tuple[int, Any]:
            out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
            sys.stdin = io.TextIOWrapper(io.BytesIO(input.encode()))
            with redirect_stdout(out), redirect_stderr(err):
                status = main(["--repo", self.spec.repo, *words, "--json"])
            for stream in (out, err):
                stream.flush()
            said = out.buffer.getvalue() or err.buffer.getvalue()
            return status, json.loads(said)

        self.noted([*words, *([input] if input else [])], call, self.learn)

    def learn(self, words: Sequence[str], status: int, document: Any) -> None:
        """Keep what was seen of the registers: what the next command expects."""
        if status == 0 and words[0] == "resolve":
            self.known[words[1]] = document["result"]["digest"]
        elif status == 0 and words[0] == "list":
            self.known = {row["name"]: row["digest"] or "absent" for row in document["result"]}

    # -- cfsctl --------------------------------------------------------------------------------------------------------

    def peer(self, number: int) -> None:
        """What another program does."""
        name = self.random.choice(self.spec.registers)
        own = f"own/{self.spec.seed}"
        match self.random.randrange(8):
            case 0 | 1 | 2:
                self.cfsctl("oci", "tag", self.random.choice(self.spec.held), name)
            case 3:
                self.cfsctl("oci", "untag", name)
            case 4 | 5:
                self.cfsctl("oci", "images", "--json")
            case 6:
                self.cfsctl("oci", "pull", f"oci:{self.spec.layout}:{self.random.choice(self.spec.loose)}", name)
            case _:
                self.cfsctl("oci", "pull", f"oci:{self.spec.layout}:{self.random.choice(self.spec.loose)}", own)
                self.look(own)

    def cfsctl(self, *words: str) -> None:
        """A command of the real cfsctl."""

        def call() -> tuple[int, Any]:
            place = str(Path(self.spec.layout).parent)
            environment = {"PATH": os.environ["PATH"], "HOME": place, "TMPDIR": place}
            command = [self.spec.cfsctl, "--repo", self.spec.repo, *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
            if done.returncode == 0 and "--json" in words:
                return 0, json.loads(done.stdout)
            return done.returncode, (done.stdout + done.stderr)[-500:]

        self.noted(["cfsctl", *words], call)

    # -- looking -------------------------------------------------------------------------------------------------------

    def look(self, name: str) -> None:
        """With the lock of the repository held, as a reader holds it: all that a tag leads to is there."""

        def call() -> tuple[int, Any]:
            held = os.open(self.repo, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_SH)
                ref = f"streams/refs/oci/{name.replace('/', '%2F')}"
                if not os.path.lexists(self.repo / ref):
                    return 0, None
                return 0, missing(self.repo, ref)
            finally:
                os.close(held)

        self.noted(["look", name], call)

    def noted(self, words: Sequence[str], call: Callable[[], tuple[int, Any]], learn: Learn | None = None) -> None:
        """Write down an operation: that it is called, and what it came to."""
        self.out.write(json.dumps({"called": time.monotonic_ns(), "words": words}) + "\n")
        status, document = call()
        self.out.write(json.dumps({"returned": time.monotonic_ns(), "status": status, "document": document}) + "\n")
        if learn is not None:
            learn(words, status, document)


def missing(repo: Path, ref: str) -> list[str]:
    """What a ref leads to and is not there; read by hand."""
    try:
        pending = [object_of(repo, ref)]
    except FileNotFoundError:
        return [] if not os.path.lexists(repo / ref) else [f"{ref} leads to nothing"]
    lost, seen = [], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if not content(repo, current).exists():
            lost.append(current)
            continue
        stream = parse_stream(content(repo, current).read_bytes(), len(current) // 2)
        lost += [one for one in (*stream.objects, *stream.named.values()) if not content(repo, one).exists()]
        pending += [one for key, one in stream.named.items() if not key.startswith("composefs.image")]
    return lost


def be_careless() -> None:
    """Let ``fsops.exchange`` hand out the value of some time before, whatever it replaced."""

    def exchange(dir_fd: int, first: str, second: str) -> None:
        before = os.readlink(second, dir_fd=dir_fd)
        time.sleep(0.03)
        os.rename(first, second, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.symlink(before, first, dir_fd=dir_fd)

    fsops.exchange = exchange


def be_slow(chance: random.Random) -> None:
    """Let every operation of ``fsops`` that changes something wait before."""

    def slowly(original: Callable[..., object]) -> Callable[..., object]:
        def changed(*args: object, **named: object) -> object:
            time.sleep(chance.uniform(0, 0.008))
            return original(*args, **named)

        return changed

    for name in fsops.MUTATING:
        setattr(fsops, name, slowly(getattr(fsops, name)))


if __name__ == "__main__":
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text()))
    if spec.careless:
        be_careless()
    if spec.slow:
        be_slow(random.Random(spec.seed))
    Worker(spec).run()
