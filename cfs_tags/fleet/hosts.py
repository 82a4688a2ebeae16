"""What a host says about itself, and the tags that it has in a registry.  Pure.

A host publishes one artifact: a manifest whose only blob, the *document*, is JSON of :data:`oci.MEDIA_TYPE_HOST`.  The blob
stands in the manifest, too (``data`` of its descriptor, image-spec 1.1), so that one request reads a host.  Its subject is
the manifest of the booted deployment.  What other hosts say is foreign: bounded in size and depth, every text printable
before it is shown.

===============================================  ==================================================================
``host-<host>``                                  the artifact
``seen-<host>-<YYYYMMDDThhmmssZ>-<12 digits>``   the same: time and the first digits of its digest, so that a list
                                                 of tags says which hosts have changed
``deployed-<host>-<slot>``                       a manifest that the host uses; slots are ``booted``, ``staged``,
                                                 ``rollback``, and with 12 digits of the manifest's digest ``pin-…``,
                                                 ``other-…`` and ``bound-…``
===============================================  ==================================================================
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from cfs_tags.errors import InvalidDigest, UsageError
from cfs_tags.formats import json_fields, oci
from cfs_tags.values import Digest, instant_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MAX_DOCUMENT = 256 << 10
"""Bytes of the longest document."""
_MAX_ARTIFACT = 2 * _MAX_DOCUMENT
_DOCUMENT = "host document"
_MAX_TEXT = 512
_MAX_USES = 500
_MAX_LAYERS = 8000
_MAX_HISTORY = 50
_SCHEMA = 1
_LIMIT = 1 << 62

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_SEEN = re.compile(r"seen-(?P<host>.+)-(?P<time>\d{8}T\d{6}Z)-(?P<digits>[0-9a-f]{12})", re.ASCII)
_SLOTS = ("booted", "staged", "rollback")
_NUMBERED = ("pin", "other", "bound")
_SLOT = re.compile(rf"(?:{'|'.join(_SLOTS)}|(?:{'|'.join(_NUMBERED)})-[0-9a-f]{{12}})", re.ASCII)
_LAYER = re.compile(r"[0-9a-f]{16}", re.ASCII)


class Use(NamedTuple):
    """A manifest that a host uses.

    Attributes:
        slot: what for, as it stands in the tag.
        manifest: its digest.
        image: the reference that it came by.
        version: of the image.
        created: when the image was made, as it says.
        health: codes of what is wrong with the deployment.
        repository: where in the registry it has its tag; None where the registry has lost it.
        kept_as: the digest under which the registry has it, where that is another one, after it was restored.
    """

    slot: str
    manifest: Digest
    image: str | None = None
    version: str | None = None
    created: str | None = None
    health: tuple[str, ...] = ()
    repository: str | None = None
    kept_as: Digest | None = None

    @property
    def digest(self) -> Digest:
        """What the registry has for it."""
        return self.kept_as or self.manifest


class Booted(NamedTuple):
    """What a host booted, and when that was published first (``YYYYMMDDThhmmssZ``)."""

    time: str
    manifest: Digest
    version: str | None


class Host(NamedTuple):
    """What a host says.

    Attributes:
        name: of the host.
        time: when, as the registry's clock said (``YYYYMMDDThhmmssZ``).
        program: that published it, with its version.
        platform: ``linux/amd64``.
        uses: manifests that it uses.
        layers: the first 16 digits of the digests of layers that it has, as registries have them.
        size: bytes of the file system with the repository.
        free: bytes of that which are free.
        clock: seconds that the registry's clock was ahead of the host's.
        history: what it booted, oldest first.
    """

    name: str
    time: str
    program: str
    platform: str
    uses: tuple[Use, ...]
    layers: tuple[str, ...] = ()
    size: int = 0
    free: int = 0
    clock: int = 0
    history: tuple[Booted, ...] = ()

    def use(self, slot: str) -> Use | None:
        """What is in a slot."""
        return next((use for use in self.uses if use.slot == slot), None)

    @property
    def content(self) -> str:
        """A text that differs where anything else than time, space and clock does."""
        return Digest.of(_encoded(self._replace(time="", size=0, free=0, clock=0, history=())))


class Artifact(NamedTuple):
    """What is uploaded for a host: the manifest and its blob."""

    manifest: bytes
    document: bytes

    @property
    def digest(self) -> Digest:
        """Of the manifest."""
        return Digest.of(self.manifest)


# -- names -------------------------------------------------------------------------------------------------------------


def parse_host(text: str) -> str:
    """Check the name of a host.

    Raises:
        UsageError: it can be no part of a tag.
    """
    if _HOST.fullmatch(text) is None:
        reason = "is no name for a host: up to 63 small letters, digits, '.', '_' and '-', with a letter or digit at both ends"
        raise UsageError("invalid-argument", argument="name", value=text[:100], reason=reason)
    return text


def host_of_machine(machine_id: str) -> str | None:
    """The name of a host from its machine-id, which must not be told itself (machine-id(5)); None where it is none."""
    import hashlib
    import hmac

    text = machine_id.strip()
    if re.fullmatch(r"[0-9a-f]{32}", text, re.ASCII) is None or not text.strip("0"):
        return None
    return hmac.digest(bytes.fromhex(text), b"cfs-tags host name", hashlib.sha256).hex()[:16]


def host_tag(host: str) -> str:
    """The tag of a host's artifact."""
    return f"host-{host}"


def host_of_tag(tag: str) -> str | None:
    """The host whose artifact has a tag; None for another tag."""
    name = tag.removeprefix("host-")
    return name if name != tag and _HOST.fullmatch(name) is not None else None


def seen_tag(host: str, time: str, digest: Digest) -> str:
    """The tag that says when a host was seen, and as what."""
    return f"seen-{host}-{time}-{digest.hex[:12]}"


class Seen(NamedTuple):
    """What a ``seen-`` tag says: the host, when, and the first digits of the digest of its artifact."""

    host: str
    time: str
    digits: str


def parse_seen(tag: str) -> Seen | None:
    """Read a ``seen-`` tag; None for another one."""
    found = _SEEN.fullmatch(tag)
    if found is None or _HOST.fullmatch(found["host"]) is None or instant_of(found["time"]) is None:
        return None
    return Seen(found["host"], found["time"], found["digits"])


def slot(kind: str, manifest: Digest) -> str:
    """The slot of something that a host may have several of."""
    return f"{kind}-{manifest.hex[:12]}"


def deployed_tag(host: str, slot: str) -> str:
    """The tag of a slot."""
    return f"deployed-{host}-{slot}"


# -- documents ---------------------------------------------------------------------------------------------------------


def artifact(host: Host, subject: tuple[Digest, int, str] | None) -> Artifact:
    """The artifact for a host; the subject by digest, size in bytes and media type."""
    document = _encoded(host)
    descriptor: dict[str, Any] = {"mediaType": oci.MEDIA_TYPE_HOST, "digest": Digest.of(document), "size": len(document)}
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": oci.MEDIA_TYPE_MANIFEST,
        "artifactType": oci.MEDIA_TYPE_HOST,
        # the blob is its own config: one blob less to upload, and image-spec 1.1 takes any type there
        "config": {**descriptor, "data": base64.b64encode(document).decode()},
        "layers": [descriptor],
    }
    if subject is not None:
        digest, size, media_type = subject
        manifest["subject"] = {"mediaType": media_type, "digest": digest, "size": size}
    return Artifact(_json(manifest), document)


def parse_artifact(data: bytes) -> Host:
    """Read the manifest of a host's artifact.

    Raises:
        FormatError: it is none, or what is in it is not what it should be.
    """
    structure = "host artifact"
    manifest = json_fields.load(data, structure, _MAX_ARTIFACT)
    try:
        config = json_fields.struct(manifest.get("config"), ("mediaType", "digest", "size", "data"))
        if json_fields.text(config, "mediaType") != oci.MEDIA_TYPE_HOST:
            raise json_fields.Wrong(oci.MEDIA_TYPE_HOST, json_fields.shown(config.get("mediaType")), "config/mediaType")
        text = json_fields.text(config, "data")
        try:
            document = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise json_fields.Wrong("base64", "something else", "config/data") from None
        if Digest.of(document) != json_fields.text(config, "digest"):
            raise json_fields.Wrong("the content of that digest", "other content", "config/data")
    except json_fields.Wrong as wrong:
        raise wrong.as_error(structure) from None
    return parse_document(document)


def parse_document(data: bytes) -> Host:
    """Read a document.

    Raises:
        FormatError: too long, too deep, too many entries, or not the shape.
    """
    return of_json(json_fields.load(data, _DOCUMENT, _MAX_DOCUMENT, unique=True))


def of_json(document: dict[str, Any]) -> Host:
    """Read a document from values of JSON.  Raises as :func:`parse_document`."""
    try:
        schema = json_fields.number(document, "schema", _LIMIT)
        if schema != _SCHEMA:
            raise json_fields.Wrong(f"schema {_SCHEMA}", f"schema {schema}", "schema")
        name = json_fields.text(document, "host")
        if _HOST.fullmatch(name) is None:
            raise json_fields.Wrong("the name of a host", json_fields.shown(name), "host")
        space = json_fields.struct(document.get("space") or {}, ())
        layers = json_fields.texts(document, "layers")
        if len(layers) > _MAX_LAYERS or not all(map(_LAYER.fullmatch, layers)):
            raise json_fields.Wrong(f"at most {_MAX_LAYERS} beginnings of digests", "others", "layers")
        return Host(
            name,
            _moment(document, "time"),
            _text(document, "program") or "",
            _text(document, "platform") or "",
            tuple(_use(item, number) for number, item in enumerate(_items(document, "uses", _MAX_USES))),
            layers,
            json_fields.number(space, "bytes", _LIMIT) if space else 0,
            json_fields.number(space, "free_bytes", _LIMIT) if space else 0,
            _signed(document, "clock"),
            tuple(_booted(item, number) for number, item in enumerate(_items(document, "history", _MAX_HISTORY))),
        )
    except json_fields.Wrong as wrong:
        raise wrong.as_error(_DOCUMENT) from None


def encoded(host: Host) -> bytes:
    """A document.

    Raises:
        FormatError: the host uses more than a document can say.
    """
    data = _encoded(host)
    parse_document(data)  # what readers would refuse is not published
    return data


def to_json(host: Host) -> dict[str, Any]:
    """A document as values of JSON."""
    return {
        "schema": _SCHEMA,
        "host": host.name,
        "time": host.time,
        "program": host.program,
        "platform": host.platform,
        "uses": [_without_nothing(use._asdict()) for use in host.uses],
        "space": {"bytes": host.size, "free_bytes": host.free},
        "clock": host.clock,
        "history": [_without_nothing(booted._asdict()) for booted in host.history],
        "layers": list(host.layers),
    }


def _encoded(host: Host) -> bytes:
    return _json(to_json(host))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _without_nothing(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, ())}


def _use(item: Any, number: int) -> Use:
    place = f"uses/{number}"
    try:
        fields = json_fields.struct(item, ())
        name = json_fields.text(fields, "slot")
        if _SLOT.fullmatch(name) is None:
            raise json_fields.Wrong("a slot", json_fields.shown(name), "slot")
        health = json_fields.texts(fields, "health")
        if len(health) > 100 or any(len(code) > 100 for code in health):
            raise json_fields.Wrong("at most 100 codes", "more", "health")
        kept_as = json_fields.optional_text(fields, "kept_as")
        return Use(
            name,
            _digest(fields, "manifest"),
            _text(fields, "image"),
            _text(fields, "version"),
            _text(fields, "created"),
            health,
            _text(fields, "repository"),
            _digest(fields, "kept_as") if kept_as is not None else None,
        )
    except json_fields.Wrong as wrong:
        raise wrong.under(place) from None


def _booted(item: Any, number: int) -> Booted:
    try:
        fields = json_fields.struct(item, ())
        return Booted(_moment(fields, "time"), _digest(fields, "manifest"), _text(fields, "version"))
    except json_fields.Wrong as wrong:
        raise wrong.under(f"history/{number}") from None


def _items(fields: dict[str, Any], key: str, limit: int) -> Iterable[Any]:
    found = json_fields.optional_items(fields, key)
    if len(found) > limit:
        raise json_fields.Wrong(f"at most {limit} entries", str(len(found)), key)
    return found


def _text(fields: dict[str, Any], key: str) -> str | None:
    text = json_fields.optional_text(fields, key)
    if text is not None and len(text) > _MAX_TEXT:
        raise json_fields.Wrong(f"at most {_MAX_TEXT} characters", str(len(text)), key)
    return text


def _digest(fields: dict[str, Any], key: str) -> Digest:
    text = json_fields.text(fields, key)
    try:
        return Digest.parse(text)
    except InvalidDigest:
        raise json_fields.Wrong("a digest", json_fields.shown(text), key) from None


def _moment(fields: dict[str, Any], key: str) -> str:
    from cfs_tags.tags.rows import is_moment

    text = json_fields.text(fields, key)
    if not is_moment(text):
        raise json_fields.Wrong("YYYYMMDDThhmmssZ", json_fields.shown(text), key)
    return text


def _signed(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key, 0)
    if type(value) is not int or not -_LIMIT < value < _LIMIT:
        raise json_fields.Wrong("a whole number", json_fields.shown(value), key)
    return value
