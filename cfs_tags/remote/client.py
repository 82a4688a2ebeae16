"""A client of the distribution protocol (OCI distribution-spec 1.1), for manifests, tags and blobs.

What a registry sends is foreign: it is read up to a limit, and what was asked for by its digest has that digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from cfs_tags.errors import CfsTagsError, DamagedError, FormatError, InvalidDigest
from cfs_tags.formats import json_fields, oci
from cfs_tags.remote.names import Access, Place, is_tag
from cfs_tags.remote.transport import AGAIN, MAX_ERROR, Answer, Transport
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cfs_tags.remote.credentials import Challenge

_MAX_PAGE = 16 << 20
_MAX_PAGES = 10_000
_PAGE = 1000
_MAX_TAGS = 2_000_000
_PIECE = 8 << 20
_ACCEPT = ", ".join(oci.MANIFEST_TYPES)


class Found(NamedTuple):
    """A manifest or index as it was fetched."""

    digest: Digest
    data: bytes
    media_type: str


class Missing(CfsTagsError):
    """A manifest that the repository lacks, or that was refused because of what it names and the repository lacks."""


class Client:
    """Talks to one registry.  For one thread at a time, except :meth:`get`, which several may call.

    Args:
        place: the repository that is meant where none is named.
        access: how it is reached.
        challenge: what the registry wanted the last time, so that it need not be asked.
        again: how often a request is repeated that the registry cannot answer yet.

    Attributes:
        transport: sends the requests; counts them and their bytes, and knows the registry's clock.
    """

    def __init__(self, place: Place, access: Access, challenge: Challenge | None = None, *, again: int = AGAIN) -> None:
        self._place = place
        self.transport = Transport(place, access, challenge, again)
        self._ask = self.transport.ask

    def close(self) -> None:
        """Close its connections."""
        self.transport.close()

    # -- manifests and tags --------------------------------------------------------------------------------------------

    def head(self, reference: str, repository: str | None = None) -> Digest | None:
        """The digest of a tag's manifest, or of one that is there; None where there is none.

        Raises:
            CfsTagsError (registry-unreachable, registry-failed), RefusedError (registry-refused): the registry does not say.
        """
        answer = self._ask("HEAD", self._manifest(reference, repository), ok=(200, 404), headers={"Accept": _ACCEPT})
        if answer.status == 404:
            return None
        said = answer.headers.get("Docker-Content-Digest")
        if said is None:  # optional in the specification
            found = self.get(reference, repository)
            return found.digest if found is not None else None
        return self._digest(said)

    def get(self, reference: str, repository: str | None = None) -> Found | None:
        """A manifest or index by tag or digest; None where there is none.

        Raises:
            DamagedError (digest-mismatch): it is another than that digest's.
            CfsTagsError: as :meth:`head`.
        """
        path = self._manifest(reference, repository)
        answer = self._ask("GET", path, ok=(200, 404), headers={"Accept": _ACCEPT}, limit=oci.MAX_MANIFEST)
        if answer.status == 404:
            return None
        digest = Digest.of(answer.body)
        said = answer.headers.get("Docker-Content-Digest", digest)
        wanted = Digest.parse(reference) if ":" in reference else self._digest(said)
        found = Digest.of(answer.body, wanted.algorithm)
        if found != wanted:
            raise DamagedError("digest-mismatch", path=f"{self._place.registry}{path}", wanted=wanted, found=found)
        return Found(digest, answer.body, answer.headers.get("Content-Type", "").partition(";")[0].strip())

    def need(self, digest: Digest, repository: str | None = None) -> Found:
        """A manifest or index by its digest.

        Raises:
            Missing: there is none.
            CfsTagsError: as :meth:`get`.
        """
        found = self.get(digest, repository)
        if found is None:
            raise self._missing(f"GET {self._manifest(digest, repository)}")
        return found

    def put(self, reference: str, data: bytes, media_type: str, repository: str | None = None) -> None:
        """Upload a manifest, under a tag or its digest.

        Raises:
            Missing: it names what the repository lacks.
            CfsTagsError: as :meth:`head`.
        """
        path = self._manifest(reference, repository)
        answer = self._ask("PUT", path, ok=(201, 200, 202, 400, 404), body=data, headers={"Content-Type": media_type})
        if answer.status in (400, 404):
            said = answer.body[:MAX_ERROR]
            if any(code in said for code in (b"MANIFEST_BLOB_UNKNOWN", b"BLOB_UNKNOWN", b"MANIFEST_UNKNOWN", b"NAME_UNKNOWN")):
                raise Missing("registry-failed", **self.transport.failed(answer).facts())
            raise self.transport.failed(answer)

    def delete(self, tag: str, repository: str | None = None) -> bool:
        """Delete a tag; whether the registry does such things.  One that is not there is no error.

        Raises:
            CfsTagsError: as :meth:`head`.
        """
        answer = self._ask("DELETE", self._manifest(tag, repository), ok=(200, 202, 204, 400, 404, 405, 501))
        return answer.status < 400 or answer.status == 404

    def tags(self, repository: str | None = None) -> list[str]:
        """All tags, in the order of the registry; none where there is no such repository.

        Raises:
            FormatError: the answer is no list of tags, or has no end.
            CfsTagsError: as :meth:`head`.
        """
        path: str | None = f"/v2/{repository or self._place.repository}/tags/list?n={_PAGE}"
        found: list[str] = []
        seen = set()
        while path is not None:
            seen.add(path)
            answer = self._ask("GET", path, ok=(200, 404), limit=_MAX_PAGE)
            if answer.status == 404:
                return found
            structure = f"list of tags of {self._place}"
            try:
                # what can be no tag cannot be asked for, and might be of any length
                found += filter(is_tag, json_fields.texts(json_fields.load(answer.body, structure, _MAX_PAGE), "tags"))
            except json_fields.Wrong as wrong:
                raise wrong.as_error(structure) from None
            path = self._next(path, answer.headers.get("Link"))
            if path in seen or len(seen) > _MAX_PAGES or len(found) > _MAX_TAGS:
                raise FormatError(structure=structure, offset=0, wanted="an end", found="pages without one")
        return found

    def _next(self, path: str, link: str | None) -> str | None:
        """The path of the next page, of the same registry."""
        start, _, rest = (link or "").partition(">")
        if not start.startswith("<") or 'rel="next"' not in rest.replace("rel=next", 'rel="next"'):
            return None
        parts = urlsplit(self.transport.join(f"{self.transport.scheme}://{self._place.address}{path}", start[1:]))
        path = f"/{parts.path.lstrip('/')}"  # two of them would begin the name of a host
        return f"{path}?{parts.query}" if parts.query else path

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest, repository: str | None = None) -> bool:
        """Whether a blob is there.  Raises as :meth:`head`."""
        return self._ask("HEAD", self._blob(digest, repository), ok=(200, 404)).status == 200

    def need_blob(self, digest: Digest, repository: str | None = None) -> None:
        """Look whether a blob is there.

        Raises:
            Missing: it is not.
            CfsTagsError: as :meth:`head`.
        """
        if not self.has_blob(digest, repository):
            raise self._missing(f"HEAD {self._blob(digest, repository)}")

    def blob(self, digest: Digest, limit: int, repository: str | None = None) -> bytes | None:
        """A small blob; None where it is not there.

        Raises:
            DamagedError (digest-mismatch): it is another one.
            CfsTagsError: as :meth:`head`.
        """
        path = self._blob(digest, repository)
        answer = self._ask("GET", path, ok=(200, 404), limit=limit)
        if answer.status == 404:
            return None
        found = Digest.of(answer.body, digest.algorithm)
        if found != digest:
            raise DamagedError("digest-mismatch", path=f"{self._place.registry}{path}", wanted=digest, found=found)
        return answer.body

    def mount(self, digest: Digest, source: str, repository: str | None = None) -> bool:
        """Have a blob of another repository of the registry in this one, too, without sending it; whether that was done.

        Raises as :meth:`head`.
        """
        query = urlencode({"mount": digest, "from": source})
        path = f"/v2/{repository or self._place.repository}/blobs/uploads/?{query}"
        answer = self._ask("POST", path, ok=(201, 202, 400, 404, 405), scopes=[f"repository:{source}:pull"])
        if answer.status == 202:  # it began an upload instead
            self._ask("DELETE", self._location(answer), ok=(200, 202, 204, 400, 404, 405))
        return answer.status == 201

    def upload(self, digest: Digest | Callable[[], Digest], pieces: Iterable[bytes], repository: str | None = None) -> None:
        """Upload a blob, in pieces.

        Args:
            digest: of all of them; or what tells it when all were read.
            pieces: of any size.
            repository: where to.

        Raises:
            CfsTagsError: as :meth:`head`.
        """
        start = f"/v2/{repository or self._place.repository}/blobs/uploads/"
        where = self._location(self._ask("POST", start, ok=(202,)))
        at, last = 0, b""
        for piece in _regular(pieces):
            if last:
                headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{at}-{at + len(last) - 1}"}
                where = self._location(self._ask("PATCH", where, ok=(202,), body=last, headers=headers))
                at += len(last)
            last = piece
        headers = {"Content-Type": "application/octet-stream"}
        if at:
            headers["Content-Range"] = f"{at}-{at + len(last) - 1}"
        joint = "&" if "?" in where else "?"
        whole = digest if isinstance(digest, str) else digest()
        self._ask("PUT", f"{where}{joint}{urlencode({'digest': whole})}", ok=(201,), body=last, headers=headers)

    # -- paths and digests ---------------------------------------------------------------------------------------------

    def _missing(self, request: str) -> Missing:
        return Missing("registry-failed", registry=self._place.registry, request=request, answer=404, reason="it is not there")

    def _manifest(self, reference: str, repository: str | None) -> str:
        return f"/v2/{repository or self._place.repository}/manifests/{quote(reference, safe=':')}"

    def _blob(self, digest: Digest, repository: str | None) -> str:
        return f"/v2/{repository or self._place.repository}/blobs/{digest}"

    def _location(self, answer: Answer) -> str:
        """Where an upload goes on, as the registry says."""
        return self.transport.join(answer.url, answer.headers.get("Location", ""))

    def _digest(self, text: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidDigest:
            structure = f"answer of {self._place.registry}"
            raise FormatError(structure=structure, offset=0, wanted="a digest", found=repr(text[:100])) from None


def _regular(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size, but for the last; one empty piece where there are none."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) > _PIECE:
            yield bytes(waiting[:_PIECE])
            del waiting[:_PIECE]
    yield bytes(waiting)
