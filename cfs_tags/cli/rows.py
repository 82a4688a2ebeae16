"""Tags as rows of a listing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cfs_tags.cli import output
from cfs_tags.errors import CfsTagsError
from cfs_tags.formats.boot.paths import BOOTC_TAG_PREFIX
from cfs_tags.repo import images
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags import rows
from cfs_tags.tags.rows import Facts, Tag
from cfs_tags.values import Digest


class Details(NamedTuple):
    """What a long listing says of a manifest: ``size`` in bytes, as it is moved; ``problem`` where it could not be read."""

    facts: Facts | None
    referrers: int
    size: int | None = None
    problem: str | None = None


_NOTHING = Details(None, 0)


def details(repo: ReadRepo, found: list[Tag]) -> dict[Digest | None, Details]:
    """The details of every manifest that is named, each read once."""
    known: dict[Digest | None, Details] = {None: _NOTHING}
    for tag in found:
        digest = tag.digest
        if digest is not None and digest not in known:
            known[digest] = _look(repo, digest)
    return known


def _look(repo: ReadRepo, digest: Digest) -> Details:
    count = 0
    try:
        count = len(rows.referrers(repo, digest))
        image = images.load(repo, digest)
    except CfsTagsError as error:
        return Details(None, count, problem=error.message)
    size = image.manifest.config.size + sum(layer.size for layer in image.manifest.layers)
    return Details(rows.facts(image), count, size)


def row(tag: Tag, more: Details | None = None) -> dict[str, Any]:
    """A tag as JSON shows it, with the facts of a long listing where they are given."""
    shown: dict[str, Any] = output.named(tag.name)
    shown["ref"] = tag.path
    shown["digest"] = tag.digest
    shown["home"] = tag.home
    shown["owner"] = tag.owner
    shown["link"] = tag.link
    shown["problem"] = tag.problem
    shown["expires"] = output.instant(tag.expires)
    if more is not None:
        facts = more.facts
        shown["problem"] = tag.problem or more.problem
        shown["is_container"] = facts.is_container if facts is not None else None
        shown["architecture"] = facts.architecture if facts is not None else None
        shown["os"] = facts.os if facts is not None else None
        shown["created"] = facts.created if facts is not None else None
        shown["layer_count"] = facts.layer_count if facts is not None else None
        shown["referrer_count"] = more.referrers
    return shown


def to_json(found: Sequence[Tag], more: Mapping[Digest | None, Details] | None = None) -> list[str]:
    """Every row as a JSON object.  What rows share, all but name and ref, is written once: there may be 100,000 of them."""
    known: dict[tuple[str | None, ...], str] = {}
    result = []
    for tag in found:
        key = (tag.digest, tag.home, tag.owner, tag.link, tag.problem, tag.expires)
        shared = known.get(key)
        if shared is None:
            facts = row(tag, None if more is None else more[tag.digest])
            own = ("name", "name_bytes", "ref")
            shared = known[key] = output.to_json({name: facts[name] for name in facts if name not in own})[1:]
        result.append(f"{output.to_json({**output.named(tag.name), 'ref': tag.path})[:-1]},{shared}")
    return result


def is_bootcs_own(tag: Tag) -> bool:
    """Whether the name of a tag of bootc's is a digest, which says nothing to people: such tags are one line on a terminal."""
    return tag.owner == "bootc" and tag.name == f"{BOOTC_TAG_PREFIX}{tag.digest}"


def folded(count: int, what: str) -> str:
    """The line that stands for that many tags; ``what`` says more of them."""
    return f"{BOOTC_TAG_PREFIX}…: {output.count(count, 'tag')} of bootc's{what}"


def notes(tag: Tag, more: Details | None = None) -> str:
    """What a row says besides: when it ends, and what is wrong with it."""
    problem = tag.problem or (more.problem if more is not None else None)
    ends = output.ends(tag.expires) if tag.expires is not None else ""
    return "; ".join([text for text in (ends, f"problem: {problem}" if problem else "") if text])
