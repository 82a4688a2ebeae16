"""Every example in the documentation is tried, and prints what the page says.

``CFS_TAGS_UPDATE_DOCS=1 pytest tests/docs/test_pages.py`` writes the output into the pages anew: read the difference, and
commit it with the change.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.livehost import Step, Typed, run_on_host
from support.pages import Block, Page, fits, stable

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_site" not in path.parts)]
UPDATE = "CFS_TAGS_UPDATE_DOCS"
LANGUAGES = {"", "console", "json", "python", "text", "toml", "ini", "dockerfile", "nginx", "sh", "{toctree}"}
"""Kinds of blocks: ``console`` and ``python`` are run, ``json`` and ``toml`` are parsed; ``dockerfile``, ``ini``, ``nginx``
and ``sh`` are files."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def archive_of(host: str) -> Path:
    return ROOT / "examples/host.tar.gz" if host == "example" else ROOT / f"tests/data/hosts/{host}.tar.gz"


WITH_COMMANDS = [path for path in PAGES if Page(path).tried("console")]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_print_what_it_says(path: Path, tmp_path: Path) -> None:
    page = Page(path)
    archive = archive_of(page.host)
    booted = json.loads(archive.with_name(archive.name.replace(".tar.gz", ".json")).read_text())["booted"]
    blocks = page.tried("console")

    typed = iter(run_on_host(archive, booted, [step for block in blocks for step in block.steps()], tmp_path))
    said = [outputs(block, typed) for block in blocks]

    now = page.written_anew(said)
    if os.environ.get(UPDATE) == "1":
        path.write_text(now)
        return
    shown = name_of(path)
    difference = "\n".join(difflib.unified_diff(page.text.splitlines(), now.splitlines(), shown, "now", n=4, lineterm=""))
    assert page.text == now, f"{difference}\n\nIf this is meant: {UPDATE}=1 pytest tests/docs/test_pages.py"


def outputs(block: Block, typed: Iterator[Typed]) -> list[Typed]:
    """What the commands of a block came to; asserts their exit statuses."""
    for command in block.before:
        done = next(typed)
        assert done.status == 0, f"{command}: {done.text}"
    said = [next(typed) for _ in block.commands]
    statuses = [one.status for one in said]
    wanted = [0] * (len(said) - 1) + [int(block.word("status", "0"))]
    assert statuses == wanted, "\n".join(
        f"$ {command}\n{one.text}" for (command, _), one in zip(block.commands, said, strict=True)
    )
    return said


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_is_of_a_known_kind_and_none_hides_a_command(path: Path) -> None:
    for block in Page(path).blocks:
        assert block.language in LANGUAGES, block
        if block.language in ("", "text"):
            hidden = [line for line in block.lines if line.startswith("$ ")]
            assert not hidden, f"line {block.first}: a command in a block that is not run: {hidden}"
        if block.language == "json":
            json.loads("\n".join(block.lines))
        if block.language == "toml":
            tomllib.loads("\n".join(block.lines))


def test_an_ellipsis_stands_for_any_lines_and_a_time_for_any_time() -> None:
    assert fits(["a", "…", "d"], ["a", "b", "c", "d"])
    assert fits(["a", "…"], ["a"])
    assert not fits(["a", "…", "d"], ["a", "b"])
    assert not fits(["a"], ["a", "b"])
    assert stable("at 2026-07-01T12:00:03.123456Z") == "at 2026-07-01T12:00:00Z"
    assert stable("made 2026-01-01T00:00:00Z") == "made 2026-01-01T00:00:00Z"


def test_a_page_that_says_something_else_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# A page\n\n```console\n$ echo one\n> echo two\ntwo\n```\n")
    page = Page(path)

    now = page.written_anew([[Typed("one\ntwo", 0)]])

    assert now == "# A page\n\n```console\n$ echo one\n> echo two\none\ntwo\n```\n"


def test_a_host_that_runs_is_the_recorded_one(tmp_path: Path) -> None:
    booted = json.loads((ROOT / "examples/host.json").read_text())["booted"]
    steps = [
        Step("cat /proc/cmdline"),
        Step("touch /sysroot/x"),
        Step("touch /sysroot/x && rm /sysroot/x", writable=True),
        Step('cfs-tag lookup booted --json | grep -o \'"state":"[a-z]*"\''),
        Step("read -r -p 'Which? ' word; echo $word", typed="one\n"),
    ]

    said = run_on_host(ROOT / "examples/host.tar.gz", booted, steps, tmp_path, columns=300)

    assert booted in said[0].text
    assert [one.status for one in said] == [0, 1, 0, 0, 0]
    assert said[3].text == '"state":"booted"'
    assert said[4].text == "Which? one\none"
    assert not (ROOT / "sysroot").exists()


@pytest.mark.parametrize("path", [path for path in PAGES if Page(path).tried("python")], ids=name_of)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path) -> None:
    page = Page(path)
    archive = archive_of(page.host)
    booted = json.loads(archive.with_name(archive.name.replace(".tar.gz", ".json")).read_text())["booted"]
    files = []
    for number, block in enumerate(page.tried("python")):
        files.append(tmp_path / f"example{number}.py")
        files[-1].write_text("\n".join(block.lines) + "\n")
    work = tmp_path / "work"
    work.mkdir()
    steps = [Step(command, writable=True) for block in page.tried("python") for command in block.before]
    steps += [Step(f"python3 {file}", writable=True) for file in files]
    for one in run_on_host(archive, booted, steps, work):
        assert one.status == 0, one.text


def test_no_page_has_the_program_fetched_from_an_index_where_it_is_not_or_is_somebody_elses() -> None:
    assert [name_of(path) for path in PAGES if "pip install 'cfs-tags" in path.read_text()] == []
