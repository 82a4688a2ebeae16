"""The stock in memory, because these tests copy it hundreds of times."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.stock import fill


@pytest.fixture
def stocked(filled_repo, ram: Path) -> Path:  # type: ignore[no-untyped-def]
    """Once for each module; only ever copied."""
    path = ram / "stock"
    return path if path.exists() else filled_repo("stock", fill, path)  # type: ignore[no-any-return]
