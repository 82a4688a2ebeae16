"""What a name stands for: a tag, a digest or the start of one, a deployment, something in the trash, an entry of the log."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from cfs_tags.errors import CfsTagsError, NotFoundError, RefusedError, TagNotFound, TargetNotFound, UsageError
from cfs_tags.formats.boot.paths import BOOTC_TAG_PREFIX
from cfs_tags.repo import images, layout, refs
from cfs_tags.tags.rows import Health, digest_of, find, list_tags, trash
from cfs_tags.values import ContentId, Digest, seconds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.formats.oci import Index
    from cfs_tags.repo.store import ReadRepo

_LOGGED = re.compile(r"(.+)@\{([^{}]*)\}", re.DOTALL)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_SHORTEST_PREFIX = 6
_DIGITS = re.compile(rf"[0-9a-f]{{{_SHORTEST_PREFIX},}}", re.ASCII)

_Name = TypeVar("_Name", bound=str)


@refs.at_once
def resolve(repo: ReadRepo, text: str, *, ended: bool = False) -> Digest:
    """The manifest that a name stands for.

    Args:
        repo: where.
        text: a tag; ``@sha256:`` and hexadecimal digits, or at least six of them; ``@deployment/<id or prefix>``;
            ``@pin/<name>``; ``@trash/<name>``; ``NAME@{N}`` or ``NAME@{TIME}`` from the log; or, where no tag is called that,
            ``sha256:`` and digits, or six or more digits of a digest, of a deployment's id, or of an image's.
        ended: whether a lease whose time is over still resolves; for commands that explain it.

    Raises:
        NotFoundError: it stands for nothing, or (lease-ended) not any more.
        UsageError: a prefix fits several, or ``@`` and something else.
        BadRefLink, TargetNotFound: the tag leads somewhere that is no manifest, or to nothing.
    """
    if text.startswith("@"):
        return _resolve_special(repo, text)
    tag = find(repo, text)
    if tag is not None:
        digest = digest_of(tag)
        if tag.has_ended and not ended:
            raise NotFoundError("lease-ended", name=text, digest=digest, expires=tag.expires or "")
        if repo.stream_object(ContentId.manifest(digest)) is None:
            raise TargetNotFound(kind="manifest", name=digest)
        return digest
    logged = split_logged(text)
    if logged is not None:
        from cfs_tags.tags.history import logged_digest

        return logged_digest(repo, *logged)
    if text.startswith("sha256:") and _HEX.fullmatch(text[7:]):
        return _by_prefix(repo, text)
    found = _beginning(repo, text)
    if found:
        return _resolve_special(repo, only(found, text, "manifest"))
    raise TagNotFound(name=text)


def tag_of(repo: ReadRepo, text: str) -> str:
    """The tag that is meant where one is deleted or renamed: it is called so; it alone names the manifest whose digest is
    ``sha256:`` and digits, with ``@`` before them or without, or digits alone, six or more; or a listing shortens the name of
    bootc's to this.  Any other text is as it was.

    Raises:
        UsageError (ambiguous-name): several tags name the manifest, or several things begin so.
    """
    digits = text.removeprefix("@").removeprefix("sha256:")
    if not _DIGITS.fullmatch(digits) or text == f"@{digits}" or find(repo, text) is not None:
        return in_full(repo, text)
    found = _beginning(repo, digits) if text == digits else _manifests(repo, digits)
    if not found:
        return text
    meant = only(found, text, "manifest")
    tags = list_tags(repo, owners=("app", "bootc"))
    named = [tag.name for tag in tags if f"@{tag.digest}" == meant and not tag.has_ended]
    return only(named, text, "tag") if named else meant


def _beginning(repo: ReadRepo, digits: str) -> list[str]:
    """Names of what begins with digits: manifests by their digests, deployment refs by their ids; where there is none,
    manifests by their configs, whose digests other programs call the ids of images."""
    if not _DIGITS.fullmatch(digits):
        return []
    found = _manifests(repo, digits)
    found += [f"@deployment/{name}" for name in repo.names(layout.DEPLOYMENTS) or () if name.startswith(digits)]
    start = f"{ContentId.CONFIG}sha256:{digits}"
    if not found and any(name.startswith(start) for name in repo.names(layout.STREAMS) or ()):
        found = [name for name in _manifests(repo) if _config_of(repo, Digest.trusted(name[1:])).startswith(start)]
    return found


def _manifests(repo: ReadRepo, digits: str = "") -> list[str]:
    start = f"{ContentId.MANIFEST}sha256:{digits}"
    names = [name for name in repo.names(layout.STREAMS) or () if name.startswith(start)]
    return [f"@{digest}" for name in names if (digest := ContentId(name).manifest_digest) is not None]


def _config_of(repo: ReadRepo, digest: Digest) -> str:
    with suppress(CfsTagsError):
        return ContentId.config(images.load(repo, digest).manifest.config.digest)
    return ""


def split_logged(text: str) -> tuple[str, int | float] | None:
    """``NAME@{N}`` as name and the number of an entry, ``NAME@{TIME}`` as name and seconds since 1970 (a fraction); None for
    other text.

    Raises:
        UsageError: what stands in braces is neither.
    """
    match = _LOGGED.fullmatch(text)
    if match is None:
        return None
    name, inner = match.groups()
    if _NUMBER.fullmatch(inner) is not None:
        return name, int(inner)
    seconds = seconds_of(inner)
    if seconds is None:
        reason = "has neither the number of an entry nor a time in braces: write @{1}, @{yesterday} or @{2026-01-31}"
        raise UsageError("invalid-argument", argument="name", value=text, reason=reason)
    return name, float(seconds)


def _resolve_special(repo: ReadRepo, text: str) -> Digest:
    kind, _, rest = text[1:].partition("/")
    if text.startswith("@sha256:"):
        return _by_prefix(repo, text[1:])
    if kind == "deployment" and rest:
        return _deployment(repo, rest)
    if kind == "pin" and rest:
        from cfs_tags.tags import pins

        return pins.manifest_of(repo, rest)
    if kind == "trash" and rest:
        for tag in reversed(trash(repo)):
            if tag.name == text:
                return digest_of(tag)
        raise TagNotFound(name=text)
    reason = "is none of @sha256:DIGITS, @deployment/ID, @pin/NAME and @trash/NAME"
    raise UsageError("invalid-argument", argument="name", value=text, reason=reason)


def _by_prefix(repo: ReadRepo, text: str) -> Digest:
    digits = text.partition(":")[2]
    if len(digits) == 64 and _HEX.fullmatch(digits):
        digest = Digest.trusted(text)
        if repo.stream_object(ContentId.manifest(digest)) is None:
            from cfs_tags.tags.indexes import kept_index

            index = kept_index(repo, ContentId.blob(digest))
            if index is not None:
                raise RefusedError("target-is-index", target=text, platforms=_platforms(index))
            raise TargetNotFound(kind="manifest", name=text)
        return digest
    if not _SHORTEST_PREFIX <= len(digits) < 64 or not _HEX.fullmatch(digits):
        raise UsageError(
            "invalid-argument",
            argument="digest",
            value=text,
            reason=f"needs {_SHORTEST_PREFIX} to 64 hexadecimal digits in lower case",
        )
    return Digest.trusted(only([name[1:] for name in _manifests(repo, digits)], text, "manifest"))


def in_full(repo: ReadRepo, text: str) -> str:
    """The tag of bootc's whose name begins so, as listings shorten it: with at least six digits, and "…" or nothing behind
    them.  Any other name, and one that no tag of bootc's begins with, is as it was.

    Raises:
        UsageError (ambiguous-name): there are more.
    """
    start = text.removesuffix("…")
    digits = start.removeprefix(f"{BOOTC_TAG_PREFIX}sha256:")
    if digits == start or not _SHORTEST_PREFIX <= len(digits) < 64 or not _HEX.fullmatch(digits):
        return text
    found = [name for name in map(layout.decode_name, repo.names(layout.SHARED_TAGS) or ()) if name.startswith(start)]
    return only(found, text, "tag") if found and text not in found else text


def _platforms(index: Index) -> tuple[str, ...]:
    found = [entry.platform for entry in index.manifests if entry.platform is not None]
    shown = ["/".join(part for part in (one.os, one.architecture, one.variant) if part) for one in found]
    return tuple(one for one in dict.fromkeys(shown) if "unknown" not in one)


def _deployment(repo: ReadRepo, prefix: str) -> Digest:
    found = [name for name in repo.names(layout.DEPLOYMENTS) or () if name.startswith(prefix)]
    path = f"{layout.DEPLOYMENTS}/{only(found, prefix, 'deployment ref')}"
    link = repo.read_link(path)
    return digest_of(Health(repo).tag("deployment", path, path.rpartition("/")[2], link))


def only(found: Sequence[_Name], text: str, kind: str) -> _Name:
    """The one of several names that the start of one fits.

    Raises:
        TargetNotFound: there is none.
        UsageError (ambiguous-name): there are more.
    """
    if not found:
        raise TargetNotFound(kind=kind, name=text)
    if len(found) > 1:
        raise UsageError("ambiguous-name", name=text, candidates=tuple(sorted(found)))
    return found[0]
