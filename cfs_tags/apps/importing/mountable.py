"""Making an imported image mountable: cfsctl makes the EROFS image, this program does not."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

from cfs_tags.apps import layer_tar, platforms
from cfs_tags.apps.workdir import Machine, WorkDirectory, run
from cfs_tags.errors import SystemFailure
from cfs_tags.formats import oci, repometa
from cfs_tags.repo import fsops, images, layout
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.transaction.change import RefChange
from cfs_tags.values import ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfs_tags.apps.importing.plan import Import, PlannedImage
    from cfs_tags.repo.store import ReadRepo, WriteRepo

_TEMPORARY = "cfs-tags-mountable-"
_PIECE = 1 << 20
_LEFT_OVER = re.compile(_TEMPORARY + r"(?:([0-9]{1,9})-)?[0-9a-f]{16}", re.ASCII)


def make_mountable(repo: WriteRepo, wanted: Import, machine: Machine) -> None:
    """Have cfsctl make the EROFS images of container images whose content is in the repository.

    It is given a layout of manifest and config alone: it reads no layer that the repository has (composefs-rs 0.9.4,
    ``oci_layout.rs``).  The tag that it makes along with the EROFS image is removed again, also where it is stopped.

    Raises:
        CfsTagsError (program-missing): there is no cfsctl.
        CfsTagsError (program-failed): it cannot: there is no ``/usr`` in the image, or a layer has no end.
    """
    machine.need_cfsctl("to make an EROFS image")
    for image in wanted.images:
        if image.manifest.is_container:
            make_image(repo, image, machine)


def make_image(repo: WriteRepo, image: PlannedImage, machine: Machine, *options: str) -> None:
    """The same for one image; ``options`` are those of ``cfsctl oci pull``."""
    cfsctl = machine.need_cfsctl("to make an EROFS image")
    with WorkDirectory(machine) as place:
        try:
            _write_layout(repo, image, place.fd)
        except OSError as error:
            raise SystemFailure.of(error, "write", place.path) from error
        tag = f"{_TEMPORARY}{os.getpid()}-{image.digest.hex[:16]}"
        try:
            run(cfsctl, "--repo", os.fspath(repo.path), "oci", "pull", *options, f"oci:{place.path}", tag)
        finally:
            _untag(repo, tag)


def remake_images(repo: WriteRepo, image: PlannedImage, machine: Machine, *options: str) -> None:
    """Put EROFS images that cfsctl makes of an image in the place of those whose bytes are wrong (``repo.distrusted``).

    cfsctl takes an object that is there for right.  So it works in a repository of its own, whose objects are links to those
    of the image, and what it has made there is stored as any other object is.

    Raises:
        CfsTagsError (program-missing, program-failed): as :func:`make_mountable`.
    """
    cfsctl = machine.need_cfsctl("to make an EROFS image")
    stored = images.load(repo, image.digest)
    streams = {ContentId.manifest(image.digest): stored.object}
    streams[ContentId.config(image.manifest.config.digest)] = stored.config_object
    streams |= {ContentId.layer(one.diff_id): one.object for one in stored.layers if one.diff_id and one.object}
    objects = set(streams.values())
    for target in streams.values():
        with layer_tar.opened(repo, target) as stream:
            objects.update(stream.object_refs)
    with WorkDirectory(machine) as place:
        there = os.path.abspath(repo.path)
        try:
            _write_layout(repo, image, place.fd)
            for path in ("repo", *(f"repo/{tree}" for tree in (layout.OBJECTS, layout.STREAMS, layout.IMAGES))):
                fsops.make_directory(place.fd, path)
            fsops.create_file(place.fd, f"repo/{layout.META}", repometa.render(repo.meta or repometa.fresh(repo.algorithm)))
            for stream_name, target in streams.items():
                fsops.make_link(place.fd, f"repo/{layout.STREAMS}/{stream_name}", layout.object_link(target))
            for target in objects:
                path = layout.object_path(target)
                fsops.make_directory(place.fd, os.path.dirname(f"repo/{path}"))
                fsops.make_link(place.fd, f"repo/{path}", f"{there}/{path}")
            run(cfsctl, "--repo", f"{place.path}/repo", "oci", "pull", *options, f"oci:{place.path}", "image")
            store = ObjectStore(repo)
            for name in os.listdir(f"{place.path}/repo/{layout.IMAGES}"):
                if name in repo.distrusted:
                    path = layout.object_path(ObjectId.parse(name, repo.algorithm))
                    with open(f"{place.path}/repo/{path}", "rb") as file, store.writer() as made:
                        while piece := file.read(_PIECE):
                            made.write(piece)
                        made.finish()
        except OSError as error:
            raise SystemFailure.of(error, "write", place.path) from error


def _untag(repo: WriteRepo, tag: str) -> None:
    try:
        fsops.remove(repo.fd, f"{layout.SHARED_TAGS}/{tag}")
        fsops.sync(repo.fd, layout.SHARED_TAGS)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SystemFailure.of(error, "delete", os.path.join(repo.path, layout.SHARED_TAGS, tag)) from error


def left_overs(repo: ReadRepo) -> Iterator[RefChange]:
    """Removal of such tags of processes that were killed."""
    for name in repo.names(layout.SHARED_TAGS) or ():
        match = _LEFT_OVER.fullmatch(name)
        if match is not None and (match[1] is None or not os.path.exists(f"/proc/{match[1]}")):
            path = f"{layout.SHARED_TAGS}/{name}"
            yield RefChange(path, repo.read_link(path), None, "delete")


def _write_layout(repo: WriteRepo, image: PlannedImage, fd: int) -> None:
    fsops.make_directory(fd, "blobs")
    blobs = {image.digest: image.raw, image.manifest.config.digest: images.raw_config(repo, image.digest)}
    for digest, data in blobs.items():
        fsops.make_directory(fd, f"blobs/{digest.algorithm}")
        fsops.create_file(fd, f"blobs/{digest.algorithm}/{digest.hex}", data)
    # cfsctl takes the image for this machine, and does not look at the config where the index says what it is for
    mine = platforms.this_machine()
    platform = {"architecture": mine.architecture, "os": mine.os}
    if mine.variant is not None:
        platform["variant"] = mine.variant
    entry = {"mediaType": oci.MEDIA_TYPE_MANIFEST, "digest": image.digest, "size": len(image.raw), "platform": platform}
    fsops.create_file(fd, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    fsops.create_file(fd, oci.LAYOUT_FILE, oci.LAYOUT)
