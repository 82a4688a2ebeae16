"""The power goes at any instant: what had returned is there, with its content, and what was under way is all or nothing.

Commands run for real under strace; states of the disk are built from what they did and what they synced
(:mod:`support.powercut`).  In each the next command that writes runs first, as after a reboot.

``CFS_TAGS_PROOF=ci`` looks at 500 states or more, ``CFS_TAGS_PROOF=long`` at forty times as many, else at a hundred.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from cfs_tags.repo import fsops
from support import stock
from support.everywhere import REPO, STAMP, Scene, copy_scene, in_workers, run_words
from support.garbage import parse_stream
from support.peers import Cfsctl
from support.powercut import Names, Recording, Sync, build, record

FORM = os.environ.get("CFS_TAGS_PROOF", "short")
WANTED = {"short": 110, "ci": 480, "long": 20_000}[FORM]
SEED = int(os.environ.get("CFS_TAGS_SEED") or random.SystemRandom().randrange(1_000_000))
WORKERS = min(os.cpu_count() or 1, 2)
ALL_OR_NOTHING = ("update", "rename", "delete two", "move", "create")
KILLED_AND_RUN_AGAIN = (
    *("create", "create private", "delete", "delete two", "move", "update", "rename over another"),
    *("migrate", "retire", "collect what was retired", "import", "import over a tag"),
)
AGAIN_ELSEWHERE = ("restore an entry", "restore the value before")
"""Such a command that had returned and is run again goes on to the value before."""

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """A scene whose commands were recorded, and the refs after each of them."""

    scene: Scene
    recording: Recording
    ends: tuple[int, ...]
    """How many steps were made when each command had returned."""
    refs: tuple[dict[str, str], ...]
    """Before the first command and after each; of one that was killed what it would have come to."""
    good: dict[str, bytes]
    """The objects as they are, by their ids."""


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not here")
    return found


def refs_of(place: Path) -> dict[str, str]:
    return {path: link for path, link in stock.refs(place / REPO).items() if "probe" not in path}


def objects_of(place: Path) -> dict[str, bytes]:
    return {path.parent.name + path.name: path.read_bytes() for path in (place / REPO / "objects").glob("??/*")}


def recorded(
    strace: str, scene: Scene, home: Path, around: AbstractContextManager[Any] | None = None, kill: str | None = None
) -> Case | None:
    """Record the command of a scene; with ``kill``, a place in strace's words, first killed there and then run again."""
    place = copy_scene(scene, home / "recorded")
    recording = Recording(scene.home, place)
    refs, ends, good = [refs_of(place)], [], objects_of(place)
    for options in ([f"--inject={kill}"], []) if kill else ([],):
        said, trace = record(strace, scene.words, place, options, scene.input, around)
        if options and said.status != -9:
            return None
        assert said.status == (-9 if options else 0), said
        recording.add(trace)
        good |= objects_of(place)
        ends.append(len(recording.steps))
        refs.append(refs_of(place))
    if kill:
        refs[1] = refs[2]
        ends[0] = -1  # it never returned
    return Case(scene, recording, tuple(ends), tuple(refs), good)


def killed_before_a_sync(strace: str, scene: Scene, home: Path) -> list[Case]:
    """The command killed before a sync and run again: before the last, and some others; in the longer forms before each."""
    alone = recorded(strace, scene, home)
    assert alone is not None
    syncs = sum(isinstance(step, Sync) and step.folder is not None for step in alone.recording.steps)
    numbers = {syncs, syncs // 2 + 1} if FORM == "short" else range(1, syncs + 1)
    kills = [f"fsync:signal=KILL:when={number}" for number in numbers]
    return [case for kill in kills if (case := recorded(strace, scene, home, kill=kill)) is not None]


# -- judging -----------------------------------------------------------------------------------------------------------


def judge(case: Case, until: int, place: Path, cfsctl: Cfsctl) -> None:
    """Whether a state is right: the power went after so many steps."""
    scene = case.scene
    returned = max((number for number, end in enumerate(case.ends, 1) if 0 <= end <= until), default=0)
    before, after = case.refs[returned], case.refs[min(returned + 1, len(case.refs) - 1)]
    # of a manifest that is there: a repair starts without some
    names = set(os.listdir(place / REPO / "streams"))
    stays = (link for path, link in before.items() if "refs/oci/" in path and after.get(path) == link)
    stable = next(link for link in stays if link.rpartition("/")[2] in names)
    probe = run_words(place, ("--repo", REPO, "create", "probe", f"@{stable.rpartition('oci-manifest-')[2]}", "--private"))
    assert probe.status == 0, f"the next command fails: {probe}"
    found = refs_of(place)
    for path in before.keys() | after.keys() | found.keys():
        allowed = (before.get(path), after.get(path))
        assert found.get(path) in allowed, f"{path} is {found.get(path)}, wanted one of {allowed}"
    if scene.name.startswith(ALL_OR_NOTHING):
        assert found in (before, after), f"a part of it: {found}"
    whole(case, place, found)
    if returned == len(case.ends) or (found == after and scene.name in AGAIN_ELSEWHERE):
        return
    again = run_words(place, scene.words, scene.input)
    assert "Traceback" not in again.err, again
    end = refs_of(place)
    other = {path for path in end.keys() | after.keys() if end.get(path) != after.get(path)}
    other -= {path for path in other if STAMP.search(path)}  # what has an end has a later one
    assert not other, f"run again it ends at {end}; {again}"
    whole(case, place, end)


def whole(case: Case, place: Path, refs: dict[str, str]) -> None:
    """Everything that the refs lead to is there, byte for byte; one that the scene broke is as it was, or better."""
    broken = problems_of(case, case.scene.home, case.refs[0])
    problems = problems_of(case, place, refs)
    wrong = {ref: problem for ref, problem in problems.items() if ref not in broken or refs != case.refs[0]}
    assert not wrong, wrong


def problems_of(case: Case, place: Path, refs: dict[str, str]) -> dict[str, str]:
    """What is wrong with the content of each ref."""
    return {ref: problem for ref, link in refs.items() if (problem := problem_of(case, place / REPO, ref, link)) is not None}


def problem_of(case: Case, repo: Path, ref: str, link: str) -> str | None:
    stands = repo / ref.partition("/")[0] / link.rpartition("/")[2]
    if not stands.is_symlink():
        return f"{stands.name} is gone"
    pending = ["".join(os.readlink(stands).split("/")[-2:])]
    seen = set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        data = repo / "objects" / current[:2] / current[2:]
        if not data.exists():
            return f"object {current[:12]} is gone"
        if data.read_bytes() != case.good[current]:
            return f"object {current[:12]} has other bytes"
        if case.good[current].startswith(b"SplitStream"):
            stream = parse_stream(case.good[current], len(current) // 2)
            pending += [*stream.objects, *stream.named.values()]
    return None


class Instant(NamedTuple):
    """After how many steps the power goes, and :meth:`Recording.state` ``how``; None is by chance."""

    until: int
    how: str | None = None


def worst_of(case: Case) -> list[Instant]:
    """Right after each sync of a directory, and after each command, with nothing on disk but what was synced.

    Whatever is synced too early or not at all is lost in one of these.
    """
    syncs = [
        number + 1 for number, step in enumerate(case.recording.steps) if isinstance(step, Sync) and step.folder is not None
    ]
    return [Instant(until, "least") for until in (*syncs, *(end for end in case.ends if end >= 0))]


def instants(case: Case, count: int, chance: random.Random) -> list[Instant]:
    """Instants of a run: the worst, right after a command had returned, soon after a ref had changed, or any."""
    last = len(case.recording.steps)
    ends = [end for end in case.ends if end >= 0]
    changes = [
        number
        for number, step in enumerate(case.recording.steps)
        if isinstance(step, Names)
        and any(path.startswith((f"{REPO}/streams/refs/", f"{REPO}/images/refs/")) for path in step.values)
    ]
    soon = [min(last, number + more) for number in changes for more in (1, 2, 3, 5)]
    worst = worst_of(case)
    chosen = worst if len(worst) <= count // 2 else chance.sample(worst, count // 2)
    any_of = [ends, soon or ends, range(1, last + 1)]
    return [*chosen, *(Instant(chance.choice(chance.choice(any_of))) for _ in range(count - len(chosen)))]


def run_case(case: Case, each: int | None, place: Path, cfsctl: Cfsctl) -> tuple[int, list[str]]:
    """Look at so many different states; their number, and a line for each that is wrong.

    ``each``: None for the worst states alone.
    """
    done, wrong = 0, []
    chance = random.Random(f"{SEED} {case.scene.name}")
    seen = set()
    for until, how in worst_of(case) if each is None else instants(case, each, chance):
        state = case.recording.state(until, chance, how)
        key = hash((until in case.ends, frozenset(state.names.items()), frozenset(state.contents.items())))
        if key in seen:
            continue
        seen.add(key)
        build(case.recording, state, copy_scene(case.scene, place))
        done += 1
        try:
            judge(case, until, place, cfsctl)
        except AssertionError as error:
            wrong.append(f"{case.scene.name}: after step {until} of {len(case.recording.steps)}: {error}")
    return done, wrong


# -- the tests ---------------------------------------------------------------------------------------------------------


def check(
    what: str,
    scenes: Sequence[Scene],
    cases_of: Callable[[Scene, Path], list[Case]],
    wanted: int,
    home: Path,
    cfsctl: Cfsctl,
    tell: Callable[[str], None],
) -> None:
    def run_scene(scene: Scene, place: Path) -> tuple[int, int, list[str]]:
        done, wrong = 0, []
        cases = cases_of(scene, place)
        for case in cases:
            some, lines = run_case(case, max(4, wanted // len(scenes) // len(cases)), place / "cut", cfsctl)
            done += some
            wrong += lines
        return len(cases), done, wrong

    longest = sorted(scenes, key=lambda scene: len(scene.operations), reverse=True)
    runs, done, wrong = zip(*in_workers(longest, run_scene, home, WORKERS), strict=True)

    tell(f"{what}: {sum(done)} states of {sum(runs)} runs; CFS_TAGS_SEED={SEED}")
    assert sum(done) > wanted // 3
    lines = [line for some in wrong for line in some]
    assert not lines, f"{len(lines)} of {sum(done)} states are wrong; CFS_TAGS_SEED={SEED}\n" + "\n".join(lines[:20])


def test_a_command_that_returned_survives_a_power_cut_with_its_content(
    strace: str, scenes: list[Scene], home: Path, cfsctl: Cfsctl, tell: Callable[[str], None]
) -> None:
    def cases_of(scene: Scene, place: Path) -> list[Case]:
        case = recorded(strace, scene, place)
        assert case is not None
        return [case]

    chosen = [scene for scene in scenes if not scene.name.startswith("export")]
    check("one command", chosen, cases_of, WANTED, home, cfsctl, tell)


def test_a_command_that_returned_after_a_killed_one_survives_a_power_cut_with_its_content(
    strace: str, scenes: list[Scene], home: Path, cfsctl: Cfsctl, tell: Callable[[str], None]
) -> None:
    """The second try finds what the first has made and not synced, says ``unchanged``, and is durable all the same."""
    chosen = [scene for scene in scenes if scene.name in KILLED_AND_RUN_AGAIN]
    cases_of = partial(killed_before_a_sync, strace)
    check("killed, and run again", chosen, cases_of, WANTED // 2, home, cfsctl, tell)


@contextmanager
def content_is_synced_last() -> Iterator[None]:
    sync, later = fsops.sync_filesystem, list[int]()
    with patch.object(fsops, "sync_filesystem", lambda fd: later.append(os.dup(fd))):
        yield
    for fd in later:
        sync(fd)


@pytest.mark.parametrize("name", ["import", "import an index"])
def test_a_program_that_syncs_names_before_content_does_not_pass(
    name: str, strace: str, scenes: list[Scene], home: Path, cfsctl: Cfsctl
) -> None:
    scene = next(scene for scene in scenes if scene.name == name)
    case = recorded(strace, scene, home, content_is_synced_last())
    assert case is not None

    _, wrong = run_case(case, None, home / "cut", cfsctl)

    assert any("object" in line for line in wrong), wrong


def test_a_program_that_does_not_sync_its_refs_does_not_pass(
    strace: str, scenes: list[Scene], home: Path, cfsctl: Cfsctl
) -> None:
    scene = next(scene for scene in scenes if scene.name == "create")
    case = recorded(strace, scene, home, patch.object(fsops, "sync", lambda *words: None))
    assert case is not None

    _, wrong = run_case(case, None, home / "cut", cfsctl)

    assert wrong
