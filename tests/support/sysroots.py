"""Sysroots for tests: repositories that the real cfsctl filled, with the files beside them that bootc 1.16.9 writes.

Nothing here imports the product.  A :class:`Pool` is filled once and never touched; a :class:`Host` is a test's own copy,
whose objects are hard links to the pool's (cheap enough for hundreds of copies, safe as long as no test writes *into* a
file of the repository), and on which a test makes or breaks whatever the case wants:

    host = new_host(path, pool)
    host.deploy("old", digest=False, imginfo=True)
    host.boot_entries("old", "new")
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from support.images import Image, app_image, base_layer, build_image, host_image, pull_image
from support.peers import Cfsctl

__all__ = [
    "BOOTC",
    "Deployed",
    "Host",
    "Pool",
    "entry_text",
    "fill_hosts",
    "fill_rivals",
    "fill_twins",
    "grub_config",
    "imginfo_text",
    "link_tree",
    "new_host",
    "origin_text",
    "uki",
    "with_old_headers",
]

BOOTC = "localhost/bootc-"
KERNEL_ARGUMENTS = "root=UUID=11111111-2222-3333-4444-555555555555 rw"


class Deployed(NamedTuple):
    """An image and what cfsctl made of it: ``id`` is its boot EROFS image, ``plain`` that of the root file system."""

    image: Image
    id: str
    plain: str
    reference: str

    @property
    def manifest(self) -> str:
        """Digest of the manifest."""
        return self.image.manifest_digest

    @property
    def contents(self) -> dict[str, str]:
        """SHA-256 of everything that must be an object while this is kept, and what it is."""
        found = {
            self.image.manifest_digest.removeprefix("sha256:"): "the manifest",
            self.image.config_digest.removeprefix("sha256:"): "the config",
        }
        return found | self.files

    @property
    def files(self) -> dict[str, str]:
        """The part of :attr:`contents` that a mounted deployment needs: files too large to stand in the EROFS image."""
        # what is in /boot is no part of a boot image
        return {
            hashlib.sha256(entry.content).hexdigest(): entry.name
            for layer in self.image.layers
            for entry in layer.entries
            if len(entry.content) > 64 and not entry.name.startswith("boot/")
        }

    @property
    def streams(self) -> tuple[str, ...]:
        """The names in ``streams/`` that are there while this is kept."""
        return (
            f"oci-manifest-{self.image.manifest_digest}",
            f"oci-config-{self.image.config_digest}",
            *(f"oci-layer-{diff_id}" for diff_id in self.image.diff_ids),
        )


class Pool(NamedTuple):
    """A pristine repository and the images in it by name; ``apps`` are not bootable, their key is the tag."""

    repo: Path
    images: Mapping[str, Deployed]
    apps: Mapping[str, Image]


# -- filling -----------------------------------------------------------------------------------------------------------


def fill_hosts(cfsctl: Cfsctl, where: Path, algorithm: str = "sha512") -> Pool:
    """Three bootable images with tags of bootc's, two app images with tags of their own; all of a kind share a layer.

    Boot and plain image of ``same`` are one, those of ``old`` and ``new`` are two.
    """
    repo = _init(cfsctl, where, algorithm)
    layout = where / "layout"
    common = [base_layer("os", 3000)]
    images = {}
    for name, differs in (("same", False), ("old", True), ("new", True)):
        image = host_image(layout, name, boot_content=differs, shared=common)
        images[name] = _pull_host(cfsctl, repo, image)
    apps = {}
    for name in ("web", "db"):
        tag = f"quay.io/apps/{name}:1"
        apps[tag] = app_image(layout, name, [base_layer("runtime", 3000)], size=1000)
        pull_image(cfsctl, repo, apps[tag], tag)
    return Pool(repo, images, apps)


def fill_twins(cfsctl: Cfsctl, where: Path, kind: str, last: str, *, rewound: bool = False) -> Pool:
    """Two manifests with one config, ``one`` and ``two``: ``annotated`` again or ``compressed`` again.

    Both were pulled, then ``last`` was pulled bootable, which wrote the config stream again: the manifest stream of the
    other names a config object without a link.  ``rewound``: then the other was pulled again and not bootable, which takes
    the link back to a config that names no boot image.  Both have a tag of bootc's.
    """
    repo = _init(cfsctl, where, "sha512")
    layout = where / "layout"
    first = host_image(layout, "twin", boot_content=True, shared=[base_layer("os", 3000)])
    layers = [layer.compressed("zstd") for layer in first.layers] if kind == "compressed" else first.layers
    second = build_image(
        layout,
        "twin-again",
        layers,
        config=first.config,
        annotations={"org.example.build": "2"} if kind == "annotated" else None,
    )
    assert first.config_digest == second.config_digest
    assert first.manifest_digest != second.manifest_digest
    twins = {"one": first, "two": second}
    for image in twins.values():
        pull_image(cfsctl, repo, image, BOOTC + image.manifest_digest)
    booting = _pull_host(cfsctl, repo, twins[last])
    if rewound:
        other = twins["two" if last == "one" else "one"]
        pull_image(cfsctl, repo, other, BOOTC + other.manifest_digest)
    assert booting.id != booting.plain
    images = {
        name: Deployed(image, booting.id, booting.plain, f"quay.io/example/{image.ref}:latest") for name, image in twins.items()
    }
    return Pool(repo, images, {})


def fill_rivals(cfsctl: Cfsctl, where: Path) -> Pool:
    """Three manifests ``one``, ``two``, ``three`` with configs of their own and the same files: one EROFS image for all.

    None has a tag: the tests make those that they need, after which an image is found.
    """
    repo = _init(cfsctl, where, "sha512")
    images = {}
    for name in ("one", "two", "three"):
        image = build_image(
            where / "layout",
            name,
            host_image(where / "layout", "rival", shared=[base_layer("os", 3000)]).layers,
            labels={"containers.bootc": "1", "org.opencontainers.image.version": name},
        )
        images[name] = _pull_host(cfsctl, repo, image)
    for path in (repo / "streams/refs/oci").iterdir():
        path.unlink()
    assert len({deployed.id for deployed in images.values()}) == 1
    return Pool(repo, images, {})


def _init(cfsctl: Cfsctl, where: Path, algorithm: str) -> Path:
    repo = where / "composefs"
    repo.mkdir(parents=True)
    cfsctl(None, "init", "--insecure", "--algorithm", f"fsverity-{algorithm}-12", repo)
    return repo


def _pull_host(cfsctl: Cfsctl, repo: Path, image: Image) -> Deployed:
    tag = BOOTC + image.manifest_digest
    pull_image(cfsctl, repo, image, tag, bootable=True)
    plain, boot = cfsctl.images_of(repo, tag)
    assert plain is not None
    assert boot is not None
    return Deployed(image, boot, plain, f"quay.io/example/{image.ref}:latest")


def link_tree(source: Path, target: Path) -> Path:
    """A copy whose files and links are hard links to the original's."""
    copier = shutil.which("cp")
    assert copier is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([copier, "-al", "--", source, target], check=True, timeout=120)
    return target


# -- the files of bootc ------------------------------------------------------------------------------------------------


def origin_text(deployed: Deployed, *, digest: bool = True, boot_type: str = "bls") -> str:
    """An origin file as bootc 1.16.9 writes it; without ``digest`` as bootc before 1.15 did."""
    text = (
        f"[origin]\ncontainer-image-reference=ostree-unverified-image:docker://{deployed.reference}\n\n"
        f"[boot]\nboot_type={boot_type}\ndigest={'15' * 32}\n\n"
    )
    return text + (f"[image]\nmanifest_digest={deployed.manifest}\n" if digest else "")


def imginfo_text(deployed: Deployed) -> str:
    """An ``.imginfo`` file: documents parsed and written again, so that their bytes have other digests."""
    return json.dumps({"config": deployed.image.config, "manifest": deployed.image.manifest})


def entry_text(deployment: str, version: str = "1", sort_key: str = "bootc-fake-8") -> str:
    """A boot entry."""
    home = f"/boot/bootc_composefs-{deployment}"
    return (
        f"title Fake {version}\nversion {version}\nsort-key {sort_key}\nlinux {home}/vmlinuz\n"
        f"initrd {home}/initrd\noptions {KERNEL_ARGUMENTS} composefs=?{deployment} \n"
    )


def grub_config(deployments: Iterable[str]) -> str:
    """A ``user.cfg`` with one ``menuentry`` for each UKI."""
    return "\n".join(
        f'menuentry "Fake: ({number})" {{\n    insmod fat\n    insmod chain\n'
        f'    search --no-floppy --set=root --fs-uuid "${{EFI_PART_UUID}}"\n'
        f"    chainloader /EFI/Linux/bootc/bootc_composefs-{deployment}.efi\n}}\n"
        for number, deployment in enumerate(deployments)
    )


def uki(cmdline: str) -> bytes:
    """The smallest PE file with a ``.cmdline`` section (and an ``.osrel``)."""
    contents = [(b".osrel", b"ID=fake\nVERSION_ID=1\n"), (b".cmdline", cmdline.encode() + b"\0")]
    start = 64 + 24 + 40 * len(contents)
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    head += struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(contents), 0, 0, 0, 0, 0x22)
    body = b""
    for name, content in contents:
        head += struct.pack("<8sIIIIIIHHI", name, len(content), 0, len(content), start + len(body), 0, 0, 0, 0, 0x40000040)
        body += content
    return head + body


# -- hosts -------------------------------------------------------------------------------------------------------------


@dataclass
class Host:
    """A sysroot and what a test knows of it.

    ``without`` names the parts that the system does not have (``esp``, ``kernel``, ``run``); where the rest stands is said
    to the product by :attr:`options` (command line) or :attr:`places` (library).
    """

    root: Path
    pool: Pool
    booted: str | None = None
    has_esp: bool = False
    removed: list[str] = field(default_factory=list)

    @property
    def repo(self) -> Path:
        return self.root / "composefs"

    @property
    def options(self) -> list[str]:
        """Words of the command line that say where things are."""
        return [
            *("--run", str(self.root / "run"), "--booted", self.booted or "none"),
            *("--esp", str(self.root / "efi") if self.has_esp else "none"),
        ]

    def id(self, name: str) -> str:
        return self.pool.images[name].id

    def state(self, name: str) -> Path:
        """The state directory of an image's deployment."""
        return self.root / "state/deploy" / self.id(name)

    def origin(self, name: str) -> Path:
        return self.state(name) / f"{self.id(name)}.origin"

    def deploy(self, name: str, *, digest: bool = True, imginfo: bool = False, origin: str | bytes | None = None) -> None:
        """Make the state directory of a deployment; ``origin`` replaces the content of its origin file."""
        home = self.state(name)
        (home / "etc").mkdir(parents=True)
        (home / "var").symlink_to("../../os/default/var")
        text = origin_text(self.pool.images[name], digest=digest) if origin is None else origin
        self.origin(name).write_bytes(text.encode() if isinstance(text, str) else text)
        if imginfo:
            (home / f"{self.id(name)}.imginfo").write_text(imginfo_text(self.pool.images[name]))

    def boot_entries(self, *names: str, staged: bool = False, boot: str = "boot") -> list[Path]:
        """Make boot entries for these deployments, the default one first."""
        where = self.root / boot / ("loader/entries.staged" if staged else "loader/entries")
        where.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, name in enumerate(names):
            path = where / f"bootc_fake-{name}-{len(names) - number}.conf"
            # GRUB goes by the file name, descending
            path = path.with_name(f"bootc_fake-{len(names) - number}-{len(names) - number}.conf")
            path.write_text(entry_text(self.id(name), name, f"bootc-fake-{number}"))
            paths.append(path)
        (self.root / boot / "grub2").mkdir(exist_ok=True)
        return paths

    def ukis(self, *names: str) -> list[Path]:
        """Put UKIs of these deployments on the ESP."""
        self.has_esp = True
        where = self.root / "efi/EFI/Linux/bootc"
        where.mkdir(parents=True, exist_ok=True)
        paths = []
        for name in names:
            path = where / f"bootc_composefs-{self.id(name)}.efi"
            path.write_bytes(uki(f"{KERNEL_ARGUMENTS} composefs={self.id(name)}"))
            paths.append(path)
        return paths

    def grub(self, *names: str, staged: bool = False) -> Path:
        """Make GRUB's entries for the UKIs of these deployments."""
        path = self.root / ("boot/grub2/user.cfg.staged" if staged else "boot/grub2/user.cfg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(grub_config(self.id(name) for name in names))
        return path

    def stage(self, name: str) -> Path:
        """Note a deployment as the one that is next."""
        path = self.root / "run/composefs/staged-deployment"
        path.write_text(json.dumps({"depl_id": self.id(name), "finalization_locked": False}))
        return path

    def boot(self, name: str) -> None:
        """Have the kernel's command line name it."""
        self.booted = self.id(name)

    def undeploy(self, name: str) -> None:
        """Remove what bootc removes: state directory and boot entries."""
        shutil.rmtree(self.state(name), ignore_errors=True)
        for path in [*self.root.glob("boot/loader/entries*/*.conf"), *self.root.glob("efi/EFI/Linux/bootc/*.efi")]:
            if self.id(name).encode() in path.read_bytes():
                path.unlink()

    def tag(self, name: str, manifest: str) -> Path:
        """Make a tag as cfsctl does."""
        path = self.repo / "streams/refs/oci" / name.replace("%", "%25").replace("/", "%2F")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(f"../../oci-manifest-{manifest}")
        return path

    def untag(self, name: str) -> None:
        """Remove a tag."""
        (self.repo / "streams/refs/oci" / name.replace("%", "%25").replace("/", "%2F")).unlink()

    def untag_bootc(self) -> None:
        """Remove all tags of bootc's, as its collector does with those that it cannot match to a deployment."""
        for path in (self.repo / "streams/refs/oci").glob("localhost%2Fbootc-*"):
            path.unlink()

    # -- what is there, without the product ----------------------------------------------------------------------------

    def object_hashes(self) -> set[str]:
        """SHA-256 of the bytes of every object."""
        return {
            hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.repo / "objects").glob("??/*") if path.is_file()
        }

    def missing(self, name: str, *, image_only: bool = False, hashes: set[str] | None = None) -> list[str]:
        """What a deployment lacks: manifest, config, layers, their links, EROFS image, every file.  Nothing: it is whole."""
        deployed = self.pool.images[name]
        wanted = deployed.files if image_only else deployed.contents
        found = self.object_hashes() if hashes is None else hashes
        lacking = [what for digest, what in wanted.items() if digest not in found]
        if not (self.repo / "images" / deployed.id).exists():
            lacking.append("the EROFS image")
        if not image_only:
            lacking += [stream for stream in deployed.streams if not (self.repo / "streams" / stream).exists()]
        return lacking

    def missing_of_app(self, tag: str) -> list[str]:
        """The same for an app image."""
        found = self.object_hashes()
        deployed = Deployed(self.pool.apps[tag], "", "", "")
        return [what for digest, what in deployed.contents.items() if digest not in found] + [
            stream for stream in deployed.streams if not (self.repo / "streams" / stream).exists()
        ]


def new_host(path: Path, pool: Pool, copy: Callable[[Path, Path], object] = link_tree) -> Host:
    """A sysroot around a copy of a pool, without deployments: state, boot and run directories are there and empty.

    ``copy`` is :func:`link_tree`, or ``copy_tree`` where ``path`` is on another file system.
    """
    copy(pool.repo, path / "composefs")
    for name in ("state/deploy", "state/os/default/var", "boot/loader/entries", "boot/grub2", "run/composefs"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return Host(path, pool)


# -- old repositories --------------------------------------------------------------------------------------------------


def with_old_headers(source: Path, target: Path, measure: Callable[[bytes], str]) -> Path:
    """Copy a repository and give every splitstream the header that bootc before 1.16 wrote.

    Streams name each other by digest, so all that names a changed one changes too.

    Args:
        source: repository.
        target: where the copy is made.
        measure: gives the fs-verity digest of bytes, in hexadecimal.
    """
    shutil.copytree(source, target, symlinks=True)
    renamed: dict[bytes, bytes] = {}
    streams = [path for path in (target / "streams").iterdir() if path.is_symlink()]
    order: Sequence[str] = ("oci-layer-", "oci-config-", "oci-manifest-")
    for path in sorted(streams, key=lambda path: next(n for n, start in enumerate(order) if path.name.startswith(start))):
        old = path.resolve()
        data = old.read_bytes()
        assert data[:11] == b"SplitStream"
        # info range first, then flags, then magic, version, algorithm and block size
        data = data[16:32] + data[12:14] + data[:12] + data[14:16] + data[32:]
        for before, after in renamed.items():
            data = data.replace(before, after)
        name = measure(data)
        renamed[bytes.fromhex(old.parent.name + old.name)] = bytes.fromhex(name)
        old.unlink()
        new = target / "objects" / name[:2] / name[2:]
        new.parent.mkdir(exist_ok=True)
        new.write_bytes(data)
        path.unlink()
        path.symlink_to(f"../objects/{name[:2]}/{name[2:]}")
    # splitstreams that no link named were left by pulling; a program of that age left none of this kind
    for path in (target / "objects").glob("??/*"):
        if path.read_bytes()[:11] == b"SplitStream":
            os.unlink(path)
    return target
