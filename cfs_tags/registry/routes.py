"""What a request of the distribution protocol asks for: text in, values out.  Pure; never an exception.

:func:`route` takes the method and target of any request and gives a :class:`Route`, or a :class:`Problem`, which is the
answer.  What comes out has been matched against the grammar of the specification (OCI distribution 1.1): no other text
reaches the repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from cfs_tags.errors import InvalidDigest
from cfs_tags.registry.names import is_reference, is_repository
from cfs_tags.values import Digest

_MAX_PAGE = 10_000
"""Names in the longest list that is given at once; a Link leads on."""

_MAX_LAYERS = 100

ERROR_STATUS = {
    "BLOB_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "PAGINATION_NUMBER_INVALID": 400,
    "RANGE_INVALID": 416,
    "TOOMANYREQUESTS": 429,
    "UNAVAILABLE": 503,
    "UNKNOWN": 500,
    "UNSUPPORTED": 405,
}
"""HTTP status of each error code.  The codes are the specification's and, where it has none, those of the reference
registry (distribution 3, ``registry/api/errcode``)."""

_METHODS = ("GET", "HEAD")
_KNOWN_METHODS = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.ASCII)
_COUNT = re.compile(r"\d{1,9}", re.ASCII)


class Problem(NamedTuple):
    """A request that is answered by an error: its code, words for people, and the HTTP status."""

    code: str
    message: str
    status: int


class Page(NamedTuple):
    """What part of a list is wanted: at most ``limit`` names (None: as many as there are), those after ``last``."""

    limit: int | None = None
    last: str = ""


class Route(NamedTuple):
    """What a request asks for.

    Attributes:
        kind: ``base`` is ``/v2/``; ``catalog`` lists the repositories; ``any`` is a blob of any of them, and ``layers`` is
            what is known of some: extensions of this program's; all others have a ``name``.
        name: of the repository.
        tag: of a manifest that is asked for by its tag.
        digest: of a blob, of the subject of referrers, or of a manifest that is asked for by its digest.
        page: of a list.
        artifact_type: of the referrers that are wanted; None for all.
        digests: of layers.
    """

    kind: Literal["base", "catalog", "tags", "manifest", "blob", "referrers", "any", "layers"]
    name: str = ""
    tag: str | None = None
    digest: Digest | None = None
    page: Page = Page()
    artifact_type: str | None = None
    digests: tuple[Digest, ...] = ()


def problem(code: str, message: str, status: int | None = None) -> Problem:
    """A problem with the status of its code."""
    return Problem(code, message, ERROR_STATUS[code] if status is None else status)


def route(method: str, target: str) -> Route | Problem:
    """What a request asks for.

    Args:
        method: of the request, as it was sent.
        target: of the request, as it was sent: path and query; the absolute form is taken, too.
    """
    path, _, query = _origin_form(target).partition("?")
    parts = _decoded(path)
    if parts is None or parts[:2] != ["", "v2"]:
        return problem("UNSUPPORTED", "nothing is here but /v2/", 404)
    if method not in _METHODS:
        if method in _KNOWN_METHODS:
            return problem("UNSUPPORTED", "this registry is read-only")
        return problem("UNSUPPORTED", "no such method", 501)
    fields = _fields(query)
    match parts[2:]:
        case [] | [""]:
            return Route("base")
        case ["_catalog"]:
            wanted = _page(fields)
            return wanted if isinstance(wanted, Problem) else Route("catalog", page=wanted)
        case ["_cfs-tags", "blobs", digest]:
            found = _by_digest("blobs", digest, fields)
            return found._replace(kind="any") if isinstance(found, Route) else found
        case ["_cfs-tags", "layers"]:
            return _layers(fields.get("digests", ""))
        case [*name, "tags", "list"]:
            wanted = _page(fields)
            return _of("/".join(name), wanted if isinstance(wanted, Problem) else Route("tags", page=wanted))
        case [*name, "manifests", reference] if ":" not in reference:
            known = is_reference(reference)
            unknown = problem("MANIFEST_UNKNOWN", "no tag can have that name")
            return _of("/".join(name), Route("manifest", tag=reference) if known else unknown)
        case [*name, "manifests" | "blobs" | "referrers" as kind, digest]:
            return _of("/".join(name), _by_digest(kind, digest, fields))
    return problem("UNSUPPORTED", "no such endpoint", 404)


def byte_range(header: str, size: int) -> tuple[int, int] | Problem | None:
    """The part of ``size`` bytes that a Range header asks for (RFC 9110, section 14).

    Returns:
        Start and length; None where all of it is to be sent: another unit, several ranges, no range at all.  A problem
        where the range has no byte of it.
    """
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first:
        if not last:
            return None
        start, end = max(0, size - int(last)), size
    else:
        start = int(first)
        end = min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        return problem("RANGE_INVALID", f"no such byte: there are {size}")
    return start, end - start


def page(names: Sequence[str], wanted: Page) -> tuple[list[str], str | None]:
    """The part of a sorted list that a page asks for, and what to ask for next (``last``), None at the end."""
    from bisect import bisect_right

    start = bisect_right(names, wanted.last) if wanted.last else 0
    count = _MAX_PAGE if wanted.limit is None else min(wanted.limit, _MAX_PAGE)
    found = list(names[start : start + count])
    return found, found[-1] if found and start + count < len(names) else None


def next_link(path: str, last: str, count: int | None, **filters: str | None) -> str:
    """The Link header that leads to the next page (RFC 8288)."""
    fields = [("n", str(count))] if count is not None else []
    fields += [("last", last), *((name, value) for name, value in filters.items() if value is not None)]
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields)
    return f'<{path}?{query}>; rel="next"'


# -- details -----------------------------------------------------------------------------------------------------------


def _origin_form(target: str) -> str:
    for scheme in ("http://", "https://"):
        if target[: len(scheme)].lower() == scheme:
            slash = target.find("/", len(scheme))
            return target[slash:] if slash >= 0 else "/"
    return target


def _decoded(path: str) -> list[str] | None:
    """The parts of a path, decoded; None where it is no text.  What a part may be is for the grammar to say."""
    if "%" in path:
        try:
            path = unquote_to_bytes(path).decode()
        except UnicodeError:
            return None
    return path.split("/")


def _fields(query: str) -> dict[str, str]:
    """The first value of each field; those that cannot be read are left out."""
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
    except ValueError:
        return found
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def _page(fields: dict[str, str]) -> Page | Problem:
    count = fields.get("n")
    if count is not None and _COUNT.fullmatch(count) is None:
        return problem("PAGINATION_NUMBER_INVALID", "n is no number of names")
    return Page(int(count) if count is not None else None, fields.get("last", ""))


def _of(name: str, wanted: Route | Problem) -> Route | Problem:
    """The same of a repository, if it can have that name."""
    if not is_repository(name):
        return problem("NAME_INVALID", "no repository can have that name")
    return wanted._replace(name=name) if isinstance(wanted, Route) else wanted


def _layers(text: str) -> Route | Problem:
    """The layers that a list of digests names."""
    digests = text.split(",")
    if len(digests) > _MAX_LAYERS:
        return problem("UNSUPPORTED", f"more than {_MAX_LAYERS} digests", 400)
    try:
        return Route("layers", digests=tuple(map(Digest.parse, digests)))
    except InvalidDigest:
        return problem("DIGEST_INVALID", "digests is a list of digests with commas in between")


def _by_digest(kind: str, text: str, fields: dict[str, str]) -> Route | Problem:
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return problem("DIGEST_INVALID", "a digest is sha256:, sha384: or sha512: and hexadecimal digits in lower case")
    if kind != "referrers":
        return Route("blob" if kind == "blobs" else "manifest", digest=digest)
    wanted = _page(fields)
    if isinstance(wanted, Problem):
        return wanted
    return Route("referrers", digest=digest, page=wanted, artifact_type=fields.get("artifactType") or None)
