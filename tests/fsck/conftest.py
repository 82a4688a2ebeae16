"""Repositories to damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fsck.damage import fill
from support.stock import hard_copy


@pytest.fixture(params=["sha512"])
def algorithm(request: pytest.FixtureRequest) -> str:
    """Of the repositories; a test that asks for others is parametrized with this name."""
    return str(request.param)


@pytest.fixture
def pristine(filled_repo: Callable[..., Path], tmp_path: Path, algorithm: str) -> Path:
    """The repository of ``damage.fill``, to be copied, never changed."""
    return filled_repo("fsck", fill, path=tmp_path / "pristine", algorithm=algorithm)


@pytest.fixture
def repo(pristine: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return hard_copy(pristine, tmp_path / "composefs")
