"""Fixtures: every deployment of every recorded host, and what bootc does to one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli.conftest import Run, Said, call, facts, repo, run, sysroot, web  # noqa: F401  (fixtures)
from deployments.conftest import recorded  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
HOSTS = ROOT / "tests/data/hosts"
NAMES = [*sorted(path.stem for path in HOSTS.glob("*.json")), "example"]


def facts_of(name: str) -> Any:
    path = ROOT / "examples/host.json" if name == "example" else HOSTS / f"{name}.json"
    return json.loads(path.read_text())


def ids_of(name: str) -> list[str]:
    """The deployments of a recorded host, as bootc or the notes of the recording knew them."""
    known = facts_of(name)
    if "deployments" in known:
        return list(known["deployments"])
    if "images" in known:
        return [one["boot_image"] for one in known["images"]]
    return [one["verity"] for one in known["bootc_status"] if one is not None]


CASES = [(name, deployment) for name in NAMES for deployment in ids_of(name)]


class Pinnable:
    """A deployment of a recorded host that is not running."""

    def __init__(self, root: Path, deployment: str, call: Run) -> None:  # noqa: F811
        self.root, self.repo, self.id = root, root / "composefs", deployment
        self._call = call

    def on(self, *words: str | Path, ok: bool = True) -> Said:
        return self._call("--sysroot", self.root, *words, ok=ok)

    def on_host(self, command: str, *words: str | Path, ok: bool = True) -> Said:
        return self.on(command, "--run", "none", "--booted", "none", "--esp", "none", *words, ok=ok)

    def row(self) -> dict[str, Any] | None:
        rows = self.on_host("deployments", "--json").result["deployments"]
        return next((row for row in rows if row["id"] == self.id), None)

    def delete(self) -> None:
        """As bootc deletes a deployment: state directory, entries, kernels, its tag of the manifest."""
        manifest = self.on_host("lookup", self.id, "--json").result["manifest"]
        shutil.rmtree(self.root / "state/deploy" / self.id, ignore_errors=True)
        for path in self._boot_files():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        staged = self.root / "run/composefs/staged-deployment"
        if staged.exists() and self.id in staged.read_text():
            staged.unlink()
        (self.repo / f"streams/refs/oci/localhost%2Fbootc-{manifest}").unlink(missing_ok=True)

    def _boot_files(self) -> Iterator[Path]:
        boot = self.root / "boot"
        yield from boot.glob(f"bootc_composefs-{self.id}")
        for entry in boot.glob("loader/entries*/*.conf"):
            if self.id in entry.read_text():
                yield entry

    def images(self) -> dict[str, str]:
        """``plain`` and ``boot``: the EROFS images of its manifest."""
        manifest = self.on_host("lookup", self.id, "--json").result["manifest"]
        shown = self.on("show", f"@{manifest}", "--json").result["erofs"]
        return {one["kind"]: one["id"] for one in shown}


@pytest.fixture(params=CASES, ids=[f"{name}-{deployment[:8]}" for name, deployment in CASES])
def pinnable(request: pytest.FixtureRequest, recorded: Callable[[str], Path], call: Run) -> Pinnable:  # noqa: F811
    name, deployment = request.param
    return Pinnable(recorded(name), deployment, call)


def named_in(repo: Path, image: str) -> set[str]:  # noqa: F811
    """The objects whose digests are in an EROFS image, as bytes."""
    data = object_path(repo, image).read_bytes()
    return {one for path in (repo / "objects").glob("??/*") if bytes.fromhex(one := path.parent.name + path.name) in data}


def object_path(repo: Path, object_id: str) -> Path:  # noqa: F811
    return repo / "objects" / object_id[:2] / object_id[2:]


def unlink_boot_objects(repo: Path, images: dict[str, str]) -> set[str]:  # noqa: F811
    """As a newer bootc: the objects of files below /boot of the plain image go, whoever else has them."""
    gone = named_in(repo, images["plain"]) - named_in(repo, images["boot"])
    for one in gone:
        os.unlink(object_path(repo, one))
    return gone


def contents(repo: Path) -> dict[str, bytes]:  # noqa: F811
    return {path.parent.name + path.name: path.read_bytes() for path in (repo / "objects").glob("??/*")}
