"""Every kind of change to tags, each with what it starts from: what the tests of interruptions run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cfs_tags import Repository
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction.run import transact
from cfs_tags.tags import edit
from cfs_tags.tags.instructions import Instruction, parse_instructions
from support import tagging
from support.stock import digest_of, hard_copy, reset, tags

__all__ = ["KINDS", "Kind", "Subject", "run", "write_next"]

Digests = dict[str, str]
EXPIRES = "20990101T000000Z"


class Kind(NamedTuple):
    """``before`` makes what ``act`` changes; both are given the repository and digests by name."""

    before: Callable[[WriteRepo, Digests], object]
    act: Callable[[WriteRepo, Digests], object]
    makes_one: bool = False
    """Whether it makes one ref and no more: then no journal is written, and the log may lack the entry after a crash."""


def _make(*names: str, home: str = "shared", to: str = "one") -> Callable[[WriteRepo, Digests], object]:
    def make(repo: WriteRepo, digest: Digests) -> None:
        for name in names:
            tagging.create(repo, name, f"@{digest[to]}", home=home)

    return make


def _trashed(repo: WriteRepo, digest: Digests) -> None:
    tagging.create(repo, "app", f"@{digest['one']}")
    tagging.delete(repo, ["app"], expires=EXPIRES)


def _moved(repo: WriteRepo, digest: Digests) -> None:
    tagging.create(repo, "app", f"@{digest['two']}")
    tagging.create(repo, "app", f"@{digest['one']}", force=True)
    tagging.create(repo, "keeps", f"@{digest['two']}")


def _batch(repo: WriteRepo, digest: Digests) -> None:
    lines = [
        f"create made @{digest['three']}",
        f"move a @{digest['two']} {digest['one']}",
        "delete b",
        f"move c @{digest['three']}",
        f"create made/too @{digest['two']}",
        "delete d",
        "verify absent absent",
    ]
    instructions = list(parse_instructions(lines))
    transact(repo, lambda: edit.plan(repo, instructions), command=edit.asked_instructions(instructions))


KINDS: dict[str, Kind] = {
    "create": Kind(lambda repo, d: None, lambda repo, d: tagging.create(repo, "app", f"@{d['one']}"), True),
    "create private": Kind(
        lambda repo, d: None, lambda repo, d: tagging.create(repo, "app", f"@{d['one']}", home="private"), True
    ),
    "lease": Kind(lambda repo, d: None, lambda repo, d: tagging.create(repo, "app", f"@{d['one']}", expires=EXPIRES), True),
    "move": Kind(_make("app"), lambda repo, d: tagging.create(repo, "app", f"@{d['two']}", force=True)),
    "delete": Kind(_make("app"), lambda repo, d: tagging.delete(repo, ["app"])),
    "delete two": Kind(_make("app", "b"), lambda repo, d: tagging.delete(repo, ["app", "b"])),
    "into the trash": Kind(_make("app"), lambda repo, d: tagging.delete(repo, ["app"], expires=EXPIRES)),
    "rename": Kind(_make("app"), lambda repo, d: tagging.rename(repo, "app", "b")),
    "rename over another": Kind(
        lambda repo, d: (_make("app")(repo, d), _make("b", to="two")(repo, d)),
        lambda repo, d: tagging.rename(repo, "app", "b", force=True),
    ),
    "home": Kind(_make("app"), lambda repo, d: tagging.create(repo, "app", f"@{d['one']}", home="private")),
    "home and value": Kind(
        _make("app", home="private"),
        lambda repo, d: tagging.create(repo, "app", f"@{d['two']}", home="shared", force=True),
    ),
    "restore from the trash": Kind(_trashed, lambda repo, d: tagging.restore(repo, "app")),
    "restore from the log": Kind(_moved, lambda repo, d: tagging.restore(repo, "app@{1}")),
    "batch": Kind(_make("a", "b", "c", "d"), _batch),
}


class Subject:
    """One kind, prepared in a repository of its own that is copied for every attempt.

    ``collects``: content may go in an attempt, so that every one of them needs a whole copy.
    """

    def __init__(self, kind: Kind, stock: Path, home: Path, *, collects: bool = False) -> None:
        self.kind = kind
        self.collects = collects
        self.attempt = home / "attempt"
        if self.attempt.exists():
            shutil.rmtree(self.attempt)
        self.template = hard_copy(stock, home / "template")
        self.digests = {name: digest_of(stock, name) for name in ("one", "two", "three", "four")}
        with Repository.open(self.template, write=True) as repo:
            kind.before(repo, self.digests)
        self.old = tags(self.template)
        done = self.fresh()
        self.act(done)
        self.new = tags(done)
        assert self.old != self.new

    def fresh(self, number: int = 0) -> Path:
        """A copy to act on; the one before is gone."""
        if self.collects or not self.attempt.exists():
            return hard_copy(self.template, self.attempt)
        return reset(self.template, self.attempt)

    def act(self, path: Path) -> None:
        """Do it."""
        run(path, lambda repo: self.kind.act(repo, self.digests))

    @property
    def touched(self) -> list[str]:
        """Paths of the refs that it changes."""
        return sorted(path for path in {*self.old, *self.new} if self.old.get(path) != self.new.get(path))


def run(path: Path, act: Callable[[WriteRepo], object]) -> None:
    """Open the repository and act."""
    with Repository.open(path, write=True) as repo:
        act(repo)


def write_next(path: Path) -> tuple[str, ...]:
    """The next writer: recovers first, then makes and removes a tag; gives the transactions that it took back."""
    digest = digest_of(path, "four")
    with Repository.open(path, write=True) as repo:
        instruction = Instruction("create", "next", f"@{digest}")
        transact(repo, lambda: edit.plan(repo, [instruction]))
        tagging.delete(repo, ["next"])
        return tuple(error.facts()["transaction"] for error in repo.recovered if error.code == "transaction-abandoned")
