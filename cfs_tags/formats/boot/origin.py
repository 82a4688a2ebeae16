"""What bootc keeps beside a repository: origins, saved manifests, and which deployment comes next.

Facts are those of bootc 1.16.9 (``bootc_composefs/state.rs``, ``bootc_composefs/status.rs``) and, for ``aboot``, of its later
main branch.  bootc uses sha512; names with sha256 are read as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from cfs_tags.errors import ExpectationFailed, FormatError, InvalidDigest
from cfs_tags.formats import json_fields
from cfs_tags.formats.boot.paths import STAGED_DEPLOYMENT
from cfs_tags.values import DeploymentId, Digest

MAX_ORIGIN = 64 << 10
"""Bytes of the longest origin that is read; real ones have some 400."""

MAX_IMGINFO = 8 << 20
"""Bytes of the longest ``.imginfo`` that is read: a manifest and a config."""

MAX_STAGED = 64 << 10
"""Bytes of the longest staged-deployment file that is read."""


def _deployment(text: object) -> DeploymentId | None:
    try:
        return DeploymentId.parse(text) if isinstance(text, str) else None
    except InvalidDigest:
        return None


# -- origins -----------------------------------------------------------------------------------------------------------

# bootc reads and writes origins with tini 1.3: text after the first ";" or "#" of a line is a comment, also within a
# value; the last of several equal keys counts; sections of one name are one; keys before any section are in section "".
_COMMENT = re.compile("[;#]")
# what Rust's str::trim takes off, which is not quite what str.strip() does
_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_ORIGIN = "origin"


class ImageReference(NamedTuple):
    """Where an image came from.

    Attributes:
        verification: how signatures were checked: ``ostree-image-signed``, ``ostree-unverified-image``,
            ``ostree-remote-image:<remote>``, or empty text where the reference does not say.
        transport: ``docker``, ``oci``, ``oci-archive``, ``containers-storage``, …
        name: what the transport takes: ``quay.io/org/os:1``.
    """

    verification: str
    transport: str
    name: str

    def __str__(self) -> str:
        """As cfsctl and skopeo take it: ``docker://quay.io/org/os:1``, ``oci:/some/directory:tag``."""
        return f"{self.transport}:{'//' if self.transport == 'docker' else ''}{self.name}"


class Origin(NamedTuple):
    """The content of an origin.  What it does not say is None.

    Attributes:
        reference: ``[origin] container-image-reference`` as it stands.
        boot_type: ``[boot] boot_type``: ``bls``, ``uki``, ``aboot`` or another text.
        boot_digest: ``[boot] digest``: the SHA-256 of kernel and initrd, as text.
        manifest_digest: ``[image] manifest_digest``.
        sections: everything, values by key by section.
        problems: what is odd, one sentence each; bootc may fail on it, a look-up here does not.
    """

    reference: str | None
    boot_type: str | None
    boot_digest: str | None
    manifest_digest: Digest | None
    sections: Mapping[str, Mapping[str, str]]
    problems: tuple[str, ...] = ()

    @property
    def image(self) -> ImageReference | None:
        """The reference, split; None where there is none, or one that bootc could not read."""
        return None if self.reference is None else parse_image_reference(self.reference)

    @property
    def image_name(self) -> str | None:
        """The name in the reference, ``quay.io/org/os:1``; of one that cannot be split, all of it."""
        image = self.image
        return image.name if image is not None else self.reference


def parse_origin(data: bytes) -> Origin:
    """Read an origin as bootc reads it.

    CRLF is taken as a line end.  Of a key that stands there twice the last counts, and a problem says so.

    Raises:
        FormatError: longer than ``MAX_ORIGIN``, not UTF-8, or a line that is no section, no key and value, no comment.
    """
    sections: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for line in _origin_lines(data):
        if line.key is not None:
            section = sections.setdefault(line.section, {})
            if section.get(line.key, line.value) != line.value:
                problems.append(f"[{line.section}] {line.key} has several values, the last one counts")
            section[line.key] = line.value
    boot = sections.get("boot", {})
    stated = sections.get("image", {}).get("manifest_digest")
    manifest: Digest | None = None
    if stated is not None:
        try:
            manifest = Digest.parse(stated)
        except InvalidDigest as error:
            problems.append(f"[image] manifest_digest: {error.message}")
    reference = sections.get("origin", {}).get("container-image-reference")
    if reference is not None and parse_image_reference(reference) is None:
        problems.append(f"[origin] container-image-reference is no image reference: {reference[:200]}")
    boot_type = boot.get("boot_type")
    if boot_type not in ("bls", "uki", "aboot"):
        problems.append(f"[boot] boot_type is neither bls nor uki: {(boot_type or 'absent')[:200]}")
    return Origin(reference, boot_type, boot.get("digest"), manifest, sections, tuple(dict.fromkeys(problems)))


def salvaged_reference(data: bytes) -> str | None:
    """The image reference of an origin that cannot be read as a whole: of the last line that is one; None without any."""
    found = None
    for line in data[:MAX_ORIGIN].splitlines():
        match = re.fullmatch(rb"\s*container-image-reference\s*=\s*([!-~]{1,512})\s*", line)
        if match is not None and parse_image_reference(match[1].decode("ascii")) is not None:
            found = match[1].decode("ascii")
    return found


def origin_with_manifest_digest(data: bytes, digest: Digest) -> bytes:
    """An origin with ``[image] manifest_digest`` added, and not a byte of the rest changed.

    The line goes to the end of the last section ``image``, or to a new one at the end; it ends as the other lines do.
    The same digest there already: the same bytes again.

    Raises:
        FormatError: as :func:`parse_origin`.
        ExpectationFailed: there is another ``manifest_digest``, readable or not.
    """
    lines = list(_origin_lines(data))
    stated = [line.value for line in lines if line.section == "image" and line.key == "manifest_digest"]
    if stated:
        if stated[-1] == digest:
            return data
        raise ExpectationFailed(ref="[image] manifest_digest", wanted="absent", found=stated[-1])
    newline = b"\r\n" if b"\r\n" in data else b"\n"
    entry = b"manifest_digest = " + digest.encode() + newline
    at = max((line.end for line in lines if line.section == "image"), default=None)
    if at is None:
        at = len(data)
        entry = (newline if data else b"") + b"[image]" + newline + entry
    if at and not data[:at].endswith(b"\n"):
        entry = newline + entry
    return data[:at] + entry + data[at:]


class _Line(NamedTuple):
    section: str
    key: str | None  # None in the line that starts the section
    value: str
    end: int  # offset of what follows the line


def _origin_lines(data: bytes) -> list[_Line]:
    """The lines that say something, and the section that each is in."""
    text = _text(data, _ORIGIN, MAX_ORIGIN)
    lines: list[_Line] = []
    section = ""
    end = 0
    for raw in text.split("\n"):
        start, end = end, min(end + len(raw.encode()) + 1, len(data))
        content = _COMMENT.split(raw, maxsplit=1)[0].strip(_SPACE)
        if not content:
            continue
        if content.startswith("["):
            if not content.endswith("]"):
                _wrong(_ORIGIN, start, "a section that ends in ]", content)
            section = content.strip("[]")
            lines.append(_Line(section, None, "", end))
            continue
        key, equals, value = (part.strip(_SPACE) for part in content.partition("="))
        if not equals or not key:
            _wrong(_ORIGIN, start, "[section], key = value or a comment", content)
        lines.append(_Line(section, key, value, end))
    return lines


# ostree-ext, container/mod.rs; containers-image-proxy 0.11, transport.rs
_VERIFICATIONS = ("ostree-image-signed", "ostree-unverified-image")
_TRANSPORTS = {
    "registry": "docker",
    "docker": "docker",
    "oci": "oci",
    "oci-archive": "oci-archive",
    "docker-archive": "docker-archive",
    "containers-storage": "containers-storage",
    "dir": "dir",
    "docker-daemon": "docker-daemon",
}


def parse_image_reference(text: str) -> ImageReference | None:
    """Split a reference as origins have them, or one without the part about signatures; None where it is neither.

    >>> parse_image_reference("ostree-unverified-image:docker://quay.io/org/os:1")
    ImageReference(verification='ostree-unverified-image', transport='docker', name='quay.io/org/os:1')
    >>> str(parse_image_reference("ostree-remote-registry:fedora:quay.io/org/os:1"))
    'docker://quay.io/org/os:1'
    """
    scheme, colon, rest = text.partition(":")
    verification = ""
    if scheme in ("ostree-remote-image", "ostree-remote-registry"):
        remote, colon, rest = rest.partition(":")
        verification = f"ostree-remote-image:{remote}"
        if scheme == "ostree-remote-registry":
            rest = f"registry:{rest}"
    elif scheme == "ostree-unverified-registry":
        verification, rest = "ostree-unverified-image", f"registry:{rest}"
    elif scheme in _VERIFICATIONS:
        verification = scheme
    else:
        rest = text
    before, second_colon, name = rest.partition(":")
    transport = _TRANSPORTS.get(before)
    if not colon or not second_colon or transport is None:
        return None
    if before == "docker":
        if not name.startswith("//"):
            return None
        name = name[2:]
    return ImageReference(verification, transport, name) if name else None


# -- saved manifests ---------------------------------------------------------------------------------------------------


class ImgInfo(NamedTuple):
    """What an ``.imginfo`` holds: copies that went through a parser, so their digests mean nothing.

    Attributes:
        config_digest: of the config, as the manifest names it: the way to the manifest in the repository.
        diff_ids: of the layers, lowest first, as the config names them.
        manifest: the parsed manifest.
        config: the parsed config.
    """

    config_digest: Digest
    diff_ids: tuple[Digest, ...]
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]


def parse_imginfo(data: bytes) -> ImgInfo:
    """Read an ``.imginfo`` (written by bootc before 1.15, next to the origin).

    Raises:
        FormatError: longer than ``MAX_IMGINFO``, no JSON, or without manifest, config, or the digests in them.
    """
    structure = "imginfo"
    document = json_fields.load(data, structure, MAX_IMGINFO)
    try:
        json_fields.struct(document, ("manifest", "config"))
    except json_fields.Wrong as wrong:
        raise wrong.as_error(structure) from None
    manifest = _member(document, "manifest", "", structure)
    config = _member(document, "config", "", structure)
    descriptor = _member(manifest, "config", "/manifest", structure)
    rootfs = _member(config, "rootfs", "/config", structure)
    diff_ids = rootfs.get("diff_ids")
    if not isinstance(diff_ids, list):
        _wrong(structure, 0, "a list at /config/rootfs/diff_ids", _shown(diff_ids))
    return ImgInfo(
        _digest(descriptor.get("digest"), "/manifest/config/digest", structure),
        tuple(_digest(item, "/config/rootfs/diff_ids", structure) for item in diff_ids),
        manifest,
        config,
    )


class Staged(NamedTuple):
    """The deployment that bootc makes the default at shutdown.

    Attributes:
        deployment: which one.
        finalization_locked: whether it is left alone at shutdown (``bootc upgrade --download-only``).
    """

    deployment: DeploymentId
    finalization_locked: bool


def parse_staged(data: bytes) -> Staged:
    """Read ``/run/composefs/staged-deployment``.

    Raises:
        FormatError: longer than ``MAX_STAGED``, no JSON, or not ``depl_id`` and ``finalization_locked``.
    """
    structure = STAGED_DEPLOYMENT.rpartition("/")[2]
    document = json_fields.load(data, structure, MAX_STAGED, unique=True)
    deployment = _named(document, structure)
    locked = document.get("finalization_locked")
    if not isinstance(locked, bool):
        _wrong(structure, 0, "true or false at /finalization_locked", _shown(locked))
    return Staged(deployment, locked)


def parse_aboot_record(data: bytes) -> DeploymentId:
    """The deployment that a record in ``state/boot/aboot/`` names (``pending``, ``attempted``, ``rollback``).

    Raises:
        FormatError: longer than ``MAX_STAGED``, no JSON, or without ``depl_id``.
    """
    return _named(json_fields.load(data, "aboot record", MAX_STAGED, unique=True), "aboot record")


def parse_aboot_slot(data: bytes) -> DeploymentId | None:
    """The deployment in a slot, ``state/boot/aboot/slots/``; None where the slot is empty.

    Raises:
        FormatError: anything else than an id.
    """
    text = _text(data, "aboot slot", MAX_STAGED).strip()
    deployment = _deployment(text)
    if deployment is None and text:
        _wrong("aboot slot", 0, "the id of a deployment", _shown(text))
    return deployment


def _named(document: Mapping[str, Any], structure: str) -> DeploymentId:
    deployment = _deployment(document.get("depl_id"))
    if deployment is None:
        _wrong(structure, 0, "the id of a deployment at /depl_id", _shown(document.get("depl_id")))
    return deployment


# -- pieces ------------------------------------------------------------------------------------------------------------


def _text(data: bytes, structure: str, limit: int) -> str:
    if len(data) > limit:
        _wrong(structure, limit, f"at most {limit} bytes", f"{len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        _wrong(structure, error.start, "UTF-8", error.reason)


def _member(document: Mapping[str, Any], key: str, place: str, structure: str) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        _wrong(structure, 0, f"an object at {place}/{key}", _shown(value))
    return value


def _digest(value: object, place: str, structure: str) -> Digest:
    if not isinstance(value, str):
        _wrong(structure, 0, f"a digest at {place}", _shown(value))
    try:
        return Digest.parse(value)
    except InvalidDigest:
        _wrong(structure, 0, f"a digest at {place}", _shown(value))


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)[:200]


def _wrong(structure: str, offset: int, wanted: str, found: str) -> NoReturn:
    raise FormatError(structure=structure, offset=offset, wanted=wanted, found=found)
