"""A host on which much was done, with a file of which the bytes are wrong: what commands say of it, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support import stock
from support.everywhere import REPO, Said, Scene, copy_scene, run_words

__all__ = ["BOOTED", "DB", "PLACES", "WEB", "Wrong", "wrong_of"]

ROOT = Path(__file__).parent.parent.parent
WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
BOOTED = json.loads((ROOT / "examples/host.json").read_text())["booted"]
PLACES = ("--run", "host/run", "--booted", BOOTED, "--esp", "none")
ON_REPO = (
    ("fsck", "--json"),
    ("log", "--json"),
    ("trash", "--json"),
    ("list", "--all", "--json"),
    ("create", "t/probe", WEB, "--force"),
    ("fsck", "--repair"),
)
ON_HOST = (("deployments", "--json"), ("migrate", "--undo", "--dry-run"), ("retire", "--dry-run"), ("gc", "--dry-run"))


class Wrong(NamedTuple):
    """A file of the host, the bytes that it had, and what went wrong then."""

    name: str
    data: bytes
    problem: str


def wrong_of(scene: Scene, name: str, contents: Sequence[bytes]) -> list[Wrong]:
    """What goes wrong where a file has these contents, one after the other."""
    found = []
    with stock.in_memory() as home:
        for data in contents:
            place = copy_scene(scene, home / "attempt")
            (place / name).write_bytes(data)
            problem = _judge(scene, place, within_state="/cfs-tags/" in name)
            if problem is not None:
                found.append(Wrong(name, data, problem))
    return found


def _commands() -> Iterator[tuple[str, ...]]:
    yield from (("--repo", REPO, *words) for words in ON_REPO)
    yield from (("--sysroot", "host", words[0], *PLACES, *words[1:]) for words in ON_HOST)


def _judge(scene: Scene, place: Path, *, within_state: bool) -> str | None:
    before = stock.refs(scene.home / REPO)
    said: list[tuple[tuple[str, ...], Said]] = []
    for words in _commands():
        answer = run_words(place, words)
        said.append((words, answer))
        if "Traceback" in answer.err or "internal" in answer.err or answer.status not in (0, 2, 3, 4, 6):
            return f"{' '.join(words)} ends so: {answer}"
        if within_state and "create" in words and answer.status != 0:
            return f"it stops a writer: {answer}"
    after = stock.refs(place / REPO)
    cut_off = ("t%2Ftwo", "t%2Fthree", "t%2Fprobe", "dangling")
    lost = {ref: link for ref, link in before.items() if after.get(ref) != link and not ref.endswith(cut_off)}
    return f"refs are lost: {lost}" if lost else None
