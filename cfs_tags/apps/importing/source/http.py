"""Registries by plain HTTP, without a password: another host's ``cfs-tag serve`` above all.

Registries with credentials or mirrors are read through skopeo (``docker://``).  This module does what skopeo cannot: fetch a
single layer, uncompressed, by its diff_id, from any image of the other host.  ``serve`` gives that and the
manifests as they came at ``/v2/_cfs-tags/blobs/DIGEST``; other registries do not know the path, and are asked for the blobs
of the repository that was named.

The other side is not trusted.  The caller checks all bytes.  This module limits the time that an answer may take
(:data:`_PATIENCE` for each step, :data:`_SLOWEST` on the average) and the size of what is read as a whole.  A redirection is an
error: it could lead anywhere.
"""

from __future__ import annotations

import http.client
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from cfs_tags.apps.blobs import Reader, read_document
from cfs_tags.apps.importing.source.base import Source, Way
from cfs_tags.apps.manifests import ORIGINAL_DIGEST, descriptor_of
from cfs_tags.errors import CfsTagsError, InvalidDigest, SourceFailed, SourceNotFound, UsageError
from cfs_tags.formats import json_fields, oci
from cfs_tags.formats.oci import Descriptor
from cfs_tags.remote.bounds import BoundedResponse
from cfs_tags.remote.reasons import reason_of
from cfs_tags.repo import arriving
from cfs_tags.values import Digest

_OURS = "/v2/_cfs-tags"
"""The paths of ``cfs-tag serve`` that other registries do not have."""
_PATIENCE = 20.0
"""Seconds that the other side may let us wait for the next bytes."""
_GRACE = 20.0
"""Seconds after which the average counts."""
_SLOWEST = 32 << 10
"""Bytes a second that it has to give on the average."""
_MOST_BESIDE, _MOST_FOR_EACH = 1 << 20, 16
"""Bytes that are no body, its head above all, and those for each byte of it: chunks of one byte take six."""
_MAX_ERROR = 4 << 10
_MAX_STATES = 256 << 10
"""Bytes of the longest answer about layers: 100 of them take 20 KiB."""
_STATES_AT_ONCE = 100
_ACCEPTED = ", ".join((*oci.MANIFEST_TYPES, "*/*"))
_NO_HOST = re.compile(r"[\x00-\x20\x7f]")
_BY = re.compile(r"[0-9a-f]{0,64}", re.ASCII)
_REFERENCE = re.compile(r"(?:@(sha(?:256|384|512):[0-9a-f]+)|:([A-Za-z0-9_][A-Za-z0-9._-]{0,127}))$", re.ASCII)


class LayerState(NamedTuple):
    """What another host says of a layer.

    Attributes:
        state: ``here``; or of an import there: ``fetching`` and ``claiming`` it, ``wanted`` by it.
        by: a text that tells that import from others, for ``claiming`` and ``wanted``.
        size: bytes of it, uncompressed, that are there.
    """

    state: str
    by: str = ""
    size: int = 0


class Server:
    """A registry at an address.  Connections are made for each request, and left to their readers.

    Args:
        address: ``http://HOST[:PORT]`` or ``https://…``, without a path.
        patience: seconds that it may let us wait for the next bytes.
        argument: what the address was given as.

    Raises:
        UsageError: it is no such address.
    """

    def __init__(self, address: str, patience: float = _PATIENCE, *, argument: str = "peer") -> None:
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if (
            parts.scheme not in ("http", "https")
            or not host
            or _NO_HOST.search(host)
            or parts.path.strip("/")
            or parts.query
            or parts.username
        ):
            reason = "is no address of a registry: write http://HOST:PORT"
            raise UsageError("invalid-argument", argument=argument, value=address, reason=reason)
        self.address = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port, self._secure = host, port, parts.scheme == "https"
        self._patience = patience

    def get(self, path: str, method: str = "GET") -> Body:
        """Ask for a path.

        Raises:
            SourceNotFound: it answers 404.
            SourceFailed: anything else but 200, or no answer.
        """
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._patience)
        pace = _Pace()
        connection.response_class = partial(BoundedResponse, check=pace.check)  # type: ignore[assignment]
        try:
            connection.request(method, path, headers={"Accept": _ACCEPTED, "Connection": "close"})
            answer = connection.getresponse()
            if answer.status != 200:
                with answer:
                    said = _said(answer)
                if answer.status == 404:
                    raise SourceNotFound(source=self.address + path, reason=said or "is not there")
                raise SourceFailed(source=self.address + path, reason=f"answers {answer.status}{f': {said}' if said else ''}")
            return Body(connection, answer, self.address + path, pace)
        except (OSError, UnicodeError, http.client.HTTPException) as error:  # a label of a name is empty or too long
            connection.close()
            raise SourceFailed(source=self.address, reason=reason_of(error)) from error
        except BaseException:
            connection.close()
            raise

    def small(self, path: str, limit: int) -> bytes:
        """The whole body of an answer of at most ``limit`` bytes.  Raises as :meth:`get`."""
        body = self.get(path)
        try:
            data = b""
            while piece := body.read(limit + 1 - len(data)):
                data += piece
            if len(data) > limit:
                raise SourceFailed(source=self.address + path, reason=f"gives more than {limit} bytes")
            return data
        finally:
            body.close()

    def blob(self, digest: Digest) -> Body:
        """A blob of any image that ``cfs-tag serve`` shows there, layers by diff_id.  Raises as :meth:`get`."""
        return self.get(f"{_OURS}/blobs/{digest}")

    def states(self, layers: Sequence[Digest]) -> dict[Digest, LayerState]:
        """What is known there of layers, by diff_id; those of which nothing is are left out.

        Raises:
            SourceFailed: no answer, or none that makes sense.
            SourceNotFound: it is no ``cfs-tag serve`` that knows this.
        """
        found: dict[Digest, LayerState] = {}
        for start in range(0, len(layers), _STATES_AT_ONCE):
            some = layers[start : start + _STATES_AT_ONCE]
            path = f"{_OURS}/layers?digests={','.join(some)}"
            try:
                document = json_fields.load(self.small(path, _MAX_STATES), "layers", _MAX_STATES)
                said: Mapping[str, Any] = document["layers"]
                for digest in some:
                    if digest in said:
                        one = said[digest]
                        by = _BY.fullmatch(one.get("by", ""))
                        if one["state"] not in arriving.STATES or by is None:
                            raise ValueError(one)
                        found[digest] = LayerState(one["state"], by[0], int(one.get("size", 0)))
            except (TypeError, KeyError, ValueError, AttributeError) as error:
                raise SourceFailed(source=self.address, reason="gives an answer that makes no sense") from error
            except CfsTagsError as error:
                if isinstance(error, SourceNotFound | SourceFailed):
                    raise
                raise SourceFailed(source=self.address, reason=error.message) from error
        return found


class _Pace:
    """How fast an answer comes; ``taken`` are the bytes of its body so far."""

    def __init__(self) -> None:
        self.taken = 0
        self._began = monotonic()

    def check(self, came: int) -> None:
        """Raise OSError where so many bytes are too few for the time, or too many for the body."""
        waited = monotonic() - self._began - _GRACE
        if waited > 0 and came < waited * _SLOWEST:
            raise OSError(f"it gave {came} bytes in {waited + _GRACE:.0f} s, too slow")
        if came > _MOST_BESIDE + _MOST_FOR_EACH * self.taken:
            raise OSError(f"it gave {came} bytes of which {self.taken} are content")


class Body:
    """The body of an answer, as a :class:`~cfs_tags.apps.blobs.Reader`.

    Attributes:
        size: bytes that were promised; None where that was not said.
        kind: its media type.
    """

    def __init__(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse, text: str, pace: _Pace
    ) -> None:
        self.size = answer.length
        self.kind = answer.headers.get_content_type()
        self._connection = connection
        self._answer = answer
        self._text = text
        self._pace = pace

    def read(self, size: int) -> bytes:
        """At most ``size`` of the next bytes; none at the end.

        Raises:
            SourceFailed: the connection broke, or it is too slow.
        """
        try:
            data = self._answer.read1(size)
        except (OSError, http.client.HTTPException) as error:
            raise SourceFailed(source=self._text, reason=reason_of(error)) from error
        self._pace.taken += len(data)
        if not data and self.size is not None and self._pace.taken < self.size:
            raise SourceFailed(source=self._text, reason=f"broke off after {self._pace.taken} of {self.size} bytes")
        return data

    def close(self) -> None:
        """End the connection."""
        self._answer.close()
        self._connection.close()


class HttpSource(Source):
    """``http://HOST:PORT/REPOSITORY[:TAG|@DIGEST]``; ``http://HOST:PORT`` alone offers nothing, and gives what is asked for by
    digest where a ``cfs-tag serve`` is there.

    An image that the other host serves with layers in another form is taken under the manifest that it came with, where that
    can be had, so that it has the same digest on both.

    Raises:
        UsageError: it is no such address.
        SourceNotFound: there is no such image.
        SourceFailed: there is no answer.
    """

    def __init__(self, text: str, *, offers: bool = True) -> None:
        super().__init__(text)
        scheme, _, rest = text.partition("://")
        host, _, place = rest.partition("/")
        self._server = Server(f"{scheme}://{host}", argument="SOURCE")
        match = _REFERENCE.search(place)
        self._repository = place[: match.start()].strip("/") if match else place.strip("/")
        self._documents: dict[Digest, bytes] = {}
        self._remade = False
        if not self._repository or not offers:
            return
        digest, tag = (match[1], match[2]) if match else (None, "latest")
        self.name = f"{self._repository}:{tag}" if tag else f"{self._repository}@{digest}"
        raw = self.document(Digest.parse(digest)) if digest else self._manifest(tag or "latest")
        top = descriptor_of(self._original(raw))
        self.offered = (top,)

    def _original(self, raw: bytes) -> bytes:
        """The manifest that a manifest was made of for being served, where it can be had."""
        document = oci.parse_manifest_or_index(raw)
        self._documents[Digest.of(raw)] = raw
        if not isinstance(document, oci.Index) and (text := document.annotations.get(ORIGINAL_DIGEST)):
            with suppress(InvalidDigest, SourceNotFound):
                digest = Digest.parse(text)
                body = self._server.blob(digest)
                try:
                    raw = read_document(body, digest)
                finally:
                    body.close()
                self._documents[digest] = raw
                self._remade = True
        return raw

    def _manifest(self, reference: str) -> bytes:
        return self._server.small(f"/v2/{quote(self._repository)}/manifests/{reference}", oci.MAX_MANIFEST)

    def document(self, digest: Digest) -> bytes:
        """A manifest or index, by its digest."""
        if digest not in self._documents:
            self._documents[digest] = self._read_document(digest)
        return self._documents[digest]

    def _read_document(self, digest: Digest) -> bytes:
        if self._repository:
            with suppress(SourceNotFound):
                raw = self._manifest(digest)
                return read_document(io.BytesIO(raw), digest)
        return super().document(digest)

    def open(self, digest: Digest) -> Reader:
        """The bytes of a blob: of the repository that was named, or of any that the other host shows."""
        if digest in self._documents:
            return io.BytesIO(self._documents[digest])
        if self._repository:
            with suppress(SourceNotFound):
                return self._server.get(f"/v2/{quote(self._repository)}/blobs/{digest}")
            with suppress(SourceNotFound):
                # a manifest or index is no blob to most registries
                return io.BytesIO(self._manifest(digest))
        try:
            return self._server.blob(digest)
        except SourceNotFound:
            raise self._no_blob(digest) from None

    def size(self, digest: Digest) -> int | None:
        """None: asking costs as much as fetching."""
        return None

    def ways(self, layer: Descriptor, diff_id: Digest | None) -> Iterator[Way]:
        """The blob as the manifest names it, then uncompressed; the other way round where a whole host is meant."""
        here = Way(self._server.address, lambda: self.open(layer.digest), layer.digest, layer.size)
        if diff_id is None or diff_id == layer.digest:
            yield here
            return
        plain = Way(self._server.address, lambda: self.open(diff_id), diff_id, None)
        yield from (here, plain) if self._repository and not self._remade else (plain, here)

    def close(self) -> None:
        """Nothing is left to close: readers have their own connections."""


def _said(answer: http.client.HTTPResponse) -> str:
    """What a registry says of an error, as one line."""
    with suppress(OSError, http.client.HTTPException, CfsTagsError, TypeError, KeyError, IndexError):
        document = json_fields.load(answer.read(_MAX_ERROR), "error", _MAX_ERROR)
        return str(document["errors"][0]["message"])[:200]
    return ""
