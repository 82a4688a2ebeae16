"""A client of the distribution protocol (OCI distribution-spec 1.1), for manifests, tags and blobs.

Connections, TLS and proxies are urllib3's.  What is here: the exchange of credentials for tokens, bounds on everything that
a registry says, waiting until it can answer, and errors.  What a registry sends is foreign: it is read up to a limit, and what
was asked for by its digest has that digest.
"""

from __future__ import annotations

import time
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from cfs_tags.errors import CfsTagsError, DamagedError, FormatError, InvalidDigest, RefusedError
from cfs_tags.formats import json_fields, oci
from cfs_tags.remote import credentials
from cfs_tags.remote.bounds import BoundedResponse
from cfs_tags.remote.names import Access, Place, is_tag
from cfs_tags.remote.reasons import reason_of
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cfs_tags.remote.credentials import Challenge, Credentials

_CONNECT = 10.0
_READ = 30.0
_WHOLE = 120.0
"""Seconds to connect, until the next bytes, and for a whole answer that is no blob."""
_AGAIN = 5
_BACKOFF = 0.5
_LONGEST_WAIT = 60
"""How often a request is repeated, and the most seconds that a registry can have us wait before it."""
_MAX_ERROR = 1 << 16
_MAX_TOKEN = 1 << 16
_MAX_PAGE = 16 << 20
_MAX_PAGES = 10_000
_PAGE = 1000
_MAX_TAGS = 2_000_000
_PIECE = 8 << 20
_REPEATED = frozenset({"GET", "HEAD", "PUT", "DELETE", "POST"})
_LATER = frozenset({429, 500, 502, 503, 504})
_ELSEWHERE = frozenset({301, 302, 303, 307, 308})
_MOVES = 3
_ACCEPT = ", ".join(oci.MANIFEST_TYPES)
_NO_HTTPS = "wants its credentials sent without TLS"


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

    Attributes:
        requests: how many were sent, those to a token server among them, and repeated ones not.
        received: bytes of bodies.
        sent: likewise.
        offset: seconds that the registry's clock is ahead of ours, as its last answer said; None where it said nothing.
        challenge: what the registry wanted.
    """

    def __init__(self, place: Place, access: Access, challenge: Challenge | None = None, *, again: int = _AGAIN) -> None:
        self._place = place
        self._access = access
        self._scheme = "http" if access.plain or place.is_loopback else "https"
        self._again = again
        self._pool = _pool(place, access, self._scheme)
        self._credentials: dict[str, Credentials | None] = {}
        self._tokens: dict[str, str] = {}
        self._scopes: dict[str, set[str]] = {}
        self.challenge = challenge
        self.requests = self.received = self.sent = 0
        self.offset: float | None = None

    def close(self) -> None:
        """Close its connections."""
        self._pool.clear()

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
            request = f"GET {self._manifest(digest, repository)}"
            raise Missing(
                "registry-failed", registry=self._place.registry, request=request, answer=404, reason="it is not there"
            )
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
            said = answer.body[:_MAX_ERROR]
            if any(code in said for code in (b"MANIFEST_BLOB_UNKNOWN", b"BLOB_UNKNOWN", b"MANIFEST_UNKNOWN", b"NAME_UNKNOWN")):
                raise Missing("registry-failed", **self._failed(answer).facts())
            raise self._failed(answer)

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
        parts = urlsplit(self._join(f"{self._scheme}://{self._place.address}{path}", start[1:]))
        path = f"/{parts.path.lstrip('/')}"  # two of them would begin the name of a host
        return f"{path}?{parts.query}" if parts.query else path

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest, repository: str | None = None) -> bool:
        """Whether a blob is there.  Raises as :meth:`head`."""
        return self._ask("HEAD", self._blob(digest, repository), ok=(200, 404)).status == 200

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

    # -- requests ------------------------------------------------------------------------------------------------------

    def _manifest(self, reference: str, repository: str | None) -> str:
        return f"/v2/{repository or self._place.repository}/manifests/{quote(reference, safe=':')}"

    def _blob(self, digest: Digest, repository: str | None) -> str:
        return f"/v2/{repository or self._place.repository}/blobs/{digest}"

    def _location(self, answer: _Answer) -> str:
        """Where an upload goes on, as the registry says."""
        return self._join(answer.url, answer.headers.get("Location", ""))

    def _join(self, base: str, where: str) -> str:
        """The address that the registry names.

        Raises:
            FormatError: it is none.
        """
        try:
            joined = urljoin(base, where)
            urlsplit(joined)
        except ValueError:
            structure = f"answer of {self._place.registry}"
            raise FormatError(structure=structure, offset=0, wanted="an address", found=repr(where[:100])) from None
        return joined

    def _digest(self, text: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidDigest:
            structure = f"answer of {self._place.registry}"
            raise FormatError(structure=structure, offset=0, wanted="a digest", found=repr(text[:100])) from None

    def _ask(
        self,
        method: str,
        path: str,
        *,
        ok: tuple[int, ...],
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        limit: int = _MAX_ERROR,
        scopes: Sequence[str] = (),
    ) -> _Answer:
        """One request; where the registry wants a token, or another one, once more with it."""
        url = urljoin(f"{self._scheme}://{self._place.address}", path)
        given = {"User-Agent": "cfs-tag", "Accept-Encoding": "identity", **headers}
        repository = self._place.repository
        if urlsplit(url).netloc == self._place.address:
            url = f"{self._scheme}{url[url.index(':') :]}"  # one behind a proxy may not know that it is reached with TLS
            path = urlsplit(url).path
            repository = path.removeprefix("/v2/").partition("/manifests/")[0].partition("/blobs/")[0].partition("/tags/")[0]
            authorization = self._authorization(repository)
        else:
            authorization = None  # where blobs are kept, elsewhere
        for attempt in (0, 1):
            sent = given if authorization is None else {**given, "Authorization": authorization}
            answer = self._send(method, url, body, sent, limit)
            if answer.status != 401 or attempt or not answer.is_own:
                break  # what another server wants, to which we were sent, says nothing of who may have the credentials
            challenge = credentials.parse_challenge(answer.headers.get("WWW-Authenticate", ""))
            if challenge is None:
                break
            self.challenge = challenge._replace(scope="")
            wanted = {*challenge.scope.split(" "), *scopes} - {""}
            authorization = self._authorization(repository, wanted, anew=True)
            if authorization is None:
                break
        if answer.status in (401, 403) and answer.status not in ok:
            reason = answer.said or ("credentials are wanted" if answer.status == 401 else "no right")
            raise RefusedError(
                "registry-refused", registry=self._place.registry, request=answer.request, answer=answer.status, reason=reason
            )
        if answer.status not in ok:
            raise self._failed(answer)
        return answer

    def _failed(self, answer: _Answer) -> CfsTagsError:
        return CfsTagsError(
            "registry-failed",
            registry=self._place.registry,
            request=answer.request,
            answer=answer.status,
            reason=answer.said or "and nothing else",
        )

    def _send(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], limit: int) -> _Answer:
        """One request and its answer; where that may help, again after a while, and where it is elsewhere, there.

        urllib3 would read the body of an answer that is not the last to its end, and a hostile one has none.
        """
        self.requests += 1
        self.sent += len(body or b"")
        again, moved, given, first = self._again, _MOVES, dict(headers), url
        while True:
            answer, data = self._once(method, url, body, given, limit)
            self.received += len(data)
            self._set_clock(answer.headers.get("Date"))
            if answer.status in _LATER and again and method in _REPEATED:
                again -= 1
                wait = None
                with suppress(HTTPError):  # it makes no sense
                    wait = urllib3.Retry().get_retry_after(answer)
                usual = _BACKOFF * 2 ** (self._again - again) * (0.5 + random())
                time.sleep(min(usual if wait is None else wait, _LONGEST_WAIT))
                continue
            where = answer.headers.get("Location")
            if answer.status in _ELSEWHERE and moved and where and method in ("GET", "HEAD"):
                moved -= 1
                old, url = url, self._join(url, where)
                if urlsplit(url)[:2] != urlsplit(old)[:2]:
                    given.pop("Authorization", None)
                continue
            is_own = urlsplit(url)[:2] == (self._scheme, self._place.address)
            return _Answer(answer.status, answer.headers, data, first, f"{method} {urlsplit(first).path}", is_own)

    def _once(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        end = time.monotonic() + _WHOLE
        repeats = 2 if method in _REPEATED else 0
        broken = urllib3.Retry(
            connect=2,
            read=repeats,
            other=0,
            redirect=False,
            status=0,
            respect_retry_after_header=False,
            backoff_factor=_BACKOFF,
        )
        try:
            answer = self._pool.request(
                method,
                url,
                body=body,
                headers=headers,
                retries=broken,
                timeout=Timeout(connect=_CONNECT, read=_READ),
                preload_content=False,
                decode_content=False,
                redirect=False,
            )
            try:
                data = self._body(answer, limit, end)  # of none, too: else the connection is not free
            finally:
                answer.release_conn()
        except HTTPError as error:
            raise CfsTagsError("registry-unreachable", registry=self._place.registry, reason=reason_of(error)) from error
        return answer, data

    def _body(self, answer: urllib3.BaseHTTPResponse, limit: int, end: float) -> bytes:
        """The body, up to a limit of bytes and of time; of an error the beginning."""
        pieces: list[bytes] = []
        size, is_error = 0, not 200 <= answer.status < 300
        most = _MAX_ERROR if is_error else limit
        while True:
            piece = answer.read1(_MAX_ERROR)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > most or time.monotonic() > end:
                answer.close()
                if is_error:
                    return b"".join(pieces)[:_MAX_ERROR]
                found = f"more than {limit} bytes" if size > limit else f"less in {_WHOLE:.0f} s"
                structure = f"answer of {self._place.registry}"
                raise FormatError(structure=structure, offset=size, wanted="an answer with an end", found=found)

    def _set_clock(self, date: str | None) -> None:
        from email.utils import parsedate_to_datetime

        try:
            self.offset = parsedate_to_datetime(date or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _authorization(self, repository: str, wanted: set[str] | None = None, *, anew: bool = False) -> str | None:
        """The value of the Authorization header for a repository; None where there is none to send."""
        challenge = self.challenge
        if challenge is None:
            return None
        known = self._known(repository)
        if challenge.scheme == "basic":
            return known.basic if known is not None and known.user else None
        if not anew and repository in self._tokens:
            return f"Bearer {self._tokens[repository]}"
        if not anew and repository not in self._scopes:
            self._scopes[repository] = {f"repository:{repository}:pull"}
        scopes = self._scopes.setdefault(repository, set())
        scopes |= wanted or set()
        token = self._token(challenge, known, scopes)
        self._tokens[repository] = token
        return f"Bearer {token}"

    def _known(self, repository: str) -> Credentials | None:
        if repository not in self._credentials:
            self._credentials[repository] = credentials.find(Place(self._place.registry, repository), self._access.files)
        return self._credentials[repository]

    def _token(self, challenge: Challenge, known: Credentials | None, scopes: Iterable[str]) -> str:
        realm = urlsplit(self._join("", challenge.realm))
        if realm.scheme not in ("http", "https") or not realm.netloc:
            raise FormatError(
                structure=f"answer of {self._place.registry}",
                offset=0,
                wanted="the address of a token server",
                found=repr(challenge.realm[:100]),
            )
        if realm.scheme == "http" and self._scheme == "https":
            raise RefusedError(
                "registry-refused", registry=self._place.registry, request=challenge.realm, answer=401, reason=_NO_HTTPS
            )
        fields = [("service", challenge.service), *(("scope", scope) for scope in _merged(scopes))]
        headers = {"User-Agent": "cfs-tag", "Accept-Encoding": "identity"}
        joint = "&" if realm.query else "?"
        if known is not None and known.identity is not None:
            fields = [
                ("grant_type", "refresh_token"),
                ("refresh_token", known.identity),
                ("client_id", "cfs-tag"),
                ("service", challenge.service),
                ("scope", " ".join(_merged(scopes))),
            ]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._send("POST", challenge.realm, urlencode(fields).encode(), headers, _MAX_TOKEN)
        else:
            if known is not None:
                headers["Authorization"] = known.basic
            answer = self._send("GET", f"{challenge.realm}{joint}{urlencode(fields)}", None, headers, _MAX_TOKEN)
        if answer.status in (400, 401, 403):
            reason = answer.said or "the credentials are not taken"
            raise RefusedError(
                "registry-refused", registry=self._place.registry, request=answer.request, answer=answer.status, reason=reason
            )
        if answer.status != 200:
            raise self._failed(answer)
        return credentials.parse_token(answer.body, _MAX_TOKEN)


class _Answer(NamedTuple):
    status: int
    headers: urllib3.HTTPHeaderDict
    body: bytes
    url: str
    request: str
    is_own: bool
    """It is the registry's, not that of another server to which the registry sent us."""

    @property
    def said(self) -> str:
        """What the registry says of an error, in one line."""
        try:
            errors = json_fields.items(json_fields.load(self.body, "errors", _MAX_ERROR), "errors")
            fields = json_fields.struct(errors[0], ())
            words = (json_fields.optional_text(fields, "code"), json_fields.optional_text(fields, "message"))
            return ": ".join(word for word in words if word)[:200]
        except (FormatError, json_fields.Wrong, IndexError):
            return ""


def _merged(scopes: Iterable[str]) -> list[str]:
    """Scopes with their actions together, so that one token is for all of them."""
    actions: dict[str, dict[str, None]] = {}
    for scope in sorted(scopes):
        name, _, some = scope.rpartition(":")
        actions.setdefault(name, {}).update(dict.fromkeys(some.split(",")))
    return [f"{name}:{','.join(some)}" for name, some in actions.items()]


def _regular(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size, but for the last; one empty piece where there are none."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) > _PIECE:
            yield bytes(waiting[:_PIECE])
            del waiting[:_PIECE]
    yield bytes(waiting)


def _bounded(sock: Any, **options: Any) -> BoundedResponse:
    """An answer whose head and trailer have to be there in time, too."""
    end = time.monotonic() + _WHOLE

    def check(came: int) -> None:
        if time.monotonic() > end:
            raise OSError(f"it gave {came} bytes in {_WHOLE:.0f} s, too slow")

    return BoundedResponse(sock, check=check, **options)


class _Connection(HTTPConnection):
    response_class = staticmethod(_bounded)  # type: ignore[assignment]


class _SecureConnection(HTTPSConnection):
    response_class = staticmethod(_bounded)  # type: ignore[assignment]


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _pool(place: Place, access: Access, scheme: str) -> urllib3.PoolManager:
    settings: dict[str, Any] = {"maxsize": 8}
    if scheme == "https":
        settings["ssl_context"] = _tls(place, access)
    proxy = None if _is_direct(place.address, access.proxies.get("no", "")) else access.proxies.get(scheme)
    pool = urllib3.ProxyManager(proxy, **settings) if proxy and not place.is_loopback else urllib3.PoolManager(**settings)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pool


def _tls(place: Place, access: Access) -> object:
    import os
    import ssl

    context = ssl.create_default_context()
    for directory in access.certificates:
        try:
            names = sorted(os.listdir(os.path.join(directory, place.registry)))
        except OSError:
            continue
        for name in names:
            if name.endswith(".crt"):
                try:
                    context.load_verify_locations(os.path.join(directory, place.registry, name))
                except (OSError, ssl.SSLError) as error:
                    reason = f"{name}, {reason_of(error)}"
                    raise CfsTagsError("registry-unreachable", registry=place.registry, reason=reason) from error
    return context


def _is_direct(address: str, without: str) -> bool:
    """Whether an address is among those that are reached without a proxy."""
    host = address.rpartition(":")[0] if address.rpartition(":")[2].isdigit() else address
    for one in without.split(","):
        name = one.strip().lstrip(".").lower()
        if name == "*" or (name and (host.lower() in (name, name.partition(":")[0]) or host.lower().endswith(f".{name}"))):
            return True
    return False
