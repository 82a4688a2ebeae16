"""What is measured on: repositories and sysroots that the real cfsctl filled, kept in a cache folder.

A data set is built once, in a folder that gets its name when it is whole; its name says what is in it.  What is measured may
change only copies.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path[1:1] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from record_host import Deployment, write_entries, write_kernel, write_state  # noqa: E402

from support.images import (  # noqa: E402
    CREATED,
    Entry,
    Image,
    Layer,
    app_image,
    base_layer,
    build_image,
    directory,
    file,
    host_layer,
    pull_image,
    random_bytes,
    symlink,
)
from support.peers import Cfsctl  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["APP", "Data", "copy", "deployment_ids", "tag_names"]

_VERSION = 1
"""Changes when what is built changes, so that old data sets are not taken for new ones."""
_FILES_IN_DIRECTORY = 100
_GARBAGE_IMAGES = 38
_FILE_SIZE = 100
"""Bytes of each file of a large image: more than the 64 that stay inline in a layer stream."""

APP = "app"
"""Name of the image in the layouts of :meth:`Data.app`."""
_APP_LAYERS = 5
_POOL = 16 << 20


class Data:
    """The data sets.

    Args:
        cache: directory that keeps them.
        cfsctl: the program.
        version: what it says its version is.
        say: is told what takes long.
    """

    def __init__(self, cache: Path, cfsctl: Path, version: str, say: Callable[[str], None]) -> None:
        self._cache = cache
        self._program = cfsctl
        self._label = f"{version.replace(' ', '-')}-{_VERSION}"
        self._say = say

    def images(self, count: int) -> Path:
        """A repository of ``count`` app images, each pulled under one tag."""

        def build(where: Path, cfsctl: Cfsctl) -> None:
            repo = _new_repo(where / "composefs", cfsctl)
            shared = [base_layer()]
            for name in tag_names(count):
                pull_image(cfsctl, repo, app_image(where / "layout", _short(name), shared), name)

        return self._get(f"images-{count}", build) / "composefs"

    def tags(self, images: int, count: int) -> Path:
        """The same repository with ``count`` tags in all: the rest are links like those that ``cfsctl oci tag`` makes."""

        def build(where: Path, cfsctl: Cfsctl) -> None:
            repo = where / "composefs"
            copy(self.images(images), repo)
            home = repo / "streams" / "refs" / "oci"
            targets = [link.readlink() for link in sorted(home.iterdir())]
            for number, name in enumerate(tag_names(count)[images:]):
                (home / name.replace("%", "%25").replace("/", "%2F")).symlink_to(targets[number % images])
            cfsctl(repo, "gc", "--dry-run")

        return self._get(f"tags-{count}-of-{images}", build) / "composefs"

    def sysroot(self, deployments: int, manifests: int) -> Path:
        """A sysroot of small deployments whose repository has ``manifests`` manifests in all, each with one tag."""

        def build(where: Path, cfsctl: Cfsctl) -> None:
            sysroot = where / "host"
            repo = _new_repo(sysroot / "composefs", cfsctl)
            common = base_layer("os-common", 30_000)
            made = []
            for number in range(deployments):
                version = _version(number)
                layers = [common, host_layer(version, boot_content=True)]
                made.append(_deploy(cfsctl, repo, where / "layout", version, layers))
            _write_sysroot(sysroot, made)
            shared = [base_layer()]
            for name in tag_names(manifests - deployments):
                pull_image(cfsctl, repo, app_image(where / "layout", _short(name), shared), name)
            cfsctl(repo, "gc", "--dry-run")

        return self._get(f"sysroot-{deployments}-of-{manifests}", build) / "host"

    def large_sysroot(self, deployments: int, files: int, shared: int) -> Path:
        """A sysroot of deployments of ``files`` files in objects each, of which ``shared`` are in a layer of all of them."""

        def build(where: Path, cfsctl: Cfsctl) -> None:
            sysroot = where / "host"
            repo = _new_repo(sysroot / "composefs", cfsctl)
            common = Layer(_files("common", shared), "none")
            made = []
            for number in range(deployments):
                version = _version(number)
                # the fake kernel's layer has four files that are long enough for objects
                own = Layer(_files(f"own-{version}", files - shared - 4), "none")
                layers = [common, own, host_layer(version, boot_content=True)]
                made.append(_deploy(cfsctl, repo, where / "layout", version, layers))
            _write_sysroot(sysroot, made)
            cfsctl(repo, "gc", "--dry-run", timeout=600)

        return self._get(f"large-{deployments}-of-{files}-sharing-{shared}", build) / "host"

    def garbage(self, objects: int) -> Path:
        """A repository of ``objects`` objects, 40 % of them dead: see :meth:`littered`."""

        def build(where: Path, cfsctl: Cfsctl) -> None:
            self.littered(objects, where / "composefs")

        return self._get(f"garbage-{objects}", build) / "composefs"

    def littered(self, objects: int, target: Path) -> Path:
        """Another one, to be collected: what is alive are hard links, what is dead is its own, so that it must be deleted.

        A tenth of the objects each in two EROFS images that cfsctl made of directories and that have a ref; four tenths in
        the layers of 38 images that cfsctl pulled, each with a tag; the rest is dead.  All of them have 100 bytes.
        """
        alive = self._alive(objects)
        copy(alive, target)
        home = target / "objects"
        names = (alive.parent / "dead").read_text().split()
        for parent in {name[:2] for name in names}:
            (home / parent).mkdir(exist_ok=True)
        for number, name in enumerate(names):
            (home / name[:2] / name[2:]).write_bytes(_dead(number))
        return target

    def _alive(self, objects: int) -> Path:
        """What is alive of it, and beside it the names of what will be dead."""

        def build(where: Path, cfsctl: Cfsctl) -> None:
            from cfs_tags.formats import fsverity
            from cfs_tags.values import Algorithm

            repo = _new_repo(where / "composefs", cfsctl)
            for name in ("first", "second"):
                tree = where / f"tree-{name}"
                for entry in _files(name, objects // 10):
                    if entry.content:
                        (tree / entry.name).write_bytes(entry.content)
                    else:
                        (tree / entry.name).mkdir(parents=True)
                cfsctl(repo, "create-image", tree, f"trees/{name}")
                shutil.rmtree(tree)
            each = objects * 4 // 10 // _GARBAGE_IMAGES
            for number in range(_GARBAGE_IMAGES):
                image = build_image(where / "layout", f"app-{number}", [Layer(_files(f"app-{number}", each), "none")])
                pull_image(cfsctl, repo, image, f"app:{number}")
                shutil.rmtree(where / "layout")
            cfsctl(repo, "gc")  # what pulling leaves
            names = [fsverity.measure(_dead(number), Algorithm.SHA512) for number in range(objects * 4 // 10)]
            (where / "dead").write_text("\n".join(names))

        return self._get(f"alive-{objects}", build) / "composefs"

    def app(self, files: int, size: int) -> Path:
        """One app image of ``files`` files with ``size`` bytes in all, in two layouts: ``gzip`` and ``plain``.

        The sizes of the files are those of file systems: most have a few KiB, a few have most of the bytes.  Half of them is
        text, the rest like programs, and some do not compress at all; one in 25 is another's copy.
        """

        def build(where: Path, cfsctl: Cfsctl) -> None:
            made = _app_layers(files, size)
            # one after the other: a layer is in memory with its files, its tar and its blob
            layers = []
            for entries in made:
                layer = Layer(entries)
                for layout, kept in ((where / "gzip", layer), (where / "plain", layer.compressed("none"))):
                    blobs = layout / "blobs" / "sha256"
                    blobs.mkdir(parents=True, exist_ok=True)
                    (blobs / kept.digest.removeprefix("sha256:")).write_bytes(kept.blob)
                layers.append((layer.digest, len(layer.blob), layer.diff_id, len(layer.tar)))
            _write_app(where / "gzip", [(digest, size, diff_id) for digest, size, diff_id, _ in layers], "+gzip")
            _write_app(where / "plain", [(diff_id, size, diff_id) for _, _, diff_id, size in layers], "")

        return self._get(f"app-{files}-of-{size}", build)

    def _get(self, name: str, build: Callable[[Path, Cfsctl], None]) -> Path:
        path = self._cache / f"{name}-{self._label}"
        if not path.is_dir():
            start = time.monotonic()
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._cache, prefix="building-", ignore_cleanup_errors=True) as temporary:
                building = Path(temporary)
                self._say(f"building {name} in {path.parent} …")
                made = building / "made"
                made.mkdir()
                home = building / "home"
                home.mkdir()
                build(made, _Patient(self._program, home))
                shutil.rmtree(made / "layout", ignore_errors=True)
                made.rename(path)
            self._say(f"built in {time.monotonic() - start:.0f} s")
        return path


class _Patient(Cfsctl):
    """cfsctl with time enough for large images."""

    def __call__(
        self,
        repo: Path | None,
        *args: str | Path,
        check: bool = True,
        input: bytes | None = None,
        timeout: float = 1800.0,
    ) -> subprocess.CompletedProcess[str]:
        return super().__call__(repo, *args, check=check, input=input, timeout=timeout)


def tag_names(count: int) -> list[str]:
    """Names of tags, as long as they are in practice."""
    return [f"registry.example.org/team-{number % 37}/service-{number % 211}:1.{number}.0" for number in range(count)]


def deployment_ids(sysroot: Path) -> list[str]:
    """All deployments of a sysroot, by id."""
    return sorted(path.name for path in (sysroot / "state" / "deploy").iterdir())


def copy(source: Path, target: Path) -> Path:
    """A copy for what adds and replaces files and never writes into one.

    On the same file system its files are other names of the same, so that it is made quickly and takes no room.
    """
    same = source.stat().st_dev == target.parent.stat().st_dev
    subprocess.run(["cp", "-al" if same else "-a", "--", source, target], check=True)
    return target


def _new_repo(path: Path, cfsctl: Cfsctl) -> Path:
    path.mkdir(parents=True)
    cfsctl(None, "init", "--insecure", path)
    return path


def _dead(number: int) -> bytes:
    return random_bytes(f"dead {number}", _FILE_SIZE)


def _app_layers(files: int, size: int) -> Iterator[list[Entry]]:
    """The entries of each layer of an app image, bottom first."""
    chosen = random.Random("app")
    sizes = [min(chosen.lognormvariate(0, 2), 2000.0) for _ in range(files)]
    scale = size / sum(sizes)
    assert max(sizes) * scale < _POOL
    pools = _pools()
    known: list[bytes] = []
    number = 0
    for layer in range(_APP_LAYERS):
        top = f"usr/lib/layer-{layer}"
        entries = [directory("usr"), directory("usr/lib"), directory(top)]
        home = top
        # most layers of an image are small: the first has half of the files, the next a quarter, and so on
        end = files if layer == _APP_LAYERS - 1 else number + (files - number) // 2
        while number < end:
            if number % 12 == 0:
                home = f"{top}/package-{number // 12:05}"
                entries.append(directory(home))
                entries.append(symlink(f"{home}/current", f"part-{number}.so"))
            if known and chosen.random() < 0.04:
                content = chosen.choice(known)
            else:
                length = int(sizes[number] * scale)
                pool = pools[min(chosen.choices(range(3), (5, 4, 1))[0], 2)]
                start = chosen.randrange(_POOL)
                head = f"# {number}\n".encode()
                content = (head + pool[start : start + length])[:length]
                if len(known) < 1000:
                    known.append(content)
            mode = 0o755 if number % 5 == 0 else 0o644
            entries.append(file(f"{home}/part-{number}.so", content, mode))
            number += 1
        yield entries


def _pools() -> tuple[bytes, bytes, bytes]:
    """Bytes like text, like programs, and such that do not compress; no repetition within what gzip sees at once."""
    chosen = random.Random("pools")
    words = ["".join(chosen.choices("etaoinshrdlucmfw", k=chosen.randint(1, 9))) for _ in range(5000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    text = " ".join(chosen.choices(words, weights, k=_POOL // 3)).encode()
    noise = random_bytes("pools", _POOL)
    codes = [random_bytes(f"code {number}", 6) for number in range(300)]
    program = b"".join(code + noise[at : at + 1] for at, code in enumerate(chosen.choices(codes, k=_POOL // 7 + 1)))
    return 2 * text[:_POOL], 2 * program[:_POOL], 2 * noise


def _write_app(layout: Path, layers: Sequence[tuple[str, int, str]], suffix: str) -> None:
    """The documents of a layout whose layers (digest, size, diff_id) are there."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in layers]},
    }
    kind = "application/vnd.oci.image"

    def put(document: object) -> dict[str, object]:
        content = json.dumps(document, separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", **put(config)},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar{suffix}", "digest": one, "size": size} for one, size, _ in layers],
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **put(manifest),
        "annotations": {"org.opencontainers.image.ref.name": APP},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _short(name: str) -> str:
    return name.rpartition("/")[2].replace(":", "-")


def _version(number: int) -> str:
    return f"41.{20260101 + number}.0"


def _files(seed: str, count: int) -> Iterator[Entry]:
    yield directory("usr")
    yield directory("usr/share")
    yield directory(f"usr/share/{seed}")
    for number in range(count):
        home = f"usr/share/{seed}/{number // _FILES_IN_DIRECTORY:04}"
        if number % _FILES_IN_DIRECTORY == 0:
            yield directory(home)
        yield file(f"{home}/{number:06}", random_bytes(f"{seed} {number}", _FILE_SIZE))


def _deploy(cfsctl: Cfsctl, repo: Path, layout: Path, version: str, layers: Sequence[Layer]) -> Deployment:
    labels = {"containers.bootc": "1", "org.opencontainers.image.version": version}
    image: Image = build_image(layout, f"host-{version}", layers, labels=labels)
    tag = f"localhost/bootc-{image.manifest_digest}"
    pull_image(cfsctl, repo, image, tag, bootable=True)
    plain, boot = cfsctl.images_of(repo, tag)
    assert plain is not None
    assert boot is not None
    return Deployment(version, image, "docker://quay.io/example/os:41", boot, plain)


def _write_sysroot(sysroot: Path, made: Sequence[Deployment]) -> None:
    (sysroot / "state/os/default/var").mkdir(parents=True)
    for deployment in made:
        write_state(sysroot, deployment, manifest_digest=True)
        write_kernel(sysroot, deployment)
    # two entries for each pair of neighbours; one alone has itself as rollback
    for first, second in zip(made[::2], made[1::2] or made, strict=False):
        write_entries(sysroot / "boot/loader/entries", primary=second, secondary=first)
