"""A repository to lose things from, and what it takes to say that it is whole again."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cfs_tags import Repository
from cfs_tags.fsck.check import fsck
from cfs_tags.host import refs as deployment_refs
from cfs_tags.repo import images, layout, refs
from cfs_tags.values import DeploymentId, Digest
from support.images import (
    Image,
    Layer,
    app_image,
    base_layer,
    build_artifact,
    directory,
    file,
    host_image,
    pull_image,
    random_bytes,
)
from support.importing import import_image
from support.peers import Cfsctl

__all__ = ["Layers", "answering", "assert_whole", "build", "everything", "fill", "head", "layers", "objects"]

_FILES = range(12)
_KINDS = ("gzip", "zstd", "none")


def layers(count: int, name: str) -> list[Layer]:
    """Layers of twelve files each, compressed in turn by gzip, zstd and not at all."""
    made = []
    for n in range(count):
        files = [file(f"usr/{name}-{n}-{i}", random_bytes(f"{name}{n}{i}", 3000 + 700 * i)) for i in _FILES]
        made.append(Layer([directory("usr"), *files], _KINDS[n % 3]))
    return made


def build(layout: Path) -> dict[str, Image]:
    """Apps that share layers, a host, and a signature."""
    shared = [base_layer(size=90_000), *layers(2, "shared")]
    web = app_image(layout, "web", [*shared, *layers(2, "web")])
    db = app_image(layout, "db", [*shared, *layers(3, "db")])
    build_artifact(layout, "signature", [("text/plain", b"signed" * 20)], subject=web)
    return {"web": web, "db": db, "os": host_image(layout, "41.1", shared=[base_layer("os")])}


def fill(cfsctl: Cfsctl, repo: Path) -> None:
    """For the fixture ``filled_repo``: one app imported, the other and the host pulled by cfsctl, a deployment ref."""
    made = build(repo.parent / "layout")
    pull_image(cfsctl, repo, made["os"], "localhost/os", bootable=True)
    import_image(repo, made["web"].source, "quay.io/apps/web:1")
    pull_image(cfsctl, repo, made["db"], "quay.io/apps/db:1")
    with Repository.open(repo, write=True) as opened:
        erofs = opened.image("localhost/os").erofs
        boot = next(target for key, target in erofs.items() if key.startswith(images.BOOT_KEY))
        deployment_refs.create(opened, DeploymentId(boot), Digest.parse(made["os"].manifest_digest))
    cfsctl(repo, "gc")


class Layers:
    """The layers of all images and artifacts of a whole repository that refs lead to: the objects that each consists of, the
    links that name it, its bytes in the source, and uncompressed."""

    def __init__(self, repo: Path) -> None:
        self.sizes: dict[str, int] = {}
        self.objects: dict[str, set[str]] = {}
        self.plain: dict[str, int] = {}
        self.links: dict[str, set[Path]] = {}
        links = [link for link in (repo / "streams").iterdir() if link.is_symlink()]
        with Repository.open(repo) as opened:
            ends = [layout.ref_target(entry.path, entry.target or "") for entry in refs.walk(opened, layout.STREAM_REFS)]
            for digest in {end.manifest_digest for end in ends if end.manifest_digest is not None}:
                for layer in images.load(opened, digest).layers:
                    assert layer.object is not None
                    stream = opened.stream(layer.object, "a layer")
                    table, width = stream.raw_object_refs.hex(), opened.algorithm.hex_length
                    parts = {table[at : at + width] for at in range(0, len(table), width)}
                    self.objects[layer.descriptor.digest] = {str(layer.object), *parts}
                    object_name = f"{layer.object[:2]}/{layer.object[2:]}"
                    self.links[layer.descriptor.digest] = {link for link in links if os.readlink(link).endswith(object_name)}
                    self.sizes[layer.descriptor.digest] = layer.descriptor.size
                    self.plain[layer.descriptor.digest] = stream.stream_size

    def lacking(self, repo: Path) -> dict[str, int]:
        """Those of which an object or a link is gone, with their sizes: without its link nothing says what an object is, where
        what named it is lost, too."""
        there = {path.parent.name + path.name for path in (repo / "objects").glob("*/*")}
        return {
            digest: self.sizes[digest]
            for digest, objects in self.objects.items()
            if objects - there or not all(link.is_symlink() for link in self.links[digest])
        }


def objects(repo: Path) -> list[Path]:
    """The objects, sorted."""
    return sorted((repo / "objects").glob("*/*"))


def everything(repo: Path) -> list[Path]:
    """All that can be lost but refs: objects, and links to them."""
    tops = [repo / top for top in ("streams", "images") if (repo / top).is_dir()]
    links = [path for top in tops for path in sorted(top.iterdir()) if path.is_symlink()]
    return [*objects(repo), *links]


def assert_whole(cfsctl: Cfsctl, repo: Path) -> None:
    """All content is there and right, by this program and by cfsctl."""
    with Repository.open(repo) as opened:
        assert [one for one in fsck(opened, content=True, jobs=1).findings if one.fails] == []
        for tag in opened.tags.list():
            assert images.missing_lines(opened, opened.tags.resolve(tag.name)) == ()
    cfsctl.assert_healthy(repo)


# -- hosts that answer in their own way ----------------------------------------------------------------------------------


@contextmanager
def answering(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A host that answers every request in its own way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        done = threading.Event()

        def run() -> None:
            while not done.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    try:
                        answer(connection, connection.recv(65536))
                    except OSError:
                        continue

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            done.set()
            thread.join()


def head(status: str, *lines: str) -> bytes:
    """The head of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()
