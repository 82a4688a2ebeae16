"""Fixtures for the command line: a recorded host to work on, and ``run``, which calls the program in this process."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from cfs_tags.cli.main import main
from support.trees import copy_tree

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


class Said(NamedTuple):
    """What a call came to: exit status, standard output as bytes, standard error."""

    status: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return os.fsdecode(self.raw)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        """The one document that is all of standard output."""
        return json.loads(self.raw)

    @property
    def result(self) -> Any:
        assert self.status == 0, self
        return self.json["result"]


class Run(Protocol):
    def __call__(self, *words: str | Path, input: bytes = b"", ok: bool = False) -> Said:
        """Call ``cfs-tag`` with these words; with ``ok`` its exit status must be 0."""


def _written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    written = stream.buffer
    assert isinstance(written, io.BytesIO)
    return written.getvalue()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the program without naming a repository."""

    def run(*words: str | Path, input: bytes = b"", ok: bool = False) -> Said:
        stdin, stdout, stderr = (
            io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="\n") for data in (input, b"", b"")
        )
        with monkeypatch.context() as streams:
            streams.setattr(sys, "stdin", stdin)
            streams.setattr(sys, "stdout", stdout)
            streams.setattr(sys, "stderr", stderr)
            status = main([str(word) for word in words])
        said = Said(status, _written(stdout), _written(stderr).decode())
        assert not ok or status == 0, said
        return said

    return run


@pytest.fixture
def sysroot(_example: Path, tmp_path: Path) -> Path:
    """A copy of the example host, the test's own."""
    return copy_tree(_example, tmp_path / "host")


@pytest.fixture
def repo(sysroot: Path) -> Path:
    """Its repository: three tags of bootc's, quay.io/apps/web:1 and quay.io/apps/db:2."""
    return sysroot / "composefs"


@pytest.fixture
def run(call: Run, repo: Path) -> Run:
    """Calls the program on that repository."""

    def on_repo(*words: str | Path, input: bytes = b"", ok: bool = False) -> Said:
        return call("--repo", repo, *words, input=input, ok=ok)

    return on_repo


@pytest.fixture
def facts() -> Any:
    """What ``examples/host.json`` says of the host."""
    return json.loads((EXAMPLES / "host.json").read_text())


@pytest.fixture
def web(facts: Any) -> str:
    """Manifest digest of quay.io/apps/web:1."""
    return str(facts["apps"]["quay.io/apps/web:1"]["manifest"])


@pytest.fixture
def db(facts: Any) -> str:
    """Manifest digest of quay.io/apps/db:2."""
    return str(facts["apps"]["quay.io/apps/db:2"]["manifest"])
