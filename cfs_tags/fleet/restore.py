"""Pushing an image that a registry has lost, from the repository.

A repository keeps layers as plain tars.  What the registry still has is left as it is; a layer that it has not, and that was
compressed, cannot be made again bit for bit: it is compressed anew, and the manifest, which names it, gets another digest.  The
original's digest stands in an annotation.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cfs_tags.apps import layer_tar
from cfs_tags.apps.exporting import compress
from cfs_tags.apps.manifests import NewLayer, with_layers
from cfs_tags.errors import DamagedError, MissingObject
from cfs_tags.formats import splitstream
from cfs_tags.repo import images
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cfs_tags.remote.client import Client
    from cfs_tags.repo.images import StoredLayer
    from cfs_tags.repo.store import ReadRepo

_COMPRESSION = "gzip"


def restore(
    repo: ReadRepo,
    client: Client,
    digest: Digest,
    target: str,
    *,
    timeout: float,
    progress: Callable[[int], None] | None = None,
) -> bytes:
    """Upload what a repository of the registry lacks of an image; the manifest is left to the caller.

    Args:
        repo: where the image is.
        client: of the registry.
        digest: of the manifest.
        target: the repository of the registry.
        timeout: how long the repository lock is waited for.
        progress: called with the bytes of layers that were read since.

    Returns:
        The manifest to put: the original, or where layers were compressed anew another one.

    Raises:
        TargetNotFound, DamagedError: the repository does not have all of it either.
        CfsTagsError: the registry refused; see :class:`Client`.
    """
    with repo.locked("shared", timeout):
        image = images.load(repo, digest)
        raw = images.raw_manifest(repo, digest)
        config = image.manifest.config.digest
        if not client.has_blob(config, target):
            client.upload(config, [images.raw_config(repo, digest)], target)
        made: dict[Digest, NewLayer | None] = {}
        for layer in image.layers:
            key = layer.descriptor.digest
            if key not in made:
                made[key] = None if client.has_blob(key, target) else _upload(repo, client, layer, target, progress)
        return with_layers(raw, digest, [made[layer.descriptor.digest] for layer in image.layers])


def _upload(
    repo: ReadRepo, client: Client, layer: StoredLayer, target: str, progress: Callable[[int], None] | None
) -> NewLayer | None:
    """Upload a layer; what stands in for it in the manifest, None where it is the very same."""
    if layer.object is None:
        raise MissingObject(object="of its stream", needed_by=f"layer {layer.descriptor.digest}")
    kept = layer.diff_id or layer.descriptor.digest
    with layer_tar.opened(repo, layer.object, f"layer {kept}") as stream:
        is_tar = stream.content_type == splitstream.CONTENT_TYPE_LAYER
    plain = hashlib.new(kept.algorithm)

    def read() -> Iterator[bytes]:
        for data in layer_tar.blocks(repo, layer.object):  # type: ignore[arg-type]
            plain.update(data)
            if progress is not None:
                progress(len(data))
            yield bytes(data)
        found = f"{kept.algorithm}:{plain.hexdigest()}"
        if found != kept:
            raise DamagedError("digest-mismatch", path=f"layer {kept}", wanted=kept, found=found)

    if not is_tar or kept == layer.descriptor.digest:
        client.upload(layer.descriptor.digest, read(), target)
        return None
    packed, size = hashlib.sha256(), 0
    compressor = compress.compressor(_COMPRESSION)

    def compressed() -> Iterator[bytes]:
        for data in read():
            yield from compressor.feed(data)
        yield from compressor.finish()

    def counted() -> Iterator[bytes]:
        nonlocal size
        for piece in compressed():
            packed.update(piece)
            size += len(piece)
            yield piece

    try:
        client.upload(lambda: Digest(f"sha256:{packed.hexdigest()}"), counted(), target)
    finally:
        compressor.close()
    return NewLayer(Digest(f"sha256:{packed.hexdigest()}"), size, _COMPRESSION)
