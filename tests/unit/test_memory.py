"""Files in which this machine remembers: what is lost, and what is only not given."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.errors import SystemFailure
from cfs_tags.fleet.memory import Memory


def test_what_is_not_given_is_not_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host booted, and its tags in the registry, would be written over with nothing."""
    memory = Memory(str(tmp_path), "a host", 1000)
    assert memory.load() == {}
    memory.save({"tags": [1]})

    def refused(*args: Any, **named: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refused)
        with pytest.raises(SystemFailure):
            memory.load()
    assert memory.load()["tags"] == [1]


def test_a_pipe_in_its_place_holds_nobody_up(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path), "a host", 1000)
    memory.save({})
    (path,) = tmp_path.glob("*.json")
    path.unlink()
    os.mkfifo(path)

    assert memory.load() == {}
    assert list(memory.load_each()) == []
