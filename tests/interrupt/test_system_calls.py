"""The program, killed or refused at system calls of its own, for real: strace's fault injection.

What has to be true afterwards is in :mod:`support.everywhere`.  The sample, its seed and its long form are as in
``test_everywhere.py``.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from support.everywhere import Said, Scene, copy_scene, in_workers, judge, run_words
from support.peers import Cfsctl

FORM = os.environ.get("CFS_TAGS_PROOF", "short")
WANTED = {"short": 12, "ci": 80, "long": 1_000_000}[FORM]
SEED = int(os.environ.get("CFS_TAGS_SEED") or random.SystemRandom().randrange(1_000_000))
CHANGING = (
    *("mkdirat", "symlinkat", "renameat", "renameat2", "rename", "unlinkat", "linkat"),
    *("fsync", "syncfs", "write", "ftruncate"),
)
READING = ("readlinkat", "openat", "getdents64", "newfstatat", "pread64")
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EMFILE", "EINTR")
CALL = re.compile(r"^(\d+) +(\w+)\(")
WORKERS = min(os.cpu_count() or 1, 2)

pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """A system call of an undisturbed run on a file of the host: which call, and the how-manyth of that name."""

    scene: int
    call: str
    number: int


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not here")
    tried = subprocess.run([found, "-qq", "-e", "inject=getppid:error=EIO", "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace cannot trace here: {tried.stderr.decode().strip()}")
    return found


def traced(strace: str, scene: Scene, place: Path, *options: str) -> tuple[Said, list[str]]:
    """Run the program under strace; what it came to, and the lines of the trace."""
    trace = place.parent / f"{place.name}.trace"
    said = run_words(place, scene.words, scene.input, strace=[strace, "-f", "-y", "-qq", "-o", trace, *options])
    return said, trace.read_text(errors="replace").splitlines()


@pytest.fixture(scope="module")
def places(strace: str, scenes: list[Scene], home: Path) -> list[Place]:
    """Every system call of the first thread of each scene's command that concerns the host."""
    found = []
    for index, scene in enumerate(scenes):
        place = copy_scene(scene, home / "traced")
        said, lines = traced(strace, scene, place, "-e", f"trace={','.join((*CHANGING, *READING))}")
        assert said.status == 0, said
        counts: dict[str, int] = {}
        main = lines[0].split()[0]
        for line in lines:
            match = CALL.match(line)
            if match is None or match[1] != main:
                continue
            counts[match[2]] = counts.get(match[2], 0) + 1
            if f"{place}/host" in line or '"host' in line:
                found.append(Place(index, match[2], counts[match[2]]))
    return found


def inject(strace: str, scene: Scene, place: Place, fault: str, where: Path, cfsctl: Cfsctl) -> bool:
    """Run a scene with a fault at a system call and judge it; whether the fault came."""
    copy_scene(scene, where)
    options = ("-e", f"trace={place.call}", "-e", f"inject={place.call}:{fault}:when={place.number}")
    said, lines = traced(strace, scene, where, *options)
    if not any("INJECTED" in line or "killed by SIGKILL" in line for line in lines):
        return False
    judge(scene, said, where, cfsctl)
    return True


@pytest.mark.parametrize("what", ["killed", "refused a change", "refused a look"])
def test_a_program_that_is(
    what: str,
    strace: str,
    scenes: list[Scene],
    places: list[Place],
    home: Path,
    cfsctl: Cfsctl,
    tell: Callable[[str], None],
) -> None:
    calls = READING if what == "refused a look" else CHANGING
    every = [place for place in places if place.call in calls]
    chance = random.Random(f"{SEED} {what}")
    chosen: dict[int, list[tuple[Place, str]]] = {}
    for each in sorted(every if len(every) <= WANTED else chance.sample(every, WANTED)):
        fault = "signal=KILL" if what == "killed" else f"error={chance.choice(ERRORS)}"
        chosen.setdefault(each.scene, []).append((each, fault))

    def inject_some(some: list[tuple[Place, str]], where: Path) -> list[tuple[bool, str]]:
        return [inject_one(scenes[each.scene], each, fault, where) for each, fault in some]

    def inject_one(scene: Scene, each: Place, fault: str, where: Path) -> tuple[bool, str]:
        try:
            return inject(strace, scene, each, fault, where / f"{each.scene}", cfsctl), ""
        except AssertionError as problem:
            return True, f"{scene.name}: {each.call} {each.number}, {fault}: {problem}"

    found = in_workers(sorted(chosen.values(), key=len, reverse=True), inject_some, home, WORKERS)
    told = [one for some in found for one in some]
    done, wrong = sum(came for came, _ in told), [line for _, line in told if line]

    tell(f"{what}: at {done} of {len(every)} system calls; CFS_TAGS_SEED={SEED}")
    assert done > 0.9 * len(told)
    assert not wrong, f"{len(wrong)} of {done} went wrong; CFS_TAGS_SEED={SEED}\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("name", ["rename over another", "migrate", "retire adopts", "create and bind"])
def test_a_link_that_cannot_be_read_is_no_reason_to_lose_or_leave_out_anything(
    name: str, strace: str, scenes: list[Scene], places: list[Place], home: Path, cfsctl: Cfsctl
) -> None:
    """Not the log of a rename, not the ref of a deployment to its manifest, not a bound image, with exit status 0."""
    index = next(number for number, scene in enumerate(scenes) if scene.name == name)
    links = [place for place in places if (place.scene, place.call) == (index, "readlinkat")]

    def inject_some(some: list[Place], where: Path) -> str:
        try:
            for each in some:
                inject(strace, scenes[index], each, "error=EIO", where / f"{index}", cfsctl)
        except AssertionError as problem:
            return f"{each}: {problem}"
        return ""

    wrong = in_workers([links[at::WORKERS] for at in range(WORKERS)], inject_some, home, WORKERS)

    assert len(links) > 5
    assert not any(wrong), wrong
