"""Files of cfs-tag's own that are not whole, or not its own: no command ends with an internal error, and no ref is lost.

All files that a life of commands leaves in ``cfs-tags/`` are damaged, one after the other, and so are boot entries, origins
and records of the host.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.test_fuzz import FORM, SEED, damaged
from support import stock
from support.everywhere import REPO, Said, Scene, copy_scene, run_words
from support.interrupt import Watch, watched_operations
from support.trees import unpack

ROOT = Path(__file__).parent.parent.parent
EACH = {"short": 3, "ci": 25, "long": 400}[FORM]
WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
BOOTED = json.loads((ROOT / "examples/host.json").read_text())["booted"]
PLACES = ("--run", "host/run", "--booted", BOOTED, "--esp", "none")
ON_REPO = (
    ("fsck", "--json"),
    ("log", "--json"),
    ("trash", "--json"),
    ("list", "--all", "--json"),
    ("create", "t/probe", WEB, "--force"),
    ("fsck", "--repair"),
)
ON_HOST = (("deployments", "--json"), ("migrate", "--undo", "--dry-run"), ("retire", "--dry-run"), ("gc", "--dry-run"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A host on which much was done, and one change was cut off in its midst."""
    with stock.in_memory() as home:
        base = home / "base"
        (base / "host").mkdir(parents=True)
        unpack(ROOT / "examples/host.tar.gz", base / "host")
        (base / REPO / "streams/refs/oci/dangling").symlink_to("../../oci-manifest-sha256:" + "0" * 64)
        for words in (
            ("--repo", REPO, "create", "t/one", WEB, "--reason", "first"),
            ("--repo", REPO, "create", "t/one", DB, "--force"),
            ("--repo", REPO, "delete", "t/one", "--keep-for", "7d"),
            ("--repo", REPO, "create", "t/two", WEB),
            ("--repo", REPO, "create", "t/three", WEB),
            ("--repo", REPO, "fsck", "--repair"),
            ("--sysroot", "host", "migrate", *PLACES, "--write-origin"),
            ("--sysroot", "host", "retire", *PLACES),
        ):
            assert run_words(base, words).status == 0, words

        def cut(number: int, name: str) -> Watch | None:
            return Watch(lambda: os._exit(9), after=True) if name == "rename" else None

        cut_off = run_words(base, ("--repo", REPO, "delete", "t/two", "t/three"), around=watched_operations(cut))
        assert cut_off.status == 9
        yield Scene("lived", base, ())


def files(scene: Scene) -> list[str]:
    state = [path for path in (scene.home / REPO / "cfs-tags").rglob("*") if path.is_file() and not path.is_symlink()]
    host = scene.home / "host"
    around = [*host.glob("state/deploy/*/*.*"), *host.glob("boot/loader/*/*.conf"), host / "run/composefs/staged-deployment"]
    return sorted(path.relative_to(scene.home).as_posix() for path in (*state, *around))


def commands() -> Iterator[tuple[str, ...]]:
    yield from (("--repo", REPO, *words) for words in ON_REPO)
    yield from (("--sysroot", "host", words[0], *PLACES, *words[1:]) for words in ON_HOST)


def test_a_life_leaves_files_of_every_kind(lived: Scene) -> None:
    kinds = {Path(name).parent.name for name in files(lived)}

    assert {"journal", "reflog", "quarantine", "cfs-tags"} <= kinds


def test_damaged_files_are_set_aside_and_stop_no_command(lived: Scene, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    names = files(lived)
    wrong = []
    with stock.in_memory() as home:
        for name in names:
            data = (lived.home / name).read_bytes()
            for number, bad in enumerate(damaged([data], EACH, chance)):
                place = copy_scene(lived, home / "attempt")
                (place / name).write_bytes(bad)
                problem = judge(lived, place, within_state="/cfs-tags/" in name)
                if problem is not None:
                    kept = tmp_path / f"{name.replace('/', '-')}-{number}"
                    kept.write_bytes(bad)
                    wrong.append(f"{name}, as in {kept}: {problem}")
    assert not wrong, f"{len(wrong)} went wrong; CFS_TAGS_SEED={SEED}\n" + "\n".join(wrong[:10])


def judge(scene: Scene, place: Path, *, within_state: bool) -> str | None:
    before = stock.refs(scene.home / REPO)
    said: list[tuple[tuple[str, ...], Said]] = []
    for words in commands():
        answer = run_words(place, words)
        said.append((words, answer))
        if "Traceback" in answer.err or "internal" in answer.err or answer.status not in (0, 2, 3, 4, 6):
            return f"{' '.join(words)} ends so: {answer}"
        if within_state and "create" in words and answer.status != 0:
            return f"it stops a writer: {answer}"
    after = stock.refs(place / REPO)
    cut_off = ("t%2Ftwo", "t%2Fthree", "t%2Fprobe", "dangling")
    lost = {ref: link for ref, link in before.items() if after.get(ref) != link and not ref.endswith(cut_off)}
    return f"refs are lost: {lost}" if lost else None
