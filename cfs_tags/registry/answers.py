"""The distribution protocol: what a request is answered with, by what the catalog has.

Facts of the protocol: OCI distribution specification 1.1; what it leaves open is done as the reference registry
(distribution 3) does it.  Nothing here knows of sockets, servers or threads.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from cfs_tags.formats import oci
from cfs_tags.registry import routes
from cfs_tags.registry.images import Manifest, NotServed
from cfs_tags.registry.routes import Problem, Route, problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfs_tags.registry.catalog import Catalog
    from cfs_tags.values import Digest, ObjectId

_MAX_REFERRERS = 1000
"""Referrers in the longest list that is given at once; a Link leads on."""
_MAX_REFERRERS_BYTES = 3 << 20
"""Bytes, about, of the longest list of referrers: clients take manifests of 4 MiB."""

_JSON = "application/json"


class Part(NamedTuple):
    """Bytes ``start`` to ``start + length`` of what a splitstream stands for."""

    stream: ObjectId
    start: int
    length: int


class Answer(NamedTuple):
    """What a request is answered with.  The application leaves out the body of an answer to HEAD."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | Part = b""

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.length


def answer(catalog: Catalog, wanted: Route | Problem, headers: Mapping[str, str]) -> Answer:
    """Answer a request.

    Args:
        catalog: what there is.
        wanted: what is asked for.
        headers: of the request, by name in lower case.

    Raises:
        CfsTagsError: the repository cannot be read.
        Paused: it takes long, and is to be asked again.
    """
    if isinstance(wanted, Problem):
        return error(wanted)
    match wanted.kind:
        case "base":
            return _json({})
        case "catalog":
            names, last = routes.page(catalog.repositories(), wanted.page)
            return _json({"repositories": names}, _link("/v2/_catalog", last, wanted.page))
        case "tags":
            known = catalog.tags_of(wanted.name)
            if known is None:
                return error(problem("NAME_UNKNOWN", "no such repository"))
            names, last = routes.page(known, wanted.page)
            return _json({"name": wanted.name, "tags": names}, _link(f"/v2/{wanted.name}/tags/list", last, wanted.page))
        case "manifest":
            return _manifest(catalog, wanted, headers)
        case "blob" | "any":
            return _blob(catalog, wanted, headers)
        case "layers":
            return _json({"layers": {digest: state._asdict() for digest, state in catalog.layers(wanted.digests).items()}})
        case "referrers":
            return _referrers(catalog, wanted)


def error(wrong: Problem, *more: tuple[str, str]) -> Answer:
    """The answer that tells of a problem, with more headers."""
    document = {"errors": [{"code": wrong.code, "message": wrong.message, "detail": None}]}
    allow = (("Allow", "GET, HEAD"),) if wrong.status == 405 else ()
    return Answer(wrong.status, (("Content-Type", _JSON), *allow, *more), json.dumps(document).encode())


def _json(document: object, *more: tuple[str, str] | None, media_type: str = _JSON) -> Answer:
    headers = (("Content-Type", media_type), *(header for header in more if header is not None))
    return Answer(200, headers, json.dumps(document, separators=(",", ":")).encode())


def _link(path: str, last: str | None, page: routes.Page, **filters: str | None) -> tuple[str, str] | None:
    return None if last is None else ("Link", routes.next_link(path, last, page.limit, **filters))


def _manifest(catalog: Catalog, wanted: Route, headers: Mapping[str, str]) -> Answer:
    if wanted.digest is not None:
        found = catalog.by_digest(wanted.name, wanted.digest)
    else:
        found = catalog.by_tag(wanted.name, wanted.tag or "")
    if not isinstance(found, Manifest):
        reason = found.reason if isinstance(found, NotServed) else "no such manifest"
        return error(problem("MANIFEST_UNKNOWN", reason))
    shown = (("Content-Type", found.media_type), *_identity(found.digest))
    return Answer(304, shown) if _unchanged(headers, found.digest) else Answer(200, shown, found.raw)


def _blob(catalog: Catalog, wanted: Route, headers: Mapping[str, str]) -> Answer:
    assert wanted.digest is not None
    found = catalog.blob(wanted.name, wanted.digest) if wanted.kind == "blob" else catalog.any_blob(wanted.digest)
    if found is None:
        return error(problem("BLOB_UNKNOWN", "no such blob"))
    shown = (("Content-Type", "application/octet-stream"), *_identity(found.digest), ("Accept-Ranges", "bytes"))
    if _unchanged(headers, found.digest):
        return Answer(304, shown)
    span = headers.get("range")
    # with If-Range the range is meant only for the very blob that the client has a part of
    if span is None or headers.get("if-range", _tag(found.digest)) != _tag(found.digest):
        return Answer(200, shown, Part(found.stream, 0, found.size))
    part = routes.byte_range(span, found.size)
    if isinstance(part, Problem):
        return error(part, ("Content-Range", f"bytes */{found.size}"))
    if part is None:
        return Answer(200, shown, Part(found.stream, 0, found.size))
    start, length = part
    place = ("Content-Range", f"bytes {start}-{start + length - 1}/{found.size}")
    return Answer(206, (*shown, place), Part(found.stream, start, length))


def _referrers(catalog: Catalog, wanted: Route) -> Answer:
    assert wanted.digest is not None
    filtered = wanted.artifact_type
    names: list[dict[str, Any]] = []
    size, last = 0, None
    for manifest in catalog.referrers(wanted.name, wanted.digest, filtered, wanted.page.last):
        descriptor = {
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": len(manifest.raw),
            **({"artifactType": manifest.artifact_type} if manifest.artifact_type is not None else {}),
            **({"annotations": manifest.annotations} if manifest.annotations else {}),
        }
        size += len(json.dumps(descriptor))
        if len(names) == _MAX_REFERRERS or (names and size > _MAX_REFERRERS_BYTES):
            last = str(names[-1]["digest"])
            break
        names.append(descriptor)
    return _json(
        {"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX, "manifests": names},
        _link(f"/v2/{wanted.name}/referrers/{wanted.digest}", last, routes.Page(), artifactType=filtered),
        ("OCI-Filters-Applied", "artifactType") if filtered is not None else None,
        media_type=oci.MEDIA_TYPE_INDEX,
    )


def _identity(digest: Digest) -> tuple[tuple[str, str], ...]:
    return ("Docker-Content-Digest", digest), ("ETag", _tag(digest))


def _tag(digest: Digest) -> str:
    return f'"{digest}"'


def _unchanged(headers: Mapping[str, str], digest: Digest) -> bool:
    wanted = headers.get("if-none-match")
    return wanted is not None and (wanted.strip() == "*" or _tag(digest) in wanted)
