"""Listings as users of other tools know them: ``list --format podman``, ``podman-json`` and ``crane``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cfs_tags.cli import output
from cfs_tags.errors import CfsTagsError, printable
from cfs_tags.values import instant_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.repo.images import StoredImage
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.tags.rows import Tag
    from cfs_tags.values import Digest

_ID = 12
_UNITS = ((31_536_000, "year"), (2_592_000, "month"), (604_800, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute"))


class _Image(NamedTuple):
    digest: Digest
    stored: StoredImage
    size: int
    created: float | None


def show(repo: ReadRepo, found: Sequence[Tag], preset: str) -> None:
    """Print tags in one of these ways.  Deployment refs, broken tags and artifacts have no place in them.

    Args:
        repo: where.
        found: tags.
        preset: ``podman``, ``podman-json`` or ``crane``.
    """
    tags = [tag for tag in found if tag.owner in ("app", "bootc") and tag.digest is not None and tag.problem is None]
    if preset == "crane":
        output.data([printable(tag.name) for tag in tags])
        return
    known: dict[Digest | None, _Image | None] = {}
    for tag in tags:
        if tag.digest is not None and tag.digest not in known:
            known[tag.digest] = _look(repo, tag.digest)
    rows = [(tag, image) for tag in tags if (image := known[tag.digest]) is not None]
    if preset == "podman":
        _table(rows)
    else:
        _json(rows)


def _look(repo: ReadRepo, digest: Digest) -> _Image | None:
    from cfs_tags.apps import layer_tar
    from cfs_tags.repo import images

    try:
        stored = images.load(repo, digest)
        if stored.config is None:
            return None
        size = sum(layer_tar.size(repo, layer.object) for layer in stored.layers if layer.object is not None)
    except CfsTagsError:
        return None
    return _Image(digest, stored, size, _instant(stored.config.created))


def _instant(text: str | None) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None for anything else."""
    found = instant_of(text)
    return found.timestamp() if found is not None else None


def _split(name: str) -> tuple[str, str]:
    """Repository and tag, as podman shows them."""
    place, slash, last = name.rpartition("/")
    base, colon, tag = last.partition(":")
    return f"{place}{slash}{base}", tag if colon else "latest"


def _table(rows: Sequence[tuple[Tag, _Image]]) -> None:
    shown = [("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")]
    for tag, image in rows:
        repository, name = _split(tag.name)
        config = image.stored.manifest.config.digest.hex[:_ID]
        shown.append((printable(repository), printable(name), config, _ago(image.created), _size(image.size)))
    widths = [max(len(row[index]) for row in shown) for index in range(4)]
    output.data(
        ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip() for row in shown]
    )


def _json(rows: Sequence[tuple[Tag, _Image]]) -> None:
    """The keys of ``podman images --format json``: one object for each image, with all its names."""
    images: dict[Digest, tuple[_Image, list[str]]] = {}
    for tag, image in rows:
        images.setdefault(image.stored.manifest.config.digest, (image, []))[1].append(tag.name)
    documents: list[dict[str, Any]] = []
    for config, (image, names) in images.items():
        facts = image.stored.config
        repositories = dict.fromkeys(_split(name)[0] for name in names)
        documents.append(
            {
                "Id": config.hex,
                "ParentId": "",
                "RepoTags": None,
                "RepoDigests": [f"{repository}@{image.digest}" for repository in repositories],
                "Size": image.size,
                "SharedSize": 0,
                "VirtualSize": image.size,
                "Labels": dict(facts.labels) if facts is not None else {},
                "Containers": 0,
                "Names": names,
                "Digest": image.digest,
                "Created": int(image.created or 0),
                "CreatedAt": facts.created if facts is not None else None,
            }
        )
    output.data([output.to_json(documents)])


def _ago(created: float | None) -> str:
    if created is None:
        return "N/A"
    from time import time

    seconds = time() - created
    for length, unit in _UNITS:
        count = int(seconds // length)
        if count > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "Less than a minute ago"


def _size(count: int) -> str:
    """Bytes with three digits, as podman shows them."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
