"""One splitstream or EROFS image by itself: what a worker does.

The results are plain values that go through a pipe: texts, numbers and findings.  What the streams mean for each other is
seen where all results come together (``oci.py``).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import FormatError, UnsupportedError
from cfs_tags.formats import oci, splitstream
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.fsck.objects import pieces, unreadable

if TYPE_CHECKING:
    from collections.abc import Collection

    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.values import ObjectId

__all__ = ["ImageFacts", "StreamFacts", "check_image", "check_stream"]

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MAX_JSON = 16 << 20
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
    try:
        data = _read(repo, name, splitstream.MAX_SIZE)
        stream = splitstream.parse(data, repo.algorithm)
    except FileNotFoundError:
        return empty._replace(missing=(name,))
    except OSError as error:
        return empty._replace(findings=(unreadable(_object_path(name), error),))
    except FormatError as error:
        return empty._replace(findings=(finding("bad-stream", path, error.message),))
    except UnsupportedError as error:
        return empty._replace(findings=(finding("unsupported-stream", path, error.message),))
    width = repo.algorithm.hex_length
    table = stream.raw_object_refs.hex()
    wanted = {table[at : at + width] for at in range(0, len(table), width)}
    named = tuple((key, str(target)) for key, target in stream.named_refs.items())
    needed = wanted | {target for _, target in named}
    missing = tuple(sorted(target for target in needed if target not in objects and not _is_there(repo, target)))
    facts = empty._replace(whole=not missing, kind=stream.content_type, named=named, missing=missing)
    try:
        return _with_content(repo, stream, facts, path, frozenset(missing), algorithm, content)
    except FormatError as error:
        return facts._replace(whole=False, findings=(finding("bad-stream", path, error.message),))
    except FileNotFoundError:
        return facts._replace(whole=False)  # gone since it was looked for: not ours to say
    except OSError as error:
        return facts._replace(whole=False, findings=(unreadable(path, error),))


def _with_content(
    repo: ReadRepo,
    stream: SplitStream,
    facts: StreamFacts,
    path: str,
    missing: frozenset[str],
    algorithm: str,
    content: bool,
) -> StreamFacts:
    documents = (splitstream.CONTENT_TYPE_MANIFEST, splitstream.CONTENT_TYPE_CONFIG)
    if stream.content_type in documents:
        sole = splitstream.sole_object(stream)
        if sole in missing:
            return facts
        data = _read(repo, sole, _MAX_JSON)
        if len(data) != stream.stream_size:
            return _wrong_size(facts, path, stream.stream_size, len(data))
        if algorithm in _DIGESTS:
            facts = facts._replace(digest=f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")
        return _document(data, stream.content_type, facts)
    hashes = content and not missing and algorithm in _DIGESTS
    whole = hashlib.new(algorithm) if hashes else None
    total = 0
    for piece in splitstream.chunks(stream):
        if isinstance(piece, bytes):
            total += len(piece)
            if whole is not None:
                whole.update(piece)
        elif whole is not None:
            for part in pieces(repo, piece):
                total += len(part)
                whole.update(part)
        elif not missing:
            total += _size(repo, piece)
    if not missing and total != stream.stream_size:
        return _wrong_size(facts, path, stream.stream_size, total)
    return facts._replace(digest=f"{algorithm}:{whole.hexdigest()}") if whole is not None else facts


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


def _wrong_size(facts: StreamFacts, path: str, wanted: int, found: int) -> StreamFacts:
    message = f"it says that its content has {wanted} bytes; what is there has {found}"
    return facts._replace(whole=False, findings=(finding("wrong-stream-size", path, message),))


def check_image(repo: ReadRepo, name: str, path: str, objects: Collection[str]) -> ImageFacts:
    """Read an EROFS image to its end; arguments as for :func:`check_stream`."""
    from cfs_tags.formats.erofs import MAX_SIZE
    from cfs_tags.formats.erofswalk import image_refs

    try:
        found = image_refs(_read(repo, name, MAX_SIZE), repo.algorithm)
    except FileNotFoundError:
        return ImageFacts(name, (name,), ())
    except OSError as error:
        return ImageFacts(name, (), (unreadable(_object_path(name), error),))
    except FormatError as error:
        return ImageFacts(name, (), (finding("bad-image", path, error.message),))
    return ImageFacts(name, tuple(sorted(one for one in found if one not in objects and not _is_there(repo, one))), ())


def _read(repo: ReadRepo, name: str, limit: int) -> bytes:
    # read, not mapped: a block that fs-verity refuses is an error of a read, and the end of a process with a mapping
    try:
        fd = os.open(_object_path(name), _FILE, dir_fd=repo.fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FileNotFoundError from None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError
        size = status.st_size
        if size > limit:
            raise FormatError(structure="object", offset=0, wanted=f"at most {limit} bytes", found=f"{size} bytes")
        data = os.read(fd, size) if size else b""
        while len(data) < size and (more := os.read(fd, size - len(data))):
            data += more
        return data
    finally:
        os.close(fd)


def _is_there(repo: ReadRepo, name: str) -> bool:
    """Whether an object is there that was not when they were listed: a pull is at work."""
    return repo.is_file(_object_path(name))


def _size(repo: ReadRepo, name: ObjectId) -> int:
    return os.stat(_object_path(name), dir_fd=repo.fd, follow_symlinks=False).st_size


def _object_path(name: str) -> str:
    return f"objects/{name[:2]}/{name[2:]}"
