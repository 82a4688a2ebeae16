"""How two images differ: layers, config, files, packages.

Files are read from EROFS images where both sides have one of a kind, for those need no unpacking; else from the layers of both,
laid upon each other; else from any EROFS image that is there.  No content is read: files are compared by the digests of their
content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from cfs_tags.errors import RefusedError, TargetNotFound, about
from cfs_tags.formats import filetree, splitstream, tarlayer
from cfs_tags.formats.filetree import Change, Directory
from cfs_tags.repo import images, layout
from cfs_tags.repo.images import StoredImage, StoredLayer
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags.names import only, resolve
from cfs_tags.values import Digest, ObjectId

_DEPLOYMENT = "@deployment/"


class Side(NamedTuple):
    """One of the two that are compared.

    ``digest`` is of the manifest, None of a deployment of which only the EROFS image is known; ``files`` says where its files
    were read: ``erofs``, ``layers``, or nothing where it has none (an artifact).
    """

    name: str
    digest: Digest | None
    files: str | None


class Layer(NamedTuple):
    """A layer.

    ``digest`` is that of its uncompressed tar (of an artifact's blob, that of the blob); ``where`` is ``both``, ``old`` or
    ``new``; ``moved`` its bytes as they are moved, compressed; ``size`` bytes of the tar, None where it is not stored.
    """

    digest: str
    where: str
    moved: int
    size: int | None


class Setting(NamedTuple):
    """Something that a manifest or config says in another way; None where it does not say it.  ``key`` is the name of a
    label, annotation or variable."""

    field: str
    key: str | None
    old: str | tuple[str, ...] | None
    new: str | tuple[str, ...] | None


class Package(NamedTuple):
    """A package that came, went or changed, as far as names of files tell.

    ``kind`` is ``dpkg``, ``pacman``, ``python`` or ``kernel``.  A version is None where the package is not there, and always
    with dpkg, whose names of files have none.
    """

    kind: str
    name: str
    change: str
    old: str | None
    new: str | None


class Sum(NamedTuple):
    """How many files (directories not among them) came, went and changed, and by how many bytes they are more."""

    added: int
    removed: int
    changed: int
    added_bytes: int
    removed_bytes: int
    grown: int


class Difference(NamedTuple):
    """The answer.  ``files`` are in the order of paths, directories among them."""

    old: Side
    new: Side
    layers: tuple[Layer, ...]
    settings: tuple[Setting, ...]
    packages: tuple[Package, ...]
    files: tuple[Change, ...]


def diff(repo: ReadRepo, old: str, new: str, below: Sequence[str] = ()) -> Difference:
    """Compare two images or deployments.

    Args:
        repo: where; the caller holds its lock shared.
        old: what :func:`cfs_tags.tags.names.resolve` knows, or ``@deployment/`` and the id of one without a ref.
        new: the same.
        below: paths; only files there are compared.

    Raises:
        NotFoundError: one of them is not there.
        UsageError: the start of a digest or id fits several.
        RefusedError (no-files): the files of one of them are stored in no way that the other has; one is an artifact.
        DamagedError: something that is needed is missing or damaged.
    """
    sides = _found(repo, old), _found(repo, new)
    with ExitStack() as opened:
        ways, trees = _trees(repo, sides, opened)
        files = tuple(filetree.compare(*trees, below)) if trees is not None else ()
    return Difference(
        Side(old, sides[0].digest, ways),
        Side(new, sides[1].digest, ways),
        tuple(_layers(repo, sides[0].image, sides[1].image)),
        tuple(_settings(sides[0].image, sides[1].image)),
        tuple(_packages(files)),
        files,
    )


def total(files: Iterable[Change]) -> Sum:
    """Sums of changes."""
    counts = dict.fromkeys(("added", "removed", "changed", "added_bytes", "removed_bytes", "grown"), 0)
    for change in files:
        if change.is_directory:
            continue
        kind = "added" if change.old is None else "removed" if change.new is None else "changed"
        counts[kind] += 1
        counts["grown"] += change.grown
        if kind != "changed":
            counts[f"{kind}_bytes"] += abs(change.grown)
    return Sum(**counts)


class _Found(NamedTuple):
    """What a name stands for: a manifest, or an EROFS image alone."""

    name: str
    digest: Digest | None
    image: StoredImage | None
    erofs: dict[str, ObjectId]


def _found(repo: ReadRepo, text: str) -> _Found:
    try:
        digest = resolve(repo, text)
    except TargetNotFound:
        if not text.startswith(_DEPLOYMENT):
            raise
        prefix = text[len(_DEPLOYMENT) :]
        name = only([name for name in repo.names(layout.IMAGES) or () if name.startswith(prefix)], prefix, "deployment")
        own = repo.image_object(name)
        if own is None:
            raise
        return _Found(text, None, None, {"": own})
    image = images.load(repo, digest)
    return _Found(text, digest, image, dict(image.erofs))


# -- files -------------------------------------------------------------------------------------------------------------


def _trees(
    repo: ReadRepo, sides: tuple[_Found, _Found], opened: ExitStack
) -> tuple[str | None, tuple[Directory, Directory] | None]:
    """Where files are read, and the roots of both trees; None where neither side has any."""
    old, new = sides
    if not any(side.image is None or side.image.config is not None for side in sides):
        return None, None  # two artifacts
    has = [{key for key, target in side.erofs.items() if repo.has_object(target)} for side in sides]
    shared = sorted(has[0] & has[1] - {""}, key=lambda key: (key.startswith(images.BOOT_KEY), key))
    if shared:
        return "erofs", (_erofs(repo, old, shared[0], opened), _erofs(repo, new, shared[0], opened))
    if all(side.image is not None and side.image.config is not None for side in sides):
        assert old.image is not None
        assert new.image is not None
        return "layers", (laid(repo, old.image, old.name), laid(repo, new.image, new.name))
    for side, keys in zip(sides, has, strict=True):
        if not keys:
            artifact = side.image is not None and side.image.config is None
            reason = "it is an artifact" if artifact else "it has no EROFS image, and the other nothing but one"
            raise RefusedError("no-files", name=side.name, reason=reason)
    # one is known by its own image alone: that is one for booting, where there are two
    old_key, new_key = (max(keys, key=lambda key: key.startswith(images.BOOT_KEY)) for keys in has)
    return "erofs", (_erofs(repo, old, old_key, opened), _erofs(repo, new, new_key, opened))


def _erofs(repo: ReadRepo, side: _Found, key: str, opened: ExitStack) -> Directory:
    return filetree.of_erofs(opened.enter_context(repo.map(side.erofs[key], side.name)))


def laid(repo: ReadRepo, image: StoredImage, name: str) -> Directory:
    """The files of an image by its layers, laid upon each other.

    Args:
        repo: where; the caller holds its lock shared.
        image: the image.
        name: what it is called, for errors.

    Raises:
        RefusedError (no-files): a layer is not there.
        DamagedError: a layer cannot be read.
    """
    root = filetree.Folder()
    for layer in image.layers:
        if layer.object is None:
            raise RefusedError("no-files", name=name, reason=f"layer {_key(layer)} is not there")
        with about(layer.diff_id or layer.descriptor.digest), repo.map(layer.object, name) as data:
            stream = splitstream.parse(data, repo.algorithm)
            try:
                if stream.content_type == splitstream.CONTENT_TYPE_LAYER:
                    root.lay(tarlayer.contents(splitstream.chunks(stream)))
            finally:
                stream.release()
    return root


# -- layers and config -------------------------------------------------------------------------------------------------


def _layers(repo: ReadRepo, old: StoredImage | None, new: StoredImage | None) -> Iterator[Layer]:
    mine, others = ({_key(layer): layer for layer in (image.layers if image is not None else ())} for image in (old, new))
    for key, layer in {**mine, **others}.items():
        where = "both" if key in mine and key in others else "old" if key in mine else "new"
        yield Layer(key, where, layer.descriptor.size, _size(repo, layer))


def _key(layer: StoredLayer) -> str:
    return layer.diff_id or layer.descriptor.digest


def _size(repo: ReadRepo, layer: StoredLayer) -> int | None:
    """Bytes of the tar of a layer, as its stream says."""
    if layer.object is None or not repo.has_object(layer.object):
        return None
    with repo.map(layer.object, _key(layer)) as data:
        stream = splitstream.parse(data, repo.algorithm)
        stream.release()
    return stream.stream_size


_FIELDS: tuple[tuple[str, Callable[[StoredImage], str | tuple[str, ...] | None]], ...] = (
    ("media_type", lambda image: image.manifest.config.media_type),
    ("artifact_type", lambda image: image.manifest.artifact_type),
)
_OF_CONFIG = (
    *("architecture", "variant", "os", "os_version", "created", "author", "user", "working_dir", "stop_signal"),
    *("entrypoint", "cmd"),
)


def _settings(old: StoredImage | None, new: StoredImage | None) -> Iterator[Setting]:
    before, after = _said(old), _said(new)
    for field, key in {**before, **after}:
        values = before.get((field, key)), after.get((field, key))
        if values[0] != values[1]:
            yield Setting(field, key, *values)


def _said(image: StoredImage | None) -> dict[tuple[str, str | None], str | tuple[str, ...]]:
    """What manifest and config say, by field and key."""
    found: dict[tuple[str, str | None], str | tuple[str, ...]] = {}
    if image is None:
        return found
    for field, value_of in _FIELDS:
        found[field, None] = value_of(image) or ()
    config = image.config
    if config is not None:
        found.update({(field, None): getattr(config, field) for field in _OF_CONFIG})
        found.update({("env", name): value for name, _, value in (one.partition("=") for one in config.env)})
        found.update({("label", name): config.labels[name] for name in sorted(config.labels)})
    found.update({("annotation", name): value for name, value in sorted(image.manifest.annotations.items())})
    return {place: value for place, value in found.items() if value or place[1] is not None}


# -- packages ----------------------------------------------------------------------------------------------------------

_PACKAGES = (
    # the list of a package's files; its name may have the architecture behind a colon
    ("dpkg", re.compile(r"(?:.*/)?dpkg/info/(?P<name>[^/]+)\.list")),
    # name, version and release
    ("pacman", re.compile(r"(?:.*/)?pacman/local/(?P<name>[^/]+)-(?P<version>[^/-]+-[^/-]+)")),
    ("python", re.compile(r"(?:.*/)?(?:site|dist)-packages/(?P<name>[^/-]+)-(?P<version>[^/]+)\.(?:dist|egg)-info")),
    ("kernel", re.compile(r"usr/lib/modules/(?P<version>[^/]+)")),
)
"""Paths that are there once for each package, by where the name and the version stand in them."""


def _packages(files: Iterable[Change]) -> Iterator[Package]:
    versions: dict[tuple[str, str], tuple[list[str | None], list[str | None]]] = {}
    for change in files:
        for kind, pattern in _PACKAGES:
            match = pattern.fullmatch(change.path)
            if match is None or not _is_marker(kind, change):
                continue
            found = match.groupdict()
            before, after = versions.setdefault((kind, found.get("name") or kind), ([], []))
            if change.old is not None:
                before.append(found.get("version"))
            if change.new is not None:
                after.append(found.get("version"))
    for (kind, name), (before, after) in sorted(versions.items()):
        # several versions of one package at a time: kernels
        pairs = zip(before, after, strict=True) if len(before) == len(after) == 1 else None
        for old, new in pairs or [*((version, None) for version in before), *((None, version) for version in after)]:
            change_of = "changed" if pairs is not None else "removed" if old is not None or not after else "added"
            yield Package(kind, name, change_of, old, new)


def _is_marker(kind: str, change: Change) -> bool:
    """Whether a change is one of a package: a directory that came or went, or the list of its files."""
    if kind == "dpkg":
        return change.old is None or change.new is None or "content" in change.parts
    return change.old is None or change.new is None
