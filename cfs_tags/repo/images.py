"""What a manifest stands for in the repository: config, layers, EROFS images; and what of it is missing.

Named refs are followed by *object digest*, whether or not a link in ``streams/`` names that object: a config stream that
was written again for another manifest leaves the first manifest's object without its link, although it is complete
(composefs-rs 0.9.4 follows them the same way, ``oci_image.rs``).
"""

from __future__ import annotations

import os
import stat
from functools import cache
from operator import add, attrgetter
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import DamagedError, FormatError, MissingObject, SystemFailure, TargetNotFound, UnsupportedError
from cfs_tags.formats import splitstream
from cfs_tags.repo import layout
from cfs_tags.values import Algorithm, ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cfs_tags.formats.oci import Descriptor, ImageConfig, Manifest
    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.store import ReadRepo

EROFS_KEY = "composefs.image"
"""Named refs of a config that start with this lead to EROFS images (composefs-rs 0.9.4, ``composefs-oci/src/lib.rs``)."""
BOOT_KEY = "composefs.image.boot"
"""Those that start with this lead to images made for booting."""
_DIGESTS = ("sha256", "sha384", "sha512")
_MANY = 20_000
"""Objects that one process looks for."""
_SHOWN = 3
"""Files that a line names."""
_CONFIG_KEY = "config:"
"""The named ref of a manifest that leads to its config starts with this."""


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


class MissingContent(NamedTuple):
    """What is missing of one part of an image.

    Attributes:
        key: the part: ``manifest``, or the named ref that leads to it: ``config:<digest>``, a layer's diff_id (in an
            artifact the digest of its blob), ``composefs.image…``.
        holder: the object of its splitstream or EROFS image.
        objects: those that are gone, or were cut to no bytes: files of a layer, the raw manifest or config; or the holder
            itself, and then nothing is known of what is in it.
    """

    key: str
    holder: ObjectId
    objects: tuple[ObjectId, ...]


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
        DamagedError: something is damaged.
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
    wanted = {name: target for name, target in stream.named_refs.items() if not name.startswith(_CONFIG_KEY)}
    wanted.update(config_stream.named_refs)
    for name, target in wanted.items():
        if not repo.has_object(target):
            kind = "EROFS image" if name.startswith(EROFS_KEY) else "layer"
            lines.append(f"{kind} {name} (object {target[:12]}…) is missing")
    return tuple(lines)


def missing_content(
    repo: ReadRepo, digest: Digest, known: dict[ObjectId, tuple[ObjectId, ...]] | None = None
) -> tuple[MissingContent, ...]:
    """What a manifest needs and the repository does not have, down to the files in its layers; nothing where it is complete.

    The objects of a layer are listed in the header of its stream, so that this is one look at each object, and no tar is
    read.  What is in EROFS images is not looked at: their files are those of the layers.

    Args:
        repo: where.
        digest: of the manifest.
        known: for many images that share layers: what was found of each part, by its holder; is added to.

    Returns:
        One for each part of which something is missing.

    Raises:
        TargetNotFound: no such manifest.
        FormatError, UnsupportedError: a part is there and cannot be read.
        SystemFailure: the system refused.
    """
    content_id = ContentId.manifest(digest)
    top = repo.stream_object(content_id)
    if top is None:
        raise TargetNotFound(kind="manifest", name=digest)
    known = {} if known is None else known
    found = []
    pending: dict[ObjectId, str] = {top: "manifest"}
    seen: set[ObjectId] = set()
    while pending:
        holder, key = pending.popitem()
        seen.add(holder)
        is_stream = not key.startswith(EROFS_KEY)
        follow = key == "manifest" or key.startswith(_CONFIG_KEY)
        objects = known.get(holder)
        if objects is None or (follow and holder not in objects):
            objects = tuple(absent_objects(repo, (holder,)))
            if is_stream and not objects:
                with repo.map(holder, f"{key} of {digest}") as data:
                    stream = splitstream.parse(data, repo.algorithm)
                    named = stream.named_refs if follow else {}
                    table, digits = stream.raw_object_refs.hex(), repo.algorithm.hex_length
                    stream.release()
                pending.update((target, name) for name, target in named.items() if target not in seen)
                needed = {table[at : at + digits] for at in range(0, len(table), digits)}
                objects = tuple(absent_objects(repo, needed))
            known[holder] = objects
        if objects:
            found.append(MissingContent(key, holder, objects))
    return tuple(sorted(found))


def missing_lines(repo: ReadRepo, digest: Digest, known: dict[ObjectId, tuple[ObjectId, ...]] | None = None) -> tuple[str, ...]:
    """What a manifest needs and the repository does not have, one line each, the files of layers by their names.

    :func:`missing_parts`, and where there is nothing :func:`missing_content`; arguments and errors as there.
    """
    return missing_parts(repo, digest) or tuple(describe(repo, one) for one in missing_content(repo, digest, known))


def describe(repo: ReadRepo, missing: MissingContent) -> str:
    """What is missing of a part as one line, the files of a layer by their names."""
    kind = (
        "EROFS image " if missing.key.startswith(EROFS_KEY) else "layer " if missing.key.partition(":")[0] in _DIGESTS else ""
    )
    if missing.objects == (missing.holder,):
        return f"{kind}{missing.key} (object {missing.holder[:12]}…) is missing"
    names = dict(_missing_files(repo, missing))
    shown = [f"{names[one]} (object {one[:12]}…)" if one in names else f"object {one[:12]}…" for one in missing.objects]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"{kind}{missing.key} lacks {', '.join(sorted(shown)[:_SHOWN])}{more}"


def _missing_files(repo: ReadRepo, missing: MissingContent) -> Iterator[tuple[ObjectId, str]]:
    """The files of a layer or EROFS image that have missing content: its object and a path for each.

    Undecodable bytes are surrogates.  Nothing where the layer is no tar, or cannot be read; an object may be that of several
    files.
    """
    from cfs_tags.formats import erofstree, tarlayer

    wanted = set(missing.objects)
    try:
        with repo.map(missing.holder, missing.key) as data:
            if not splitstream.looks_like_one(data[:32]):
                yield from ((object_id, path) for path, object_id in erofstree.stored_files(data) if object_id in wanted)
                return
            stream = splitstream.parse(data, repo.algorithm)
            try:
                if stream.content_type == splitstream.CONTENT_TYPE_LAYER:
                    for name, object_id in tarlayer.stored_files(splitstream.chunks(stream)):
                        if object_id in wanted:
                            yield object_id, os.fsdecode(name)
            finally:
                stream.release()
    except (DamagedError, UnsupportedError):
        return


def absent_objects(repo: ReadRepo, objects: Iterable[str]) -> list[ObjectId]:
    """Those of some objects that are not there, in order; one without bytes that is not the empty object is not there either.

    Raises:
        SystemFailure: the system refused.
    """
    from cfs_tags.parallel import in_processes, processors

    by_parent = _by_parent(objects)
    # a host's deployments have some 100,000 files
    least = 2 if sum(map(len, by_parent.values())) > _MANY else len(by_parent) + 1
    found = in_processes(lambda some: _without_bytes(repo, some), add, list(by_parent.items()), processors(), least)
    empty = _empty_object(repo.algorithm) if found else ""
    return sorted(ObjectId.trusted(one) for one, size in found if size is None or one != empty)


def object_sizes(repo: ReadRepo, objects: Iterable[str]) -> dict[str, int]:
    """The bytes that objects have; those that are not there are left out.  Raises as :func:`absent_objects`."""
    return {one: size for one, size in _sizes(repo, _by_parent(objects).items()) if size is not None}


def _by_parent(objects: Iterable[str]) -> dict[str, list[str]]:
    """Directories in ``objects/`` and the names of some objects in them."""
    found: dict[str, list[str]] = {}
    for object_id in objects:
        found.setdefault(object_id[:2], []).append(object_id[2:])
    return found


def _without_bytes(repo: ReadRepo, parents: Sequence[tuple[str, list[str]]]) -> list[tuple[str, int | None]]:
    return [found for found in _sizes(repo, parents) if not found[1]]


def _sizes(repo: ReadRepo, parents: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, int | None]]:
    """Each object with its size in bytes, None for what is not there or no file."""
    from cfs_tags.parallel import look_at

    for parent, names in parents:
        path = f"{layout.OBJECTS}/{parent}"
        fd = repo.directory(path)
        try:
            found = look_at(fd, names, _facts) if fd is not None else [None] * len(names)
        except OSError as error:
            raise SystemFailure.of(error, "look into", os.path.join(repo.path, path)) from error
        finally:
            if fd is not None:
                os.close(fd)
        for name, facts in zip(names, found, strict=True):
            is_there = facts is not None and stat.S_ISREG(facts[0]) and parent + name not in repo.distrusted
            yield parent + name, facts[1] if is_there and facts is not None else None


_facts: Callable[[os.stat_result], tuple[int, int]] = attrgetter("st_mode", "st_size")


@cache
def _empty_object(algorithm: Algorithm) -> ObjectId:
    from cfs_tags.formats import fsverity

    return fsverity.measure(b"", algorithm)


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
    key = _CONFIG_KEY + manifest.config.digest
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
    if digest.algorithm not in _DIGESTS:
        raise UnsupportedError("unsupported-feature", structure=what, features=(f"digests by {digest.algorithm}",))
    found = f"{digest.algorithm}:{hashlib.new(digest.algorithm, data).hexdigest()}"
    if found != digest:
        raise DamagedError("digest-mismatch", path=what, wanted=digest, found=found)
    return data
