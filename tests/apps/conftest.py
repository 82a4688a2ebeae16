"""The program on a repository, for commands about images."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from cfs_tags.cli.main import main


class Run(Protocol):
    def __call__(self, *words: str, status: int = 0) -> str:
        """Call the program on the repository; its exit status must be that."""


@pytest.fixture
def run(repo: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["--repo", str(repo), *words]) == status, capsys.readouterr()
        return capsys.readouterr().out

    return call
