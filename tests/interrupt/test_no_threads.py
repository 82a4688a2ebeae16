"""A machine that gives the program no thread and no process: strace refuses it every one, as a full cgroup does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import stock
from support.everywhere import REPO, Scene, contents, copy_scene
from support.peers import Cfsctl, clean_environment
from support.scenes import build_scenes

SCENES = ("collect what was retired", "migrate", "import", "import an index", "export", "export to an archive")
LOOKS = (
    ("fsck",),
    ("df",),
    ("gc", "--dry-run"),
    ("export", "quay.io/apps/web:1", "oci:gzip:web", "--compress", "gzip"),
)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with stock.in_memory() as place:
        yield place


@pytest.fixture(scope="module")
def scenes(home: Path, cfsctl: Cfsctl) -> dict[str, Scene]:
    return {scene.name: scene for scene in build_scenes(home / "scenes", cfsctl, SCENES)}


def alone(words: tuple[str, ...], place: Path) -> subprocess.CompletedProcess[str]:
    """Run the program, and refuse it threads and processes."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not here")
    program = Path(sys.executable).with_name("cfs-tag")
    refuse = ("-e", "trace=clone,clone3,fork", "-e", "inject=clone,clone3,fork:error=EAGAIN")
    return subprocess.run(
        [strace, "-f", "-qq", "-o", place.parent / "trace", *refuse, program, *words],
        capture_output=True, text=True, cwd=place, env=clean_environment(place), timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_a_command_does_its_work_alone(name: str, scenes: dict[str, Scene], home: Path) -> None:
    scene = scenes[name]
    place = copy_scene(scene, home / "work")

    done = alone(scene.words, place)

    assert done.returncode == 0, done.stderr
    assert contents(place) == scene.end


@pytest.mark.parametrize("words", LOOKS, ids=lambda words: "-".join(words[:2] + words[3:]).replace("/", "_"))
def test_a_look_is_taken_alone(words: tuple[str, ...], scenes: dict[str, Scene], home: Path) -> None:
    place = copy_scene(scenes["export"], home / "work")

    done = alone((*words, "--repo", REPO), place)

    assert done.returncode == 0, done.stderr


def test_zstd_without_threads_is_an_error_that_says_so(scenes: dict[str, Scene], home: Path) -> None:
    """Without a thread its bytes would be others, so the layer's digest, too."""
    place = copy_scene(scenes["export"], home / "work")

    done = alone(("export", "quay.io/apps/web:1", "oci:out:web", "--compress", "zstd", "--json", "--repo", REPO), place)

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "system-failure", done.stderr
