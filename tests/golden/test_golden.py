"""Every command over every recorded host says and does what it did: see README.md."""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from golden.recorder import Recorder
from golden.stories import ONLY, STORIES, Facts
from support.trees import unpack

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RECORDED = {path.name.removesuffix(".tar.gz"): path for path in sorted((HERE.parent / "data/hosts").glob("*.tar.gz"))}
HOSTS = {"example": ROOT / "examples/host.tar.gz", **RECORDED}
UPDATE = "CFS_TAGS_UPDATE_GOLDEN"
CASES = [(name, story) for name in HOSTS for story in STORIES if name in ONLY.get(story, HOSTS)]
MONTH = 30 * 24 * 3600


@pytest.fixture(scope="module")
def host(ram: Path) -> Callable[[str], Path]:
    """The unpacked host of that name, in memory: there every file takes whole pages of 4 KiB, on every machine."""

    def get(name: str) -> Path:
        target = ram / "hosts" / name
        if not target.exists():
            unpack(HOSTS[name], target)
            a_month_ago = time.time() - MONTH
            for directory, folders, files in os.walk(target):
                for each in (*folders, *files):
                    os.utime(os.path.join(directory, each), (a_month_ago, a_month_ago), follow_symlinks=False)
        return target

    return get


def booted(name: str) -> str:
    facts = HOSTS[name].with_name(HOSTS[name].name.replace(".tar.gz", ".json"))
    return str(json.loads(facts.read_text())["booted"])


@pytest.mark.parametrize(("name", "story"), CASES)
def test_commands_say_and_do_what_they_did(name: str, story: str, host: Callable[[str], Path], ram: Path) -> None:
    facts = Facts.of(host(name), booted(name), full=name == "example")
    places = ("--run", "host/run", "--booted", facts.booted, "--esp", "none")
    recorder = Recorder(host(name), ram / f"{name}-{story}", places)

    STORIES[story](recorder, facts)

    compare(HERE / "recorded" / name / f"{story}.txt", recorder.text())


def compare(path: Path, now: str) -> None:
    """Compare with the golden file; with ``CFS_TAGS_UPDATE_GOLDEN=1`` write it instead."""
    if os.environ.get(UPDATE) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(now)
        return
    before = path.read_text() if path.exists() else ""
    shown = path.relative_to(ROOT).as_posix()
    difference = "\n".join(difflib.unified_diff(before.splitlines(), now.splitlines(), shown, "now", n=6, lineterm=""))
    assert before == now, f"{difference}\n\nIf this is meant: {UPDATE}=1 pytest tests/golden, and commit {shown}"


def test_every_golden_file_is_used() -> None:
    found = {path.relative_to(HERE / "recorded").as_posix() for path in (HERE / "recorded").rglob("*.txt")}

    assert found == {f"{name}/{story}.txt" for name, story in CASES}
