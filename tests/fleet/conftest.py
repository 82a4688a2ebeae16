"""Fixtures: the real registry, a host whose images are in it, and the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run, call  # noqa: F401
from support.images import Image
from support.peers import Cfsctl
from support.registries import Distribution, distribution
from support.sysroots import Host, Pool, fill_hosts, new_host

NAME = "host-1"
OS = "example/os"


@pytest.fixture
def shop(registry: Path, tmp_path: Path) -> Iterator[Distribution]:
    """An empty registry."""
    with distribution(registry, tmp_path / "registry") as running:
        yield running


@pytest.fixture(scope="session")
def _pool(cfsctl: Cfsctl, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return fill_hosts(cfsctl, tmp_path_factory.mktemp("fleet-pool"))


@pytest.fixture
def host(_pool: Pool, shop: Distribution, tmp_path: Path) -> Host:
    """A host that booted ``new`` and can go back to ``old``; their images and ``same`` are in the registry."""
    made = new_host(tmp_path / "host", _pool)
    for name in ("old", "new"):
        made.deploy(name)
    made.boot_entries("new", "old")
    made.booted = made.id("new")
    for name, deployed in _pool.images.items():
        push(shop, OS, deployed.image, name)
    return made


def blobs_of(image: Image) -> dict[str, bytes]:
    """The content of an image in its layout, by digest, but for the manifest."""
    parts = [image.manifest["config"], *image.manifest["layers"]]
    return {part["digest"]: _blob(image, part["digest"]) for part in parts}


def manifest_of(image: Image) -> bytes:
    return _blob(image, image.manifest_digest)


def _blob(image: Image, digest: str) -> bytes:
    return (image.layout / "blobs" / digest.replace(":", "/")).read_bytes()


def push(shop: Distribution, repository: str, image: Image, tag: str) -> None:
    """Put an image into the registry, as a build does."""
    for data in blobs_of(image).values():
        shop.upload(repository, data)
    shop.tag(repository, tag, manifest_of(image))


@pytest.fixture
def publish(call: Run, shop: Distribution, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., object]:  # noqa: F811
    """Publishes a host: ``publish(host, "--restore")``; what the program said."""
    from cli.conftest import Said

    monkeypatch.setattr("cfs_tags.cli.registries.state_directory", lambda: str(tmp_path / "state"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))

    where = shop

    def run(host: Host, *words: str, name: str = NAME, place: str = OS, shop: Any = where, for_people: bool = False) -> Said:
        return call(
            *("--sysroot", host.root, "publish", f"{shop.address}/{place}", "--name", name),
            *([] if "--retract" in words else host.options),
            *words,
            *([] if for_people else ["--json"]),
        )

    return run
