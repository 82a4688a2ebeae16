"""Requests to a registry, each answered within bounds or not at all: tokens, waiting until it can answer, and errors.

Connections, TLS and proxies are urllib3's.  What is here: the exchange of credentials for tokens, and bounds on everything
that a registry says.
"""

from __future__ import annotations

import time
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from cfs_tags.errors import CfsTagsError, FormatError, RefusedError
from cfs_tags.formats import json_fields
from cfs_tags.remote import credentials, pool
from cfs_tags.remote.names import Access, Place
from cfs_tags.remote.reasons import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cfs_tags.remote.credentials import Challenge, Credentials

_CONNECT = 10.0
_READ = 30.0
"""Seconds to connect, and until the next bytes."""
AGAIN = 5
_BACKOFF = 0.5
_LONGEST_WAIT = 60
"""How often a request is repeated, and the most seconds that a registry can have us wait before it."""
MAX_ERROR = 1 << 16
_MAX_TOKEN = 1 << 16
_REPEATED = frozenset({"GET", "HEAD", "PUT", "DELETE", "POST"})
_LATER = frozenset({429, 500, 502, 503, 504})
_ELSEWHERE = frozenset({301, 302, 303, 307, 308})
_MOVES = 3
_NO_HTTPS = "wants its credentials sent without TLS"


class Answer(NamedTuple):
    """An answer, read to its end.

    Attributes:
        status: of HTTP.
        headers: of the answer.
        body: of an error the beginning.
        url: what was asked for.
        request: likewise, for people.
        is_own: it is the registry's, not that of another server to which the registry sent us.
    """

    status: int
    headers: urllib3.HTTPHeaderDict
    body: bytes
    url: str
    request: str
    is_own: bool

    @property
    def said(self) -> str:
        """What the registry says of an error, in one line."""
        try:
            errors = json_fields.items(json_fields.load(self.body, "errors", MAX_ERROR), "errors")
            fields = json_fields.struct(errors[0], ())
            words = (json_fields.optional_text(fields, "code"), json_fields.optional_text(fields, "message"))
            return ": ".join(word for word in words if word)[:200]
        except (FormatError, json_fields.Wrong, IndexError):
            return ""


class Transport:
    """Sends requests to one registry.  For one thread at a time, except GET and HEAD, which several may send.

    Args:
        place: the repository that is meant where an address names none.
        access: how it is reached.
        challenge: what the registry wanted the last time, so that it need not be asked.
        again: how often a request is repeated that the registry cannot answer yet.

    Attributes:
        scheme: http or https.
        requests: how many were sent, those to a token server among them, and repeated ones not.
        received: bytes of bodies.
        sent: likewise.
        offset: seconds that the registry's clock is ahead of ours, as its last answer said; None where it said nothing.
        challenge: what the registry wanted.
    """

    def __init__(self, place: Place, access: Access, challenge: Challenge | None, again: int) -> None:
        self._place = place
        self._access = access
        self.scheme = "http" if access.plain or place.is_loopback else "https"
        self._again = again
        self._pool = pool.pool(place, access, self.scheme)
        self._credentials: dict[str, Credentials | None] = {}
        self._tokens: dict[str, str] = {}
        self._scopes: dict[str, set[str]] = {}
        self.challenge = challenge
        self.requests = self.received = self.sent = 0
        self.offset: float | None = None

    def close(self) -> None:
        """Close its connections."""
        self._pool.clear()

    def ask(
        self,
        method: str,
        path: str,
        *,
        ok: tuple[int, ...],
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        limit: int = MAX_ERROR,
        scopes: Sequence[str] = (),
    ) -> Answer:
        """One request; where the registry wants a token, or another one, once more with it.

        Args:
            method: GET, HEAD, PUT, POST, PATCH or DELETE.
            path: of the registry, or the address of a server to which it sent us.
            ok: statuses that are no error.
            body: bytes to send.
            headers: to send with it.
            limit: bytes of the longest answer.
            scopes: what a token has to be good for, besides what the registry says.

        Raises:
            RefusedError (registry-refused): the registry takes no credentials that there are.
            CfsTagsError (registry-unreachable, registry-failed): it does not answer, or with another status.
            FormatError: it says what makes no sense, or has no end.
        """
        url = urljoin(f"{self.scheme}://{self._place.address}", path)
        given = {"User-Agent": "cfs-tag", "Accept-Encoding": "identity", **headers}
        repository = self._place.repository
        if urlsplit(url).netloc == self._place.address:
            url = f"{self.scheme}{url[url.index(':') :]}"  # one behind a proxy may not know that it is reached with TLS
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
            raise self.failed(answer)
        return answer

    def failed(self, answer: Answer) -> CfsTagsError:
        """The error that an answer is."""
        return CfsTagsError(
            "registry-failed",
            registry=self._place.registry,
            request=answer.request,
            answer=answer.status,
            reason=answer.said or "and nothing else",
        )

    def _send(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], limit: int) -> Answer:
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
                old, url = url, self.join(url, where)
                if urlsplit(url)[:2] != urlsplit(old)[:2]:
                    given.pop("Authorization", None)
                continue
            is_own = urlsplit(url)[:2] == (self.scheme, self._place.address)
            return Answer(answer.status, answer.headers, data, first, f"{method} {urlsplit(first).path}", is_own)

    def _once(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        end = time.monotonic() + pool.WHOLE
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
        most = MAX_ERROR if is_error else limit
        while True:
            piece = answer.read1(MAX_ERROR)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > most or time.monotonic() > end:
                answer.close()
                if is_error:
                    return b"".join(pieces)[:MAX_ERROR]
                found = f"more than {limit} bytes" if size > limit else f"less in {pool.WHOLE:.0f} s"
                structure = f"answer of {self._place.registry}"
                raise FormatError(structure=structure, offset=size, wanted="an answer with an end", found=found)

    def _set_clock(self, date: str | None) -> None:
        from email.utils import parsedate_to_datetime

        try:
            self.offset = parsedate_to_datetime(date or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return

    def join(self, base: str, where: str) -> str:
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
        realm = urlsplit(self.join("", challenge.realm))
        if realm.scheme not in ("http", "https") or not realm.netloc:
            raise FormatError(
                structure=f"answer of {self._place.registry}",
                offset=0,
                wanted="the address of a token server",
                found=repr(challenge.realm[:100]),
            )
        if realm.scheme == "http" and self.scheme == "https":
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
            raise self.failed(answer)
        return credentials.parse_token(answer.body, _MAX_TOKEN)


def _merged(scopes: Iterable[str]) -> list[str]:
    """Scopes with their actions together, so that one token is for all of them."""
    actions: dict[str, dict[str, None]] = {}
    for scope in sorted(scopes):
        name, _, some = scope.rpartition(":")
        actions.setdefault(name, {}).update(dict.fromkeys(some.split(",")))
    return [f"{name}:{','.join(some)}" for name, some in actions.items()]
