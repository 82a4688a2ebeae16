"""Where images come from: OCI layouts, archives, ``dir:`` directories; and, through skopeo, everything that it knows.

A source gives descriptors of what it offers, and the bytes of a blob by its digest.  It checks nothing: whoever reads a
blob does (``apps/blobs.py``).  Names are never followed out of the source: blobs are opened below its directory, and a
link in the place of one is refused.
"""

from __future__ import annotations

import io
import json
import os
import re
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from cfs_tags.apps import blobs, docker
from cfs_tags.apps.archive import Archive, Part
from cfs_tags.apps.workplace import WorkDirectory, run
from cfs_tags.errors import (
    AmbiguousName,
    FormatError,
    InvalidArgument,
    InvalidDigest,
    SourceNotFound,
    SystemFailure,
)
from cfs_tags.formats import oci
from cfs_tags.formats.oci import Descriptor
from cfs_tags.repo.directory import Directory
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.apps.blobs import Reader
    from cfs_tags.apps.workplace import Machine

__all__ = ["Source", "open_source"]

_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_TRANSPORT = re.compile(r"([a-z][a-z0-9-]*):(.*)", re.DOTALL)
_NUMBER = re.compile(r"@[0-9]{1,9}", re.ASCII)
_MANIFEST_TYPES = (
    oci.MEDIA_TYPE_MANIFEST,
    oci.MEDIA_TYPE_INDEX,
    oci.MEDIA_TYPE_DOCKER_MANIFEST,
    oci.MEDIA_TYPE_DOCKER_INDEX,
)
_MAX_ARCHIVE_MANIFEST = 4 << 20


class Source(Protocol):
    """Images that can be read.

    Attributes:
        text: how the source was named.
        name: what its image is called, None where it has no name.
    """

    text: str
    name: str | None

    def offered(self) -> Sequence[Descriptor]:
        """What was asked for: one manifest or index, or the images that it consists of.

        Raises:
            SourceNotFound: it has none of that name.
            AmbiguousName: it has several.
        """

    def listed(self) -> Sequence[Descriptor]:
        """Everything else that it lists by name: referrers may be among it."""

    def open(self, digest: Digest) -> Reader:
        """The bytes of a blob, not checked.

        Raises:
            SourceNotFound: there is none.
            FormatError: something else is in its place.
        """

    def size(self, digest: Digest) -> int | None:
        """Bytes of a blob; None where that cannot be said without fetching it.  Raises as :meth:`open`."""

    def close(self) -> None:
        """Let go of it, and of what it downloaded."""


def open_source(text: str, machine: Machine, limit: int) -> Source:
    """The source with that name: ``oci:DIR[:REF]``, ``oci-archive:FILE[:REF]``, ``docker-archive:FILE[:REF]``, ``dir:DIR``,
    or anything that skopeo knows.

    Args:
        text: as for skopeo.
        machine: where other programs and temporary files are.
        limit: bytes that an archive may have once it is uncompressed.

    Raises:
        InvalidArgument: no transport is named.
        SourceNotFound: nothing is there.
        ProgramMissing: skopeo is needed.
    """
    match = _TRANSPORT.fullmatch(text)
    if match is None or not match[2] or "\0" in text:
        reason = "names no transport: write oci:DIR:REF, oci-archive:FILE, docker-archive:FILE, dir:DIR or docker://NAME"
        raise InvalidArgument(argument="SOURCE", value=text, reason=reason)
    transport, rest = match[1], match[2]
    if transport == "oci":
        path, name = _split(rest, os.path.isdir)
        return _Layout(text, _Folder(path), name)
    if transport == "oci-archive":
        path, name = _split(rest, os.path.isfile)
        return _Layout(text, _Packed(Archive(path, machine, limit)), name)
    if transport == "docker-archive":
        path, name = _split(rest, os.path.isfile)
        return _DockerArchive(text, Archive(path, machine, limit), name)
    if transport == "dir":
        return _Dir(text, rest)
    return _Skopeo(text, transport, rest, machine)


def _split(text: str, is_there: Any) -> tuple[str, str | None]:
    """Path and name: at the first colon that leaves the path of something that is there, as skopeo does."""
    for position, character in enumerate(text):
        if character == ":" and is_there(text[:position]):
            return text[:position], text[position + 1 :] or None
    if not is_there(text) and ":" in text:
        path, _, name = text.partition(":")
        return path, name or None
    return text, None


# -- layouts -----------------------------------------------------------------------------------------------------------


class _Files(Protocol):
    """Files by path."""

    path: str

    def read(self, name: str, limit: int) -> bytes | None: ...

    def open(self, name: str) -> Reader | None: ...

    def close(self) -> None: ...


class _Folder:
    """Files below a directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._directory = Directory(path)
        except FileNotFoundError:
            raise SourceNotFound(source=path, reason="no such directory") from None
        except NotADirectoryError:
            raise SourceNotFound(source=path, reason="is no directory") from None
        except OSError as error:
            raise SystemFailure.of(error, "open", path) from error

    def read(self, name: str, limit: int) -> bytes | None:
        self._refuse_links(name)
        return self._directory.read_file(name, limit)

    def open(self, name: str) -> Reader | None:
        self._refuse_links(name)
        fd = self._directory.open_file(name)
        return None if fd is None else _File(fd, os.path.join(self.path, name))

    def close(self) -> None:
        self._directory.close()

    def _refuse_links(self, name: str) -> None:
        place, _, _ = name.rpartition("/")
        while place:
            fd = self._directory.directory(place)  # refuses a link in the last place
            if fd is not None:
                os.close(fd)
            place, _, _ = place.rpartition("/")


class _File:
    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self.size = os.fstat(fd).st_size

    def read(self, size: int) -> bytes:
        try:
            return os.read(self._fd, size)
        except OSError as error:
            raise SystemFailure.of(error, "read", self._path) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Packed:
    """Files in an archive."""

    def __init__(self, archive: Archive) -> None:
        self.path = archive.path
        self._archive = archive

    def read(self, name: str, limit: int) -> bytes | None:
        return self._archive.read(name, limit)

    def open(self, name: str) -> Reader | None:
        found = self._archive.open(name)
        if found is None and name in self._archive.members:
            raise FormatError(structure="archive", offset=0, wanted="a regular file", found=f"{name}: a link", path=self.path)
        return found

    def close(self) -> None:
        self._archive.close()


class _Layout:
    """An OCI image layout (image-spec 1.1, ``image-layout.md``)."""

    def __init__(self, text: str, files: _Files, wanted: str | None) -> None:
        self.text = text
        self.name = wanted
        self._files = files
        self._wanted = wanted
        try:
            self._index = self._read()
            self._chosen = self._choose()
        except BaseException:
            files.close()
            raise

    def _read(self) -> oci.Index:
        path = os.path.join(self._files.path, "index.json")
        data = self._files.read("index.json", oci.MAX_INDEX)
        if data is None:
            raise SourceNotFound(source=self.text, reason="is no OCI layout: it has no index.json")
        try:
            return oci.parse_index(data)
        except FormatError as error:
            error.path = path
            raise

    def _choose(self) -> list[Descriptor]:
        entries = [entry for entry in self._index.manifests if entry.media_type in _MANIFEST_TYPES]
        names = tuple(dict.fromkeys(name for entry in entries for name in _names(entry)))
        if self._wanted is not None:
            found = [entry for entry in entries if self._wanted in _names(entry)] or self._by_digest(entries)
            if not found:
                raise SourceNotFound(source=self.text, reason=f"has no image {self._wanted}", names=names)
            return found
        plain = [entry for entry in entries if entry.artifact_type is None] or entries
        if not plain:
            raise SourceNotFound(source=self.text, reason="has no image")
        if len(plain) > 1:
            # one image for several platforms, as buildx writes it; or several images
            platforms = [entry.platform for entry in plain if entry.platform is not None]
            if len(set(platforms)) != len(plain):
                raise AmbiguousName(name=self.text, candidates=names or tuple(entry.digest for entry in plain))
        elif _names(plain[0]):
            self.name = _names(plain[0])[0]
        return plain

    def _by_digest(self, entries: Sequence[Descriptor]) -> list[Descriptor]:
        wanted = (self._wanted or "").removeprefix("@")
        return [entry for entry in entries if entry.digest == wanted][:1]

    def offered(self) -> Sequence[Descriptor]:
        return self._chosen

    def listed(self) -> Sequence[Descriptor]:
        return [entry for entry in self._index.manifests if entry.media_type in _MANIFEST_TYPES]

    def open(self, digest: Digest) -> Reader:
        found = self._files.open(f"blobs/{digest.algorithm}/{digest.hex}")
        if found is None:
            _no_blob(self.text, digest)
        return found

    def size(self, digest: Digest) -> int | None:
        return _size(self.open(digest))

    def close(self) -> None:
        self._files.close()


def _size(reader: Reader) -> int:
    """Bytes that a blob of a file has."""
    try:
        return reader.getbuffer().nbytes if isinstance(reader, io.BytesIO) else int(getattr(reader, "size", 0))
    finally:
        reader.close()


def _names(entry: Descriptor) -> list[str]:
    keys = (_REF_NAME, _FULL_NAME)
    return [entry.annotations[key] for key in keys if entry.annotations.get(key)]


def _no_blob(text: str, digest: Digest) -> NoReturn:
    raise SourceNotFound(source=text, reason=f"has no blob {digest}")


# -- dir: --------------------------------------------------------------------------------------------------------------


class _Dir:
    """A directory as skopeo's ``dir:`` writes it: ``manifest.json``, ``<hex>.manifest.json`` for the images of an index,
    blobs by their digits."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.name: str | None = None
        self._files = _Folder(path)
        try:
            data = self._files.read("manifest.json", oci.MAX_MANIFEST)
            if data is None:
                raise SourceNotFound(source=text, reason="has no manifest.json")
            self._top = data
            self._descriptor = descriptor_of(data)
        except BaseException:
            self._files.close()
            raise

    def offered(self) -> Sequence[Descriptor]:
        return [self._descriptor]

    def listed(self) -> Sequence[Descriptor]:
        return []

    def open(self, digest: Digest) -> Reader:
        if digest == self._descriptor.digest:
            return io.BytesIO(self._top)
        found = self._files.open(digest.hex) or self._files.open(f"{digest.hex}.manifest.json")
        if found is None:
            _no_blob(self.text, digest)
        return found

    def size(self, digest: Digest) -> int | None:
        return _size(self.open(digest))

    def close(self) -> None:
        self._files.close()


def descriptor_of(data: bytes) -> Descriptor:
    """What an index would say of a manifest or index with these bytes."""
    import hashlib

    kind = oci.kind(data)
    media_type = oci.MEDIA_TYPE_INDEX if kind == "index" else oci.MEDIA_TYPE_MANIFEST
    return Descriptor(media_type, Digest(f"sha256:{hashlib.sha256(data).hexdigest()}"), len(data))


# -- docker-archive: ---------------------------------------------------------------------------------------------------


class _DockerArchive:
    """What ``docker save`` and ``podman save`` write: a config, layers, and no manifest.  One is made for it."""

    def __init__(self, text: str, archive: Archive, wanted: str | None) -> None:
        self.text = text
        self.name: str | None = None
        self._archive = archive
        self._parts: dict[Digest, str | bytes] = {}
        try:
            self._descriptor = self._make(self._choose(wanted))
        except BaseException:
            archive.close()
            raise

    def _choose(self, wanted: str | None) -> dict[str, Any]:
        data = self._archive.read("manifest.json", _MAX_ARCHIVE_MANIFEST)
        if data is None:
            raise SourceNotFound(source=self.text, reason="has no manifest.json")
        try:
            images = json.loads(data)
        except (ValueError, RecursionError) as error:
            self._wrong("JSON", str(error))
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            self._wrong("a list of images", "something else")
        names: dict[str, dict[str, Any]] = {}
        for image in images:
            tags = image.get("RepoTags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                self._wrong("RepoTags that are texts", "something else")
            names.update(dict.fromkeys(tags, image))
        if wanted is not None and _NUMBER.fullmatch(wanted) is not None and int(wanted[1:]) < len(images):
            return images[int(wanted[1:])]  # type: ignore[no-any-return]
        if wanted is not None:
            for name in (wanted, f"{wanted}:latest", f"docker.io/library/{wanted}", f"docker.io/{wanted}"):
                if name in names:
                    self.name = name
                    return names[name]
            raise SourceNotFound(source=self.text, reason=f"has no image {wanted}", names=tuple(names))
        if len(images) != 1:
            if not images:
                raise SourceNotFound(source=self.text, reason="has no image")
            raise AmbiguousName(name=self.text, candidates=tuple(names) or tuple(f"@{n}" for n in range(len(images))))
        self.name = next(iter(names), None)
        return images[0]  # type: ignore[no-any-return]

    def _make(self, image: dict[str, Any]) -> Descriptor:
        config_path, layer_paths = image.get("Config"), image.get("Layers") or []
        if not isinstance(config_path, str) or not isinstance(layer_paths, list):
            self._wrong("a Config and Layers", "something else")
        config_data = self._archive.read(_clean(config_path), oci.MAX_CONFIG)
        if config_data is None:
            raise SourceNotFound(source=self.text, reason=f"has no {config_path}")
        config = oci.parse_config(config_data)
        if len(config.diff_ids) != len(layer_paths):
            self._wrong(f"{len(config.diff_ids)} layers", str(len(layer_paths)))
        digest = _sha256(config_data)
        self._parts[digest] = config_data
        layers = []
        for path, diff_id in zip(layer_paths, config.diff_ids, strict=True):
            if not isinstance(path, str):
                self._wrong("paths of layers", repr(path))
            layers.append(self._layer(path, diff_id))
        manifest = docker.image_manifest((digest, len(config_data)), layers)
        descriptor = descriptor_of(manifest)
        self._parts[descriptor.digest] = manifest
        return descriptor

    def _layer(self, path: str, diff_id: Digest) -> tuple[str, Digest, int]:
        name = _clean(path)
        member = self._archive.members.get(name)
        if member is not None and member.link is not None:
            # docker wrote a layer that several images share once, and links to it by a path beside it
            name = _clean(os.path.normpath(os.path.join(os.path.dirname(name), member.link)))
            member = self._archive.members.get(name)
        reader = self._archive.open(name)
        if member is None or reader is None:
            raise SourceNotFound(source=self.text, reason=f"has no {path}")
        kind = blobs.compression(reader.read(8))
        digest = diff_id
        if kind != "none":
            digest = _named_digest(name) or self._measured(name)
        self._parts[digest] = name
        return {"none": docker.PLAIN, "gzip": docker.GZIP, "zstd": docker.ZSTD}[kind], digest, member.size

    def _measured(self, name: str) -> Digest:
        import hashlib

        found = hashlib.sha256()
        reader = self._archive.open(name)
        while reader is not None and (data := reader.read(blobs.CHUNK)):
            found.update(data)
        return Digest(f"sha256:{found.hexdigest()}")

    def offered(self) -> Sequence[Descriptor]:
        return [self._descriptor]

    def listed(self) -> Sequence[Descriptor]:
        return []

    def open(self, digest: Digest) -> Reader:
        part = self._parts.get(digest)
        found: io.BytesIO | Part | None = io.BytesIO(part) if isinstance(part, bytes) else None
        if isinstance(part, str):
            found = self._archive.open(part)
        if found is None:
            _no_blob(self.text, digest)
        return found

    def size(self, digest: Digest) -> int | None:
        return _size(self.open(digest))

    def close(self) -> None:
        self._archive.close()

    def _wrong(self, wanted: str, found: str) -> NoReturn:
        raise FormatError(structure="manifest.json", offset=0, wanted=wanted, found=found, path=self._archive.path)


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _named_digest(name: str) -> Digest | None:
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "blobs":
        try:
            return Digest.parse(f"{parts[1]}:{parts[2]}")
        except InvalidDigest:
            return None
    return None


def _sha256(data: bytes) -> Digest:
    import hashlib

    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


# -- skopeo ------------------------------------------------------------------------------------------------------------


class _Skopeo:
    """Anything else: skopeo copies an image into a temporary ``dir:`` when its first blob is needed."""

    def __init__(self, text: str, transport: str, rest: str, machine: Machine) -> None:
        self._program = machine.need_skopeo(f"for images from {transport}:")
        self.text = text
        self.name: str | None = None
        self._place = WorkDirectory(machine)
        self._copies: dict[str, _Dir] = {}
        self._documents: dict[Digest, bytes] = {}
        self._registry = transport == "docker"
        self._repository = text
        if self._registry:
            self.name, self._repository = _docker_name(rest)
        try:
            # a registry is asked for the document alone, so that nothing is downloaded that is here already
            data = run(self._program, "inspect", "--raw", text) if self._registry else self._copy(text)._top
            self._descriptor = descriptor_of(data)
            self._documents[self._descriptor.digest] = data
        except BaseException:
            self.close()
            raise

    def _copy(self, source: str) -> _Dir:
        if source not in self._copies:
            path = os.path.join(self._place.path, str(len(self._copies)))
            run(self._program, "copy", "--quiet", source, f"dir:{path}")
            self._copies[source] = _Dir(self.text, path)
        return self._copies[source]

    def offered(self) -> Sequence[Descriptor]:
        return [self._descriptor]

    def listed(self) -> Sequence[Descriptor]:
        return []

    def document(self, digest: Digest) -> bytes:
        """A manifest or index of a registry, without its blobs."""
        if digest not in self._documents:
            self._documents[digest] = run(self._program, "inspect", "--raw", f"{self._repository}@{digest}")
        return self._documents[digest]

    def open(self, digest: Digest) -> Reader:
        if digest in self._documents:
            return io.BytesIO(self._documents[digest])
        for copied in self._copies.values():
            try:
                return copied.open(digest)
            except SourceNotFound:
                continue
        for document in list(self._documents):
            if self._registry and digest in self._documents[document].decode("utf-8", "replace"):
                parsed = oci.parse_manifest_or_index(self._documents[document])
                if isinstance(parsed, oci.Index):
                    return io.BytesIO(self.document(digest))
                if digest == parsed.config.digest:
                    where = f"{self._repository}@{document}"
                    return io.BytesIO(run(self._program, "inspect", "--raw", "--config", where))
                return self._copy(f"{self._repository}@{document}").open(digest)
        _no_blob(self.text, digest)

    def size(self, digest: Digest) -> int | None:
        return None if self._registry else _size(self.open(digest))

    def close(self) -> None:
        for copied in self._copies.values():
            copied.close()
        self._place.close()


def _docker_name(rest: str) -> tuple[str, str]:
    """What a ``docker://`` reference is called as a tag, and its repository for references by digest."""
    name = rest.removeprefix("//")
    plain, _, _ = name.partition("@")
    place, slash, last = plain.rpartition("/")
    return name, f"docker://{place}{slash}{last.partition(':')[0]}"
