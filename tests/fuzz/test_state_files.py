"""Files of cfs-tag's own that are not whole, or not its own: no command ends with an internal error, and no ref is lost.

All files that a life of commands leaves in ``cfs-tags/`` are damaged, one after the other, and so are boot entries, origins
and records of the host.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fuzz.test_fuzz import FORM, SEED, damaged
from support import stock
from support.everywhere import REPO, Scene, fresh_processes, run_words
from support.interrupt import Watch, watched_operations
from support.lived import DB, PLACES, WEB, wrong_of
from support.trees import unpack

ROOT = Path(__file__).parent.parent.parent
EACH = {"short": 3, "ci": 25, "long": 400}[FORM]
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


def test_a_life_leaves_files_of_every_kind(lived: Scene) -> None:
    kinds = {Path(name).parent.name for name in files(lived)}

    assert {"journal", "reflog", "quarantine", "cfs-tags"} <= kinds


def test_damaged_files_are_set_aside_and_stop_no_command(lived: Scene, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    names = files(lived)
    contents = [[*damaged([(lived.home / name).read_bytes()], EACH, chance)] for name in names]

    # fresh processes: a command that is forked from a small one takes half as long
    with fresh_processes(2) as pool:
        wrong = [one for some in pool.map(partial(wrong_of, lived), names, contents) for one in some]

    for number, one in enumerate(wrong):
        (tmp_path / f"{number}").write_bytes(one.data)
    lines = [f"{one.name}, as in {tmp_path / str(number)}: {one.problem}" for number, one in enumerate(wrong)]
    assert not wrong, f"{len(wrong)} went wrong; CFS_TAGS_SEED={SEED}\n" + "\n".join(lines[:10])
