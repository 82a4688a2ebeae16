"""The stock and the scenes in memory, because these tests copy them hundreds of times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.everywhere import Scene
from support.peers import Cfsctl
from support.scenes import build_scenes
from support.stock import fill, in_memory


@pytest.fixture
def stocked(filled_repo, ram: Path) -> Path:  # type: ignore[no-untyped-def]
    """Once for each module; only ever copied."""
    path = ram / "stock"
    return path if path.exists() else filled_repo("stock", fill, path)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """Where the scenes are, and their copies."""
    with in_memory() as place:
        yield place


@pytest.fixture(scope="session")
def scenes(home: Path, cfsctl: Cfsctl) -> list[Scene]:
    """One for each command that changes something; only ever copied."""
    return build_scenes(home / "scenes", cfsctl)
