"""Directories in memory: the tests are about what happens at the same time, not about disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import stock


@pytest.fixture
def ram() -> Iterator[Path]:
    """A directory in memory, the test's own."""
    with stock.in_memory() as home:
        yield home
