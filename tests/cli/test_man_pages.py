"""Man pages are made from the help, and are sound."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from cfs_tags.cli.main import COMMANDS, app

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, ROOT / "scripts/man_pages.py", target], check=True)
    return target


def plain(path: Path) -> str:
    return path.read_text().replace("\\-", "-")


def test_every_command_has_a_page_with_its_options_and_examples(pages: Path) -> None:
    assert {path.name for path in pages.iterdir()} == {"cfs-tag.1", *(f"cfs-tag-{name}.1" for name in COMMANDS)}
    group: Any = typer.main.get_command(app)
    for name, line in COMMANDS.items():
        text = plain(pages / f"cfs-tag-{name}.1")
        assert line.help.split()[0] in text
        assert f"cfs-tag {name}" in text.partition(".SH EXAMPLES")[2]
        assert ".SH EXIT STATUS" in text
        for param in group.get_command(None, name).params:
            if param.param_type_name == "option" and not param.hidden:
                assert re.search(rf"^\.B .*{param.opts[0]}\b", text, re.MULTILINE), (name, param.opts)


@pytest.mark.parametrize(
    "words", [("mandoc", "-T", "lint", "-W", "style"), ("groff", "-man", "-ww", "-z", "-Tutf8")], ids=lambda words: words[0]
)
def test_readers_of_man_pages_have_nothing_to_say(pages: Path, words: tuple[str, ...]) -> None:
    if shutil.which(words[0]) is None:
        if os.environ.get("CFS_TAGS_REQUIRE_PEERS") == "1":
            pytest.fail(f"missing peer: {words[0]}")
        pytest.skip(f"missing peer: {words[0]}")

    done = subprocess.run([*words, *sorted(pages.iterdir())], capture_output=True, text=True, check=False)

    assert done.stdout + done.stderr == ""
