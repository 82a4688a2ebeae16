"""Exporting images: layers are put together again from their splitstreams, bit for bit.

What a repository keeps of a layer is its uncompressed tar; the compressed blob that the manifest names cannot be made
again in general. So the exported image has a manifest of its own that names the layers as they are exported, with the
digest of the original as an annotation; config and image ID stay. Where all the layers come out as the manifest names
them (they were plain, or compress to the same bytes) the original manifest is exported.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from cfs_tags import tags
from cfs_tags.apps import blobs, compress, docker, tarstream
from cfs_tags.apps.plain import ORIGINAL_DIGEST, PlainLayer, plain_manifest
from cfs_tags.apps.pump import Pump
from cfs_tags.apps.targets import ArchiveTarget, LayoutTarget
from cfs_tags.apps.workplace import WorkDirectory, run
from cfs_tags.errors import DigestMismatch, InvalidArgument, MissingObject
from cfs_tags.formats import oci, splitstream
from cfs_tags.repo import contents
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.values import Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.apps.targets import BlobWriter, Target
    from cfs_tags.apps.workplace import Machine
    from cfs_tags.repo.contents import StoredImage, StoredLayer
    from cfs_tags.repo.store import ReadRepo

__all__ = ["COMPRESSIONS", "Exported", "ExportedLayer", "Plan", "execute", "parse_destination", "plan"]

COMPRESSIONS = ("none", "gzip", "zstd")
"""How layers can be written."""

_KEPT_ANNOTATIONS = "org.opencontainers.image."


class Destination(NamedTuple):
    """Where an image goes: ``transport`` as for skopeo, ``path`` and, for ``oci`` and ``oci-archive``, the name there."""

    text: str
    transport: str
    path: str
    name: str | None


class ExportedLayer(NamedTuple):
    """A layer as it is written: ``media_type``, ``digest`` and ``size`` in bytes."""

    media_type: str
    digest: Digest
    size: int


class Plan(NamedTuple):
    """What an export comes to.

    Attributes:
        name: as it was given.
        destination: where to.
        image: what.
        raw: the manifest in the repository.
        sizes: bytes of each layer as it is kept.
        is_tar: for each layer, whether it is a tar and may be compressed.
        compression: of the layers.
    """

    name: str
    destination: Destination
    image: StoredImage
    raw: bytes
    sizes: tuple[int, ...]
    is_tar: tuple[bool, ...]
    compression: str


class Exported(NamedTuple):
    """What became of an export.

    Attributes:
        plan: what was wanted.
        digest: of the manifest that was written.
        layers: as they were written.
    """

    plan: Plan
    digest: Digest
    layers: tuple[ExportedLayer, ...]

    @property
    def is_original(self) -> bool:
        """Whether the manifest is the one in the repository."""
        return self.digest == self.plan.image.digest


def parse_destination(text: str) -> Destination:
    """``oci:DIR[:NAME]``, ``oci-archive:FILE[:NAME]``, or anything that skopeo knows.

    Raises:
        InvalidArgument: no transport is named.
    """
    transport, colon, rest = text.partition(":")
    if not colon or not rest or not transport.replace("-", "").isalnum() or "\0" in text:
        reason = "names no transport: write oci:DIR:NAME, oci-archive:FILE:NAME or docker://NAME"
        raise InvalidArgument(argument="DEST", value=text, reason=reason)
    if transport not in ("oci", "oci-archive"):
        return Destination(text, transport, rest, None)
    path, colon, name = rest.partition(":")  # as skopeo reads it
    return Destination(text, transport, path, name or None)


def plan(repo: ReadRepo, name: str, destination: Destination, compression: str = "none") -> Plan:
    """Look what there is to export.  Writes nothing.

    Args:
        repo: where from.
        name: anything that :func:`cfs_tags.tags.resolve` knows.
        destination: where to.
        compression: of the layers, one of :data:`COMPRESSIONS`.

    Raises:
        TagNotFound, TargetNotFound, AmbiguousName: there is no such image.
        DamagedError: it is not whole.
    """
    digest = tags.resolve(repo, name)
    image = contents.load(repo, digest)
    raw = contents.raw_manifest(repo, digest)
    sizes, is_tar = [], []
    for layer in image.layers:
        with tarstream.opened(repo, _object(layer), f"layer {layer.descriptor.digest}") as stream:
            sizes.append(stream.stream_size)
            is_tar.append(stream.content_type == splitstream.CONTENT_TYPE_LAYER)
    return Plan(name, destination, image, raw, tuple(sizes), tuple(is_tar), compression)


def execute(
    repo: ReadRepo,
    plan: Callable[[], Plan],
    machine: Machine,
    timeout: float = DEFAULT_TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Plan an export with the repository locked (shared), and carry it out; the lock is left before skopeo uploads.

    Args:
        repo: where from.
        plan: makes the plan.
        machine: where other programs and temporary files are.
        timeout: seconds to wait for the lock, and for others that write the index of the same layout.
        progress: is told how many bytes of layers were read, and of how many.

    Raises:
        DigestMismatch, FormatError, MissingObject: the repository does not give what it should; the destination names nothing.
        TargetExists: the archive is there already.
        ProgramMissing, ProgramFailed: skopeo.
        SystemFailure: the system refused.
    """
    with ExitStack() as stack:
        with repo.locked("shared", timeout):
            wanted = plan()
            where = wanted.destination
            if where.transport in ("oci", "oci-archive"):
                target: Target = LayoutTarget(where.path, timeout) if where.transport == "oci" else ArchiveTarget(where.path)
                name = where.name or (None if wanted.name.startswith("@") else wanted.name)
                return _write(repo, wanted, target, name, progress)
            skopeo = machine.need_skopeo(f"for images in {where.transport}:")
            place = stack.enter_context(WorkDirectory(machine))
            done = _write(repo, wanted, LayoutTarget(place.path), "image", progress)
        # an upload takes its time, and needs the repository no more
        run(skopeo, "copy", "--quiet", f"oci:{place.path}:image", where.text)
        return done


def _write(
    repo: ReadRepo, wanted: Plan, target: Target, name: str | None, progress: Callable[[int, int], None] | None
) -> Exported:
    try:
        layers = _Layers(repo, wanted, target, progress).write()
        image = wanted.image
        raw = _manifest(wanted, layers)
        digest = image.digest if raw is wanted.raw else _sha256(raw)
        _put(target, image.manifest.config.digest, contents.raw_config(repo, image.digest))
        _put(target, digest, raw)
        entry: dict[str, Any] = {"mediaType": oci.MEDIA_TYPE_MANIFEST, "digest": digest, "size": len(raw)}
        if not image.manifest.is_container:
            artifact_type = image.manifest.artifact_type or image.manifest.config.media_type
            entry["artifactType"] = artifact_type
        target.finish(entry, name)
    finally:
        target.close()
    return Exported(wanted, digest, tuple(layers))


class _Layers:
    """Writes the layers of an image."""

    def __init__(self, repo: ReadRepo, wanted: Plan, target: Target, progress: Callable[[int, int], None] | None) -> None:
        self._repo = repo
        self._wanted = wanted
        self._target = target
        self._progress = progress
        self._total = sum(wanted.sizes)
        self._read = 0

    def write(self) -> list[ExportedLayer]:
        made: dict[ObjectId, ExportedLayer] = {}
        result = []
        wanted = self._wanted
        for layer, size, is_tar in zip(wanted.image.layers, wanted.sizes, wanted.is_tar, strict=True):
            stream = _object(layer)
            if stream not in made:
                if is_tar and wanted.compression != "none":
                    made[stream] = self._compressed(layer, stream)
                else:
                    made[stream] = self._plain(layer, stream, size, is_tar)
            result.append(made[stream])
        return result

    def _plain(self, layer: StoredLayer, stream: ObjectId, size: int, is_tar: bool) -> ExportedLayer:
        kept = layer.diff_id if layer.diff_id is not None else layer.descriptor.digest
        digest = kept if is_tar else layer.descriptor.digest
        media_type = layer.descriptor.media_type
        if digest != layer.descriptor.digest:
            media_type = docker.PLAIN
        if not self._target.has(digest, size):
            blob = self._target.blob(digest, size)
            try:
                self._pump(stream, digest, blob)
                blob.commit(digest)
            finally:
                blob.close()
        return ExportedLayer(media_type, digest, size)

    def _pump(self, stream: ObjectId, digest: Digest, blob: BlobWriter) -> None:
        found = blobs.hasher(digest)

        def take(data: bytes) -> None:
            found.update(data)
            blob.write(data)

        with Pump(take) as pump:
            for data in tarstream.layer_chunks(self._repo, stream):
                pump.put(data)
                self._tell(len(data))
        _check(digest, found)

    def _compressed(self, layer: StoredLayer, stream: ObjectId) -> ExportedLayer:
        kept = layer.diff_id if layer.diff_id is not None else layer.descriptor.digest
        plain = blobs.hasher(kept)
        packed = blobs.hasher(Digest("sha256:"))
        size = 0
        blob = self._target.blob(None, None)
        compressor = compress.compressor(self._wanted.compression)

        def take(data: bytes) -> None:
            packed.update(data)
            blob.write(data)

        try:
            for data in tarstream.layer_chunks(self._repo, stream):
                plain.update(data)
                for piece in compressor.feed(data):
                    size += len(piece)
                    take(piece)
                self._tell(len(data))
            for piece in compressor.finish():
                size += len(piece)
                take(piece)
            _check(kept, plain)
            digest = Digest(f"sha256:{packed.hexdigest()}")
            if not self._target.has(digest, size):
                blob.commit(digest)
        finally:
            compressor.close()
            blob.close()
        media_type = docker.GZIP if self._wanted.compression == "gzip" else docker.ZSTD
        return ExportedLayer(media_type, digest, size)

    def _tell(self, count: int) -> None:
        self._read += count
        if self._progress is not None:
            self._progress(self._read, self._total)


def _object(layer: StoredLayer) -> ObjectId:
    if layer.object is None:
        raise MissingObject(object="of its stream", needed_by=f"layer {layer.descriptor.digest}")
    return layer.object


def _check(digest: Digest, found: Any) -> None:
    text = f"{digest.algorithm}:{found.hexdigest()}"
    if text != digest:
        raise DigestMismatch(path=f"layer {digest}", wanted=digest, found=text)


def _manifest(wanted: Plan, layers: list[ExportedLayer]) -> bytes:
    """The manifest for the layers as they were written; the original's own bytes where it is that."""
    image = wanted.image
    changed = [None if old.descriptor.digest == new.digest else new for old, new in zip(image.layers, layers, strict=True)]
    if not any(changed):
        return wanted.raw
    if wanted.compression == "none":
        plain = [None if new is None else PlainLayer(new.digest, new.size) for new in changed]
        return plain_manifest(wanted.raw, image.digest, plain)
    document: dict[str, Any] = json.loads(wanted.raw)
    for number, new in enumerate(changed):
        if new is not None:
            annotations = document["layers"][number].get("annotations") or {}
            made: dict[str, Any] = {"mediaType": new.media_type, "digest": new.digest, "size": new.size}
            kept = {key: value for key, value in annotations.items() if key.startswith(_KEPT_ANNOTATIONS)}
            if kept:
                made["annotations"] = kept
            document["layers"][number] = made
    document["annotations"] = {**(document.get("annotations") or {}), ORIGINAL_DIGEST: image.digest}
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _put(target: Target, digest: Digest, data: bytes) -> None:
    if target.has(digest, len(data)):
        return
    blob = target.blob(digest, len(data))
    try:
        blob.write(data)
        blob.commit(digest)
    finally:
        blob.close()


def _sha256(data: bytes) -> Digest:
    import hashlib

    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
