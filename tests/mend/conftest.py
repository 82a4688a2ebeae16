"""Repositories to lose things from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.cli.main import main
from support.mending import build, fill


class Repair:
    """``fsck --repair`` as the command line does it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, repo: Path, *words: str, status: int = 0) -> dict[str, Any]:
        self._capsys.readouterr()
        found = main(["--repo", str(repo), "fsck", "--repair", "--json", *words])
        said = self._capsys.readouterr()
        assert found == status, (found, said.out, said.err)
        result: dict[str, Any] = json.loads(said.out)["result"]
        return result


@pytest.fixture
def repair(capsys: pytest.CaptureFixture[str]) -> Repair:
    return Repair(capsys)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """The layout of everything in ``repo``."""
    build(tmp_path / "layout")
    return tmp_path / "layout"


@pytest.fixture
def repo(filled_repo: Callable[..., Path]) -> Path:
    """See :func:`support.mending.fill`."""
    return filled_repo("mend", fill)
