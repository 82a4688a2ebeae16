"""Record the host of ``examples/``: run by hand, when its content is to change.

    .venv/bin/python scripts/record_host.py [DIRECTORY]

A sysroot is filled by the real cfsctl (its repository: pulled, tagged and given boot images as bootc does it) and gets
state directories, boot entries and a staged file in the shapes that bootc 1.16.9 writes.  What comes out is
``host.tar.gz`` and ``host.json`` (names and digests), in ``examples/`` or DIRECTORY.  Recording again gives the same
``host.json``; of the archive only the objects of manifest streams differ, because cfsctl 0.9.4 lists the layers of a
manifest in no fixed order.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.images import EPOCH, Image, Layer, app_image, base_layer, host_image, pull_image  # noqa: E402
from support.peers import Cfsctl, find_peer  # noqa: E402

KERNEL_ARGUMENTS = "root=UUID=11111111-2222-3333-4444-555555555555 rw"
LARGEST = 400_000
"""Bytes that the archive may have at most."""


class Deployment(NamedTuple):
    """One deployment: ``id`` is its boot EROFS image, ``plain`` the image of the unchanged root file system."""

    version: str
    image: Image
    reference: str
    id: str
    plain: str


def main(target: Path) -> None:
    """Record into the directory ``target``."""
    program = find_peer("cfsctl")
    if program is None:
        sys.exit("record_host: cfsctl is needed: .ci/run builds it")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.umask(0o022)
        cfsctl = Cfsctl(program, work)
        sysroot = work / "host"
        facts = build_host(cfsctl, sysroot, work / "layout")
        cfsctl.assert_healthy(sysroot / "composefs")
        archive = pack(sysroot)
    if len(archive) > LARGEST:
        sys.exit(f"record_host: {len(archive)} bytes, {LARGEST} at most")
    (target / "host.tar.gz").write_bytes(archive)
    (target / "host.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{target / 'host.tar.gz'}: {len(archive)} bytes")


def build_host(cfsctl: Cfsctl, sysroot: Path, layout: Path) -> dict[str, Any]:
    """Fill ``sysroot``; returns what ``host.json`` says."""
    repo = sysroot / "composefs"
    repo.mkdir(parents=True, mode=0o700)
    cfsctl(None, "init", "--insecure", repo)

    common = base_layer("os-common", 30_000)
    web_and_db = base_layer("app-runtime", 30_000)
    rollback = deploy(cfsctl, repo, layout, "41.20260101.0", common, boot_content=True)
    booted = deploy(cfsctl, repo, layout, "41.20260201.0", common, boot_content=False)
    staged = deploy(cfsctl, repo, layout, "41.20260301.0", common, boot_content=True)
    apps = {"quay.io/apps/web:1": "web", "quay.io/apps/db:2": "db"}
    tagged = {tag: app_image(layout, name, [web_and_db], size=8_000) for tag, name in apps.items()}
    for tag, image in tagged.items():
        pull_image(cfsctl, repo, image, tag)

    (sysroot / "state" / "os" / "default" / "var").mkdir(parents=True)
    # The rollback deployment is from before bootc 1.15: no manifest_digest in its origin, an .imginfo file instead.
    write_state(sysroot, rollback, manifest_digest=False)
    write_state(sysroot, booted, manifest_digest=True)
    write_state(sysroot, staged, manifest_digest=True)
    for deployment in (rollback, booted, staged):
        write_kernel(sysroot, deployment)
    write_entries(sysroot / "boot/loader/entries", primary=booted, secondary=rollback)
    write_entries(sysroot / "boot/loader/entries.staged", primary=staged, secondary=booted)
    write(
        sysroot / "run/composefs/staged-deployment",
        json.dumps({"depl_id": staged.id, "finalization_locked": False}, separators=(",", ":")),
    )
    return {
        "booted": booted.id,
        "staged": staged.id,
        "rollback": rollback.id,
        "deployments": {
            deployment.id: {
                "version": deployment.version,
                "image": deployment.reference,
                "manifest": deployment.image.manifest_digest,
                "config": deployment.image.config_digest,
                "layers": deployment.image.diff_ids,
                "plain_image": deployment.plain,
            }
            for deployment in (booted, rollback, staged)
        },
        "apps": {
            tag: {"manifest": image.manifest_digest, "config": image.config_digest, "layers": image.diff_ids}
            for tag, image in tagged.items()
        },
    }


def deploy(cfsctl: Cfsctl, repo: Path, layout: Path, version: str, common: Layer, *, boot_content: bool) -> Deployment:
    """Pull a host image and tag it as bootc does."""
    image = host_image(layout, version, boot_content=boot_content, shared=[common])
    tag = f"localhost/bootc-{image.manifest_digest}"
    pull_image(cfsctl, repo, image, tag, bootable=True)
    plain, boot = cfsctl.images_of(repo, tag)
    assert plain is not None
    assert boot is not None
    assert (plain != boot) is boot_content
    return Deployment(version, image, "docker://quay.io/example/os:41", boot, plain)


def write_state(sysroot: Path, deployment: Deployment, *, manifest_digest: bool) -> None:
    """The state directory of a deployment: origin file, and ``.imginfo`` where the origin has no digest."""
    home = sysroot / "state" / "deploy" / deployment.id
    (home / "etc").mkdir(parents=True)
    (home / "var").symlink_to("../../os/default/var")
    origin = f"""\
[origin]
container-image-reference = ostree-unverified-image:{deployment.reference}

[boot]
boot_type = bls
digest = {hashlib.sha256(b"".join(kernel(deployment))).hexdigest()}
"""
    if manifest_digest:
        origin += f"\n[image]\nmanifest_digest = {deployment.image.manifest_digest}\n"
    else:
        # parsed and written again, so that the bytes are not those with the digest
        info = {"config": deployment.image.config, "manifest": deployment.image.manifest}
        write(home / f"{deployment.id}.imginfo", json.dumps(info))
    write(home / f"{deployment.id}.origin", origin)


def kernel(deployment: Deployment) -> tuple[bytes, bytes]:
    """Kernel and initial file system of the image; bootc's boot digest is the SHA-256 of both, one after the other."""
    files = {entry.name: entry.content for layer in deployment.image.layers for entry in layer.entries}
    found = {name.rpartition("/")[2]: content for name, content in files.items() if "/modules/" in name}
    return found["vmlinuz"], found["initramfs.img"]


def write_kernel(sysroot: Path, deployment: Deployment) -> None:
    """What the boot loader loads."""
    home = sysroot / "boot" / f"bootc_composefs-{deployment.id}"
    for name, content in zip(("vmlinuz", "initrd"), kernel(deployment), strict=True):
        write(home / name, content)


def write_entries(where: Path, primary: Deployment, secondary: Deployment) -> None:
    """Two boot entries; GRUB goes by the file names, systemd-boot by the sort keys."""
    for priority, sort_key, deployment in ((1, 0, primary), (0, 1, secondary)):
        home = f"/boot/bootc_composefs-{deployment.id}"
        write(
            where / f"bootc_fake-{deployment.version}-{priority}.conf",
            f"title Fake {deployment.version}\n"
            f"version {deployment.version}\n"
            f"linux {home}/vmlinuz\n"
            f"initrd {home}/initrd\n"
            f"options {KERNEL_ARGUMENTS} composefs=?{deployment.id}\n"
            f"sort-key bootc-fake-{sort_key}\n",
        )


def write(path: Path, content: str | bytes) -> None:
    """Write a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def pack(sysroot: Path) -> bytes:
    """A tar.gz of the directory's content, the same for the same content: names sorted, one owner, one time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(sysroot.rglob("*")):
            member = archive.gettarinfo(path, path.relative_to(sysroot).as_posix())
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mtime = EPOCH
            if member.isreg():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)
    return gzip.compress(buffer.getvalue(), compresslevel=9, mtime=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "examples")
