"""Every command that changes something, killed at every operation, refused every operation once, and every look at the disk.

``CFS_TAGS_PROOF=ci`` runs at least 2,000 kills and 2,000 errors, ``CFS_TAGS_PROOF=long`` all there are, else a few hundred;
the seed of the sample is printed, and ``CFS_TAGS_SEED`` repeats it.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from cfs_tags.repo import fsops
from support.everywhere import Attempt, Fault, Scene, attempts_of, run_all, run_attempt
from support.peers import Cfsctl

FORM = os.environ.get("CFS_TAGS_PROOF", "short")
WANTED = {
    "killed": {"short": 150, "ci": 2_200, "long": 1_000_000},
    "refused an operation": {"short": 110, "ci": 1_200, "long": 1_000_000},
    "refused a look": {"short": 110, "ci": 1_000, "long": 1_000_000},
}
SEED = int(os.environ.get("CFS_TAGS_SEED") or random.SystemRandom().randrange(1_000_000))
WORKERS = min(os.cpu_count() or 1, 8 if FORM == "long" else 2)
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EINTR)

COMMANDS = {
    *("create", "delete", "rename", "update", "restore", "trash", "migrate", "retire", "bind", "good-boot"),
    *("gc", "fsck", "import", "export", "policy", "maintain", "pin", "unpin", "revive"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WANTED)
def test_a_command_that_is(what: str, scenes: list[Scene], home: Path, cfsctl: Cfsctl, tell: Callable[[str], None]) -> None:
    every = dict(zip(WANTED, attempts_of(scenes, ERRORS), strict=True))[what]
    chosen = sample(every, WANTED[what][FORM])

    done, wrong = run_all(scenes, chosen, home, cfsctl, WORKERS)

    tell(f"{what}: {done} of {len(every)} places; CFS_TAGS_SEED={SEED}")
    assert done > 0.9 * len(chosen), "most places were not reached"
    assert not wrong, f"{len(wrong)} of {done} went wrong; CFS_TAGS_SEED={SEED}\n" + "\n".join(wrong[:20])


def sample(every: Sequence[Attempt], wanted: int) -> list[Attempt]:
    return list(every) if len(every) <= wanted else random.Random(SEED).sample(every, wanted)


def test_every_command_that_changes_something_has_a_scene(scenes: list[Scene]) -> None:
    commands = {next(word for word in scene.words if word in COMMANDS) for scene in scenes}

    assert commands == COMMANDS


def at(scene: Scene, operation: str, which: int = 0) -> int:
    """The number of an operation of that name."""
    return [number for number, name in enumerate(scene.operations) if name == operation][which]


@pytest.mark.parametrize("name", ["restore an entry", "restore the value before"])
def test_a_restore_that_was_killed_and_is_run_again_restores_the_same_value(
    name: str, scenes: list[Scene], home: Path, cfsctl: Cfsctl
) -> None:
    scene = next(scene for scene in scenes if scene.name == name)
    run_attempt(scene, Fault("after", at(scene, "exchange")), home / "known", cfsctl)


@pytest.mark.parametrize(
    ("name", "operation", "which"),
    [
        ("import", "make_link", -1),
        ("retire adopts", "replace_file", -1),
        ("collect leases and trash", "append", 0),
        ("collect leases and trash", "append", -1),
    ],
)
def test_a_command_that_runs_out_of_space_reports_the_state_that_it_left(
    name: str, operation: str, which: int, scenes: list[Scene], home: Path, cfsctl: Cfsctl
) -> None:
    scene = next(scene for scene in scenes if scene.name == name)
    run_attempt(scene, Fault("error", at(scene, operation, which), errno.ENOSPC), home / "known", cfsctl)


def test_an_export_that_was_killed_and_is_run_again_leaves_a_whole_layout(
    scenes: list[Scene], home: Path, cfsctl: Cfsctl
) -> None:
    """No file of the layout is written in its place, where a kill would leave a part of it."""
    scene = next(scene for scene in scenes if scene.name == "export")
    assert not {"create_file", "append", "rewrite_file"} & set(scene.operations)
    for number in range(at(scene, "replace_file"), len(scene.operations)):
        run_attempt(scene, Fault("after", number), home / "known", cfsctl)


def kills_of(scene: Scene) -> list[Attempt]:
    return [Attempt(0, Fault(kind, number)) for number in range(len(scene.operations)) for kind in ("before", "after")]


def test_a_program_that_writes_nothing_into_its_journal_does_not_pass(
    scenes: list[Scene], home: Path, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = next(scene for scene in scenes if scene.name == "move")
    create = fsops.create_file

    def forgets(dir_fd: int, path: str, data: bytes, *args: object, **keywords: object) -> None:
        create(dir_fd, path, b"" if "journal" in path else data, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(fsops, "create_file", forgets)

    _, wrong = run_all([scene], kills_of(scene), home, cfsctl, 1, enough=1)

    assert any("the log says" in line for line in wrong), wrong


def test_a_collection_that_takes_content_before_its_name_does_not_pass(
    scenes: list[Scene], home: Path, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = next(scene for scene in scenes if scene.name == "collect what was retired")
    remove = fsops.remove

    def takes(dir_fd: int, path: str) -> None:
        if os.path.dirname(path) == "streams":
            fsops.remove(dir_fd, os.path.normpath(os.path.join("streams", os.readlink(path, dir_fd=dir_fd))))
        with suppress(FileNotFoundError):
            remove(dir_fd, path)

    monkeypatch.setattr(fsops, "remove", takes)

    _, wrong = run_all([scene], kills_of(scene), home, cfsctl, 1, enough=1)

    assert any("fsck finds" in line or "run again" in line for line in wrong), wrong
