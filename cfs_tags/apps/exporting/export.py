"""The plan of an export, and what carries it out."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from threading import Semaphore, Thread
from types import TracebackType
from typing import Any, NamedTuple, Self

from cfs_tags.apps import blobs, layer_tar
from cfs_tags.apps.exporting import compress
from cfs_tags.apps.exporting.target import ArchiveTarget, BlobWriter, LayoutTarget, Target
from cfs_tags.apps.manifests import NewLayer, with_layers
from cfs_tags.apps.workdir import Machine, WorkDirectory, run
from cfs_tags.errors import DamagedError, MissingObject, UsageError
from cfs_tags.formats import oci, splitstream
from cfs_tags.repo import images
from cfs_tags.repo.images import StoredImage, StoredLayer
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags import names
from cfs_tags.values import Digest, ObjectId

COMPRESSIONS = ("none", "gzip", "zstd")
"""How layers can be written."""


_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOCKER_NAME = re.compile(
    rf"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?", re.ASCII
)
"""What Docker takes for the name of an image (distribution, ``reference/regexp.go``)."""


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
    """The plan of an export.

    Attributes:
        name: as it was given.
        destination: where to.
        image: what.
        raw: the manifest in the repository.
        sizes: bytes of each layer in the repository.
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
        UsageError: no transport is named.
    """
    transport, colon, rest = text.partition(":")
    if not colon or not rest or not transport.replace("-", "").isalnum() or "\0" in text:
        reason = "names no transport: write oci:DIR:NAME, oci-archive:FILE:NAME or docker://NAME"
        raise UsageError("invalid-argument", argument="DEST", value=text, reason=reason)
    if transport not in ("oci", "oci-archive"):
        return Destination(text, transport, rest, None)
    path, colon, name = rest.partition(":")  # as skopeo reads it
    return Destination(text, transport, path, name or None)


def plan_export(repo: ReadRepo, name: str, destination: Destination, compression: str = "none") -> Plan:
    """Look what there is to export.  Writes nothing.

    Args:
        repo: where from.
        name: anything that :func:`cfs_tags.tags.names.resolve` knows.
        destination: where to.
        compression: of the layers, one of :data:`COMPRESSIONS`.

    Raises:
        TagNotFound, TargetNotFound, UsageError: there is no such image.
        DamagedError: it is not whole.
    """
    digest = names.resolve(repo, name)
    image = images.load(repo, digest)
    raw = images.raw_manifest(repo, digest)
    sizes, is_tar = [], []
    for layer in image.layers:
        with layer_tar.opened(repo, _object(layer), f"layer {layer.descriptor.digest}") as stream:
            sizes.append(stream.stream_size)
            is_tar.append(stream.content_type == splitstream.CONTENT_TYPE_LAYER)
    return Plan(name, destination, image, raw, tuple(sizes), tuple(is_tar), compression)


def run_export(
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
        progress: is called with the bytes of layers that were read, and of all.

    Raises:
        DamagedError, MissingObject: something is missing or damaged in the repository; the destination names nothing.
        RefusedError (target-exists): the archive is there already.
        CfsTagsError (program-missing, program-failed): skopeo.
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
        run(skopeo, "copy", "--quiet", f"oci:{place.path}:image", _with_name(where, wanted.name))
        return done


def _write(
    repo: ReadRepo, wanted: Plan, target: Target, name: str | None, progress: Callable[[int, int], None] | None
) -> Exported:
    try:
        layers = _Layers(repo, wanted, target, progress).write()
        image = wanted.image
        raw = _manifest(wanted, layers)
        digest = image.digest if raw is wanted.raw else Digest.of(raw)
        _put(target, image.manifest.config.digest, images.raw_config(repo, image.digest))
        _put(target, digest, raw)
        entry: dict[str, Any] = {"mediaType": oci.MEDIA_TYPE_MANIFEST, "digest": digest, "size": len(raw)}
        if not image.manifest.is_container:
            artifact_type = image.manifest.artifact_type or image.manifest.config.media_type
            entry["artifactType"] = artifact_type
        target.finish(entry, name)
    finally:
        target.close()
    return Exported(wanted, digest, tuple(layers))


def _with_name(where: Destination, name: str) -> str:
    """A destination for skopeo: an archive of Docker's that says no name has the image's, where that is one for Docker."""
    name = name.removeprefix("docker://")
    if where.transport != "docker-archive" or ":" in where.path or _DOCKER_NAME.fullmatch(name) is None:
        return where.text
    return f"{where.text}:{name}"


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
            media_type = oci.MEDIA_TYPE_LAYER
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

        with _Pump(take) as pump:
            for data in layer_tar.blocks(self._repo, stream):
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
            for data in layer_tar.blocks(self._repo, stream):
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
        return ExportedLayer(oci.LAYER_TYPES[self._wanted.compression], digest, size)

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
        raise DamagedError("digest-mismatch", path=f"layer {digest}", wanted=digest, found=text)


def _manifest(wanted: Plan, layers: list[ExportedLayer]) -> bytes:
    """The manifest for the layers as they were written; the original's own bytes where it is that."""
    image = wanted.image
    made = [
        None if old.descriptor.digest == new.digest else NewLayer(new.digest, new.size, wanted.compression)
        for old, new in zip(image.layers, layers, strict=True)
    ]
    return with_layers(wanted.raw, image.digest, made)


def _put(target: Target, digest: Digest, data: bytes) -> None:
    if target.has(digest, len(data)):
        return
    blob = target.blob(digest, len(data))
    try:
        blob.write(data)
        blob.commit(digest)
    finally:
        blob.close()


_AHEAD = 8
"""Blocks that wait at most."""


class _Pump:
    """Calls ``take`` with every block, in order, in a thread of its own: while it hashes and writes one, the next is read.

    A context manager: at the end all is taken.  Where the system gives no thread, each block is taken at once.

    Args:
        take: is called with each block; an error that it raises is raised by :meth:`put`, or at the end of the context.
    """

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = Semaphore(_AHEAD)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)

    def put(self, data: bytes) -> None:
        """Hand over a block; waits while too many are on their way."""
        if self._thread.ident is None:
            self._take(data)
            return
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._queue.put(data)

    def __enter__(self) -> Self:
        with suppress(RuntimeError):
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._take(data)
                except BaseException as error:
                    self._error = error
            self._room.release()
