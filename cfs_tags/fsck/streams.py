"""One splitstream or EROFS image by itself: what a worker does.

The results are plain values that go through a pipe: texts, numbers and findings.  What the streams mean for each other is
seen where all results come together (``oci.py``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from typing import NamedTuple

from cfs_tags.errors import FormatError, MissingObject, SystemFailure, UnsupportedError
from cfs_tags.formats import oci, splitstream
from cfs_tags.formats.splitstream import SplitStream
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.fsck.objects import PIECE, unreadable
from cfs_tags.repo.images import object_sizes
from cfs_tags.repo.store import MAX_JSON_OBJECT, ReadRepo
from cfs_tags.values import ObjectId

_FREE_CONTENT = 1 << 30
_CONTENT_RATIO = 64
"""Bytes of a layer's content that are hashed for each that its objects take on the disk, beyond 1 GiB: holes are hashed too,
and an object as often as it comes."""
_DIGESTS = ("sha256", "sha384", "sha512")


class StreamFacts(NamedTuple):
    """What is known of a splitstream.

    Attributes:
        object: of the splitstream.
        whole: whether it could be read to its end, and everything that it names is there.
        kind: its content type, 0 where it could not be read.
        named: its named refs.
        missing: objects that are not there.
        digest: of the content as it was fetched (manifest, config, blob) or of the rebuilt tar (layer), where it was
            hashed; else the empty text.
        config: for a manifest, the digest of its config.
        container: for a manifest, whether it is a container image's.
        parts: digests of a manifest's layers; diff_ids of a config.
        tars: for a manifest, of each layer whether its media type says that it is a tar.
        problem: why the document could not be read; a config may be anything where it is an artifact's.
        findings: what is wrong with it.
    """

    object: str
    whole: bool
    kind: int
    named: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    digest: str
    config: str
    container: bool
    parts: tuple[str, ...]
    tars: tuple[bool, ...]
    problem: str
    findings: tuple[Finding, ...]


class ImageFacts(NamedTuple):
    """What is known of an EROFS image: objects that are not there, and what is wrong with it."""

    object: str
    missing: tuple[str, ...]
    findings: tuple[Finding, ...]


def check_stream(
    repo: ReadRepo, name: str, path: str, objects: Collection[str], *, algorithm: str, content: bool
) -> StreamFacts:
    """Read a splitstream.

    Args:
        repo: where.
        name: of its object.
        path: what names it, for findings.
        objects: those that are there.
        algorithm: of the digest that its content should have; the empty text for content that has none.
        content: hash layers, too, for which every file in them is read.
    """
    empty = StreamFacts(name, False, 0, (), (), "", "", False, (), (), "", ())
    if not _is_there(repo, name):
        return empty._replace(missing=(name,))
    try:
        with repo.map(ObjectId(name), path) as data:
            stream = splitstream.parse(data, repo.algorithm)
            try:
                return _stream(repo, stream, empty, path, objects, algorithm, content)
            finally:
                stream.release()
    except MissingObject:
        return empty._replace(missing=(name,))
    except SystemFailure as error:
        return empty._replace(findings=(finding("unreadable", _object_path(name), error.reason),))
    except FormatError as error:
        return empty._replace(findings=(finding("bad-stream", path, _without_path(error)),))
    except UnsupportedError as error:
        return empty._replace(findings=(finding("unsupported-stream", path, error.message),))


def _stream(
    repo: ReadRepo,
    stream: SplitStream,
    facts: StreamFacts,
    path: str,
    objects: Collection[str],
    algorithm: str,
    content: bool,
) -> StreamFacts:
    width = repo.algorithm.hex_length
    table = stream.raw_object_refs.hex()
    parts = {table[at : at + width] for at in range(0, len(table), width)}
    named = tuple((key, str(target)) for key, target in stream.named_refs.items())
    try:
        sizes = object_sizes(repo, parts)
        gone = {target for _, target in named if target not in objects and not _is_there(repo, target)}
        missing = tuple(sorted(gone | (parts - sizes.keys())))
        facts = facts._replace(whole=not missing, kind=stream.content_type, named=named, missing=missing)
        return _with_content(repo, stream, facts, path, sizes, algorithm, content)
    except FormatError as error:
        return facts._replace(whole=False, findings=(finding("bad-stream", path, _without_path(error)),))
    except (FileNotFoundError, MissingObject):
        return facts._replace(whole=False)  # gone since it was looked for: not ours to say
    except OSError as error:
        return facts._replace(whole=False, findings=(unreadable(path, error),))
    except SystemFailure as error:
        return facts._replace(whole=False, findings=(finding("unreadable", path, error.reason),))


def _without_path(error: FormatError) -> str:
    error.path = None  # the finding has one
    return error.message


def _with_content(
    repo: ReadRepo,
    stream: SplitStream,
    facts: StreamFacts,
    path: str,
    sizes: Mapping[str, int],
    algorithm: str,
    content: bool,
) -> StreamFacts:
    documents = (splitstream.CONTENT_TYPE_MANIFEST, splitstream.CONTENT_TYPE_CONFIG)
    if stream.content_type in documents:
        sole = splitstream.sole_object(stream)
        if sole not in sizes:
            return facts
        data = repo.read_object(sole, MAX_JSON_OBJECT, path)
        if len(data) != stream.stream_size:
            return _wrong_size(facts, path, stream.stream_size, str(len(data)))
        if algorithm in _DIGESTS:
            facts = facts._replace(digest=f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")
        return _document(data, stream.content_type, facts)
    if content and not facts.missing and algorithm in _DIGESTS:
        return _hashed(repo, stream, facts, path, algorithm)
    total = sum(sizes.get(piece, 0) if isinstance(piece, str) else len(piece) for piece in splitstream.chunks(stream))
    if not facts.missing and total != stream.stream_size:
        return _wrong_size(facts, path, stream.stream_size, str(total))
    return facts


def _hashed(repo: ReadRepo, stream: SplitStream, facts: StreamFacts, path: str, algorithm: str) -> StreamFacts:
    """Read all the content."""
    whole = hashlib.new(algorithm)
    total = on_disk = 0
    seen: set[ObjectId] = set()
    for piece in splitstream.chunks(stream):
        if isinstance(piece, bytes):
            total += len(piece)
            on_disk += len(piece)
            whole.update(piece)
            continue
        fd = repo.descriptor(_object_path(piece))
        try:
            status = os.fstat(fd)
            total += status.st_size
            on_disk += 0 if piece in seen else status.st_blocks * 512
            seen.add(piece)
            if total > stream.stream_size:
                return _wrong_size(facts, path, stream.stream_size, f"{total} or more")
            if total > _FREE_CONTENT + _CONTENT_RATIO * on_disk:
                message = f"its content has {total} bytes or more, of which {on_disk} are on the disk: it was not hashed"
                return facts._replace(whole=False, findings=(finding("sparse-content", path, message),))
            while part := os.read(fd, PIECE):
                whole.update(part)
        finally:
            os.close(fd)
    if total != stream.stream_size:
        return _wrong_size(facts, path, stream.stream_size, str(total))
    return facts._replace(digest=f"{algorithm}:{whole.hexdigest()}")


def _document(data: bytes, kind: int, facts: StreamFacts) -> StreamFacts:
    try:
        if kind == splitstream.CONTENT_TYPE_MANIFEST:
            manifest = oci.parse_manifest(data)
            parts = tuple(str(layer.digest) for layer in manifest.layers)
            tars = tuple(layer.is_tar for layer in manifest.layers)
            return facts._replace(config=str(manifest.config.digest), container=manifest.is_container, parts=parts, tars=tars)
        return facts._replace(parts=tuple(str(diff_id) for diff_id in oci.parse_config(data).diff_ids))
    except FormatError as error:
        return facts._replace(problem=error.message)


def _wrong_size(facts: StreamFacts, path: str, wanted: int, found: str) -> StreamFacts:
    message = f"it says that its content has {wanted} bytes; what is there has {found}"
    return facts._replace(whole=False, findings=(finding("wrong-stream-size", path, message),))


def check_image(repo: ReadRepo, name: str, path: str, objects: Collection[str]) -> ImageFacts:
    """Read an EROFS image to its end; arguments as for :func:`check_stream`."""
    from cfs_tags.formats.erofswalk import image_refs

    if not _is_there(repo, name):
        return ImageFacts(name, (name,), ())
    try:
        with repo.map(ObjectId(name), path) as data:
            found = image_refs(bytes(data), repo.algorithm)
    except MissingObject:
        return ImageFacts(name, (name,), ())
    except SystemFailure as error:
        return ImageFacts(name, (), (finding("unreadable", _object_path(name), error.reason),))
    except FormatError as error:
        return ImageFacts(name, (), (finding("bad-image", path, _without_path(error)),))
    return ImageFacts(name, tuple(sorted(one for one in found if one not in objects and not _is_there(repo, one))), ())


def _is_there(repo: ReadRepo, name: str) -> bool:
    """Whether an object is there that was not when they were listed: a pull is at work."""
    return repo.is_file(_object_path(name))


def _object_path(name: str) -> str:
    return f"objects/{name[:2]}/{name[2:]}"
