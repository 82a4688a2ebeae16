"""What a manifest stands for in the repository: config, layers, EROFS images; and what of it is missing.

Named refs are followed by *object digest*, whether or not a link in ``streams/`` names that object: a config stream that
was written again for another manifest leaves the first manifest's object without its link, and it is whole all the same
(composefs-rs 0.9.4 follows them the same way, ``oci_image.rs``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import (
    DamagedError,
    DigestMismatch,
    FormatError,
    MissingObject,
    TargetNotFound,
    UnsupportedError,
    UnsupportedFeature,
)
from cfs_tags.formats import layout, splitstream
from cfs_tags.values import ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfs_tags.formats.oci import Descriptor, ImageConfig, Manifest
    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.store import ReadRepo

__all__ = ["EROFS_KEY", "StoredImage", "StoredLayer", "load", "missing_behind", "missing_parts", "raw_config", "raw_manifest"]

EROFS_KEY = "composefs.image"
"""Named refs of a config that start with this lead to EROFS images (composefs-rs 0.9.4, ``composefs-oci/src/lib.rs``)."""
BOOT_KEY = "composefs.image.boot"
"""Those that start with this lead to images made for booting."""


class StoredLayer(NamedTuple):
    """A layer: its descriptor in the manifest, its diff_id (None in an artifact) and its splitstream's object, None
    where no named ref leads to one."""

    descriptor: Descriptor
    diff_id: Digest | None
    object: ObjectId | None


class StoredImage(NamedTuple):
    """A manifest and what it leads to.

    ``object`` and ``config_object`` are splitstream objects; ``config`` is None for an artifact; ``erofs`` maps the
    config's keys (``composefs.image.v1``, ``composefs.image.boot.v1``, …) to EROFS objects.
    """

    digest: Digest
    object: ObjectId
    manifest: Manifest
    config_object: ObjectId
    config: ImageConfig | None
    layers: tuple[StoredLayer, ...]
    erofs: Mapping[str, ObjectId]


def load(repo: ReadRepo, digest: Digest) -> StoredImage:
    """Read a manifest with its config.

    Raises:
        TargetNotFound: no such manifest.
        DamagedError: its stream, bytes or config are missing, malformed or have another digest.
    """
    from cfs_tags.formats import oci

    object_id, stream, data = _manifest(repo, digest)
    manifest = oci.parse_manifest(data)
    config_object, config_stream = _config_stream(repo, digest, stream, manifest)
    config = None
    refs = stream.named_refs
    if manifest.is_container:
        config = oci.parse_config(_sole(repo, config_stream, manifest.config.digest, f"config of {digest}"))
        refs = config_stream.named_refs
    diff_ids = config.diff_ids if config is not None else ()
    layers = []
    for index, descriptor in enumerate(manifest.layers):
        diff_id = diff_ids[index] if index < len(diff_ids) else None
        key = diff_id if config is not None else descriptor.digest
        layers.append(StoredLayer(descriptor, diff_id, refs.get(key) if key is not None else None))
    erofs = {key: target for key, target in config_stream.named_refs.items() if key.startswith(EROFS_KEY)}
    return StoredImage(digest, object_id, manifest, config_object, config, tuple(layers), erofs)


def raw_manifest(repo: ReadRepo, digest: Digest) -> bytes:
    """The bytes of a manifest, checked against its digest.  Raises as :func:`load`."""
    return _manifest(repo, digest)[2]


def raw_config(repo: ReadRepo, digest: Digest) -> bytes:
    """The bytes of a manifest's config, checked against its digest.  Raises as :func:`load`."""
    from cfs_tags.formats import oci

    _, stream, data = _manifest(repo, digest)
    manifest = oci.parse_manifest(data)
    return _sole(repo, _config_stream(repo, digest, stream, manifest)[1], manifest.config.digest, f"config of {digest}")


def missing_parts(repo: ReadRepo, digest: Digest) -> tuple[str, ...]:
    """What a manifest needs and the repository does not have, one line each; nothing where it is complete.

    Looks at the streams of manifest, config and layers, at the raw manifest and config, and at the EROFS images that the
    config names; not at the files inside layers, which is what ``fsck`` is for.

    Raises:
        TargetNotFound: no such manifest.
        FormatError, DigestMismatch: something is there and is not what it should be.
    """
    from cfs_tags.formats import oci

    try:
        _, stream, data = _manifest(repo, digest)
    except MissingObject as error:
        return (error.message,)
    manifest = oci.parse_manifest(data)
    try:
        _, config_stream = _config_stream(repo, digest, stream, manifest)
    except MissingObject as error:
        return (error.message,)
    lines = []
    try:
        _sole(repo, config_stream, manifest.config.digest, f"config of {digest}")
    except MissingObject as error:
        lines.append(error.message)
    wanted = {name: target for name, target in stream.named_refs.items() if not name.startswith("config:")}
    wanted.update(config_stream.named_refs)
    for name, target in wanted.items():
        if not repo.has_object(target):
            kind = "EROFS image" if name.startswith(EROFS_KEY) else "layer"
            lines.append(f"{kind} {name} (object {target[:12]}…) is missing")
    return tuple(lines)


def missing_behind(repo: ReadRepo, path: str, link: str) -> tuple[str, ...]:
    """What is missing behind a ref, one line each; whatever is wrong with it is a line too.

    Args:
        repo: where.
        path: of the ref.
        link: its text.
    """
    try:
        name = layout.ref_target(path, link)
        tree = path.partition("/")[0]
        target = repo.stream_object(name) if tree == layout.STREAMS else repo.image_object(name)
        if target is None:
            return (f"{tree}/{name} is gone",)
        if not repo.has_object(target):
            return (f"object {target[:12]}… of {tree}/{name} is missing",)
        digest = name.manifest_digest if tree == layout.STREAMS else None
        return missing_parts(repo, digest) if digest is not None else ()
    except (DamagedError, TargetNotFound, UnsupportedError) as error:
        return (error.message,)


def _manifest(repo: ReadRepo, digest: Digest) -> tuple[ObjectId, SplitStream, bytes]:
    content_id = ContentId.manifest(digest)
    object_id = repo.stream_object(content_id)
    if object_id is None:
        raise TargetNotFound(kind="manifest", name=digest)
    stream = repo.stream(object_id, content_id)
    _check_type(stream, splitstream.CONTENT_TYPE_MANIFEST, content_id)
    return object_id, stream, _sole(repo, stream, digest, content_id)


def _config_stream(repo: ReadRepo, digest: Digest, stream: SplitStream, manifest: Manifest) -> tuple[ObjectId, SplitStream]:
    key = f"config:{manifest.config.digest}"
    object_id = stream.named_refs.get(key)
    if object_id is None:
        raise FormatError(structure=f"manifest stream {digest}", offset=0, wanted=f"a named ref {key}", found="none")
    config_stream = repo.stream(object_id, f"manifest {digest}")
    _check_type(config_stream, splitstream.CONTENT_TYPE_CONFIG, f"config of {digest}")
    return object_id, config_stream


def _check_type(stream: SplitStream, wanted: int, what: str) -> None:
    if stream.content_type != wanted:
        raise FormatError(
            structure=what, offset=0, wanted=f"content type {wanted:#x}", found=f"content type {stream.content_type:#x}"
        )


def _sole(repo: ReadRepo, stream: SplitStream, digest: Digest, what: str) -> bytes:
    import hashlib

    data = repo.sole_content(stream, what)
    if digest.algorithm not in ("sha256", "sha384", "sha512"):
        raise UnsupportedFeature(structure=what, features=(f"digests by {digest.algorithm}",))
    found = f"{digest.algorithm}:{hashlib.new(digest.algorithm, data).hexdigest()}"
    if found != digest:
        raise DigestMismatch(path=what, wanted=digest, found=found)
    return data
