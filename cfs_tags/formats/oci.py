"""OCI manifests, configs and indexes: what is needed of them, from bytes as they were fetched.

The shape is that of the OCI image specification 1.1.  An image that ``cfsctl oci images`` lists (composefs-rs 0.9.4 with
the crate oci-spec 0.10) can be read here, with the same facts: a key that is not known is ignored, an optional key may be
null, a known key must not stand there twice.  So can one that podman and skopeo read although lists that must be there
are absent or null: builders write an empty list like that.  Text is kept as it stands; it is foreign, and none of it is
safe to print as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from cfs_tags.errors import FormatError, InvalidDigest
from cfs_tags.formats import json_fields
from cfs_tags.values import Digest

MAX_MANIFEST = 4 << 20
"""Bytes of the longest manifest that is read: what registries must take, and the most that skopeo reads.  Hostile JSON
takes 40 times its length in memory while it is parsed."""

MAX_CONFIG = 4 << 20
"""Bytes of the longest config that is read, for the same reasons."""

MAX_INDEX = 4 << 20
"""Bytes of the longest index that is read, for the same reasons."""

MEDIA_TYPE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MEDIA_TYPE_DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MEDIA_TYPE_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

MEDIA_TYPE_HOST = "application/vnd.cfs-tags.host.v1+json"
"""Of what a host says about itself in a registry."""

LAYERS = "application/vnd.oci.image.layer."
"""How media types of layers start."""
MEDIA_TYPE_LAYER = f"{LAYERS}v1.tar"
_MEDIA_TYPE_LAYER_GZIP = f"{MEDIA_TYPE_LAYER}+gzip"
_MEDIA_TYPE_LAYER_ZSTD = f"{MEDIA_TYPE_LAYER}+zstd"
_MEDIA_TYPE_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

MANIFEST_TYPES = (MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX, MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_DOCKER_INDEX)
"""Media types of what an index may lead to: manifests and other indexes."""

LAYER_TYPES = {"none": MEDIA_TYPE_LAYER, "gzip": _MEDIA_TYPE_LAYER_GZIP, "zstd": _MEDIA_TYPE_LAYER_ZSTD}
"""Media types of layers by their compression."""
DOCKER_LAYER_TYPES = {
    kind: f"{_MEDIA_TYPE_DOCKER_LAYER}{suffix}" for kind, suffix in (("none", ""), ("gzip", ".gzip"), ("zstd", ".zstd"))
}
"""The same for manifests of Docker's."""

_UNSHARED = f"{LAYERS}nondistributable.v1.tar"
_DOCKER_UNSHARED = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_LAYERS = {
    **{DOCKER_LAYER_TYPES[kind]: LAYER_TYPES[kind] for kind in LAYER_TYPES},
    _DOCKER_UNSHARED: _UNSHARED,
    f"{_DOCKER_UNSHARED}.gzip": f"{_UNSHARED}+gzip",
}
"""OCI's media type for each of Docker's that a layer may have."""

ANNOTATIONS = "org.opencontainers.image."
"""How the annotations and labels start that OCI defines for images."""
REF_NAME = f"{ANNOTATIONS}ref.name"
"""Annotation of an entry of a layout: its name there (image-spec 1.1, ``annotations.md``)."""
FULL_NAME = "io.containerd.image.name"
"""Annotation that containerd and Docker give an entry: the whole name of the image."""

LAYOUT_FILE = "oci-layout"
"""The file that marks a layout (image-spec 1.1, ``image-layout.md``)."""
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
"""Its content."""
MAX_LAYOUT = 1 << 16

Kind = Literal["manifest", "index"]

# oci-spec, digest.rs: beside the three algorithms that are registered any other; never a "/"
_OTHER_DIGEST = r"(?!sha(?:256|384|512):)[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+"

_TARS = frozenset(kind + suffix for kind in (MEDIA_TYPE_LAYER, _UNSHARED) for suffix in ("", "+gzip", "+zstd"))
_TARS |= DOCKER_LAYERS.keys()

# what is read of each object: these keys must not stand there twice
_MANIFEST_KEYS = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations")
_INDEX_KEYS = ("schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations")
_DESCRIPTOR_KEYS = ("mediaType", "digest", "size", "annotations", "platform", "artifactType", "urls")
_PLATFORM_KEYS = ("architecture", "os", "variant", "os.version")
_CONFIG_KEYS = ("architecture", "os", "created", "author", "variant", "os.version", "config", "rootfs", "history")
_ROOTFS_KEYS = ("type", "diff_ids")
_RUN_KEYS = ("Labels", "Entrypoint", "Cmd", "Env", "User", "WorkingDir", "StopSignal")
_HISTORY_KEYS = ("created", "created_by", "author", "comment", "empty_layer")


class Platform(NamedTuple):
    """What a manifest of an index runs on.  Empty text where the index does not say."""

    architecture: str
    os: str
    variant: str | None = None
    os_version: str | None = None


class Descriptor(NamedTuple):
    """A reference to content.

    Attributes:
        media_type: of the content.
        digest: of the content.
        size: of the content, in bytes.
        annotations: foreign text by key.
        platform: in an index, what the manifest runs on.
        artifact_type: in an index, of the artifact that the manifest describes.
        urls: where else the content may be had.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = {}
    platform: Platform | None = None
    artifact_type: str | None = None
    urls: tuple[str, ...] = ()

    @property
    def is_tar(self) -> bool:
        """Whether the media type is that of an image's layer: a tar, plain or compressed.  Docker's types stand in OCI
        manifests, too."""
        return self.media_type in _TARS


class Manifest(NamedTuple):
    """An image manifest: of a container image, or of an artifact.

    Attributes:
        config: the config; its media type tells images from artifacts.
        layers: bottom first.
        subject: what a referrer (signature, attestation) is about.
        artifact_type: of an artifact.
        media_type: of the manifest itself, None where it does not say.
        annotations: foreign text by key.
        schema_version: 2.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str | None = None
    media_type: str | None = None
    annotations: Mapping[str, str] = {}
    schema_version: int = 2

    @property
    def is_container(self) -> bool:
        """Whether this is a container image for cfsctl: the config has OCI's media type for image configs.

        Docker's has another, and such a manifest is an artifact to composefs-rs 0.9.4 (``oci_image.rs``); ``cfsctl oci
        pull`` never stores one, because skopeo converts it.
        """
        return self.config.media_type == MEDIA_TYPE_CONFIG


class History(NamedTuple):
    """One step of an image's making."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ImageConfig(NamedTuple):
    """The config of a container image.

    Attributes:
        architecture: as Go names it, such as ``amd64``.
        os: as Go names it, such as ``linux``.
        diff_ids: digests of the uncompressed layers, bottom first.
        created: when, as it stands in the config (RFC 3339 where the builder kept to the rules).
        author: who.
        variant: of the architecture.
        os_version: of the operating system.
        labels: foreign text by key.
        entrypoint: what a container runs.
        cmd: arguments for it.
        env: ``NAME=value`` each.
        user: who a container runs as.
        working_dir: where a container starts.
        stop_signal: how a container is stopped.
        history: oldest first.
    """

    architecture: str
    os: str
    diff_ids: tuple[Digest, ...]
    created: str | None = None
    author: str | None = None
    variant: str | None = None
    os_version: str | None = None
    labels: Mapping[str, str] = {}
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    history: tuple[History, ...] = ()


class Index(NamedTuple):
    """An image index: one image for several platforms, or the table of contents of an OCI layout.

    Attributes:
        manifests: in the order of the index.
        media_type: of the index itself, None where it does not say.
        artifact_type: of an artifact.
        subject: what a referrer is about.
        annotations: foreign text by key.
        schema_version: 2.
    """

    manifests: tuple[Descriptor, ...]
    media_type: str | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = {}
    schema_version: int = 2


def kind(data: bytes) -> Kind:
    """What a document is: ``"manifest"`` or ``"index"``, of OCI or Docker.

    Raises:
        FormatError: neither; or both, as a document that means one thing here and another there.
    """
    return _kind(json_fields.load(data, "manifest or index", MAX_MANIFEST))


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        FormatError: too long, no JSON, or not the shape; ``wanted`` says where, as a JSON pointer.
    """
    return _manifest(json_fields.load(data, "manifest", MAX_MANIFEST))


def parse_index(data: bytes) -> Index:
    """Read an index.

    Raises:
        FormatError: as :func:`parse_manifest`.
    """
    return _index(json_fields.load(data, "index", MAX_INDEX))


def check_layout(data: bytes) -> None:
    """Look whether a file marks a layout of the version that this program knows, the only one that there is.

    Raises:
        FormatError: it does not.
    """
    document = json_fields.load(data, LAYOUT_FILE, MAX_LAYOUT)
    try:
        version = json_fields.text(document, "imageLayoutVersion")
    except json_fields.Wrong as wrong:
        raise wrong.as_error(LAYOUT_FILE) from None
    if version != "1.0.0":
        raise FormatError(structure=LAYOUT_FILE, offset=0, wanted="version 1.0.0", found=f"version {version}")


def parse_manifest_or_index(data: bytes) -> Manifest | Index:
    """Read whichever of the two it is.

    Raises:
        FormatError: as :func:`kind` and :func:`parse_manifest`.
    """
    document = json_fields.load(data, "manifest or index", MAX_MANIFEST)
    return _index(document) if _kind(document) == "index" else _manifest(document)


def parse_config(data: bytes) -> ImageConfig:
    """Read the config of a container image.  That of an artifact may be anything and is not for this function.

    Raises:
        FormatError: as :func:`parse_manifest`.
    """
    document = json_fields.load(data, "config", MAX_CONFIG)
    try:
        document = json_fields.struct(document, _CONFIG_KEYS)
        try:
            rootfs = json_fields.struct(document.get("rootfs"), _ROOTFS_KEYS)
            json_fields.text(rootfs, "type")
            diff_ids = _digests(rootfs, "diff_ids")
        except json_fields.Wrong as wrong:
            raise wrong.under("rootfs") from None
        try:
            run = {} if document.get("config") is None else json_fields.struct(document["config"], _RUN_KEYS)
            labels = json_fields.text_map(run, "Labels")
            entrypoint = json_fields.texts(run, "Entrypoint")
            cmd = json_fields.texts(run, "Cmd")
            env = json_fields.texts(run, "Env")
            user = json_fields.optional_text(run, "User")
            working_dir = json_fields.optional_text(run, "WorkingDir")
            stop_signal = json_fields.optional_text(run, "StopSignal")
        except json_fields.Wrong as wrong:
            raise wrong.under("config") from None
        return ImageConfig(
            architecture=json_fields.text(document, "architecture"),
            os=json_fields.text(document, "os"),
            diff_ids=diff_ids,
            created=json_fields.optional_text(document, "created"),
            author=json_fields.optional_text(document, "author"),
            variant=json_fields.optional_text(document, "variant"),
            os_version=json_fields.optional_text(document, "os.version"),
            labels=labels,
            entrypoint=entrypoint,
            cmd=cmd,
            env=env,
            user=user,
            working_dir=working_dir,
            stop_signal=stop_signal,
            history=_history(document),
        )
    except json_fields.Wrong as wrong:
        raise wrong.as_error("config") from None


# -- documents ---------------------------------------------------------------------------------------------------------


def _kind(document: dict[str, Any]) -> Kind:
    is_index = "manifests" in document
    is_manifest = "layers" in document or "config" in document
    if is_index and is_manifest:
        # such a document is run as one thing and verified as another
        found = "manifests beside config or layers"
    elif not is_index and not is_manifest:
        found = "neither manifests nor config and layers"
    else:
        return "index" if is_index else "manifest"
    raise FormatError(structure="manifest or index", offset=0, wanted="either a manifest or an index", found=found)


def _manifest(document: dict[str, Any]) -> Manifest:
    try:
        if "manifests" in document and "config" not in document:
            raise json_fields.Wrong("a manifest", "an index")
        document = json_fields.struct(document, _MANIFEST_KEYS)
        return Manifest(
            config=_descriptor(document.get("config"), "config"),
            layers=_descriptors(document, "layers"),
            subject=_subject(document),
            artifact_type=json_fields.optional_text(document, "artifactType"),
            media_type=json_fields.optional_text(document, "mediaType"),
            annotations=json_fields.text_map(document, "annotations"),
            schema_version=json_fields.number(document, "schemaVersion", 1 << 32),
        )
    except json_fields.Wrong as wrong:
        raise wrong.as_error("manifest") from None


def _index(document: dict[str, Any]) -> Index:
    try:
        if "manifests" not in document and "config" in document:
            raise json_fields.Wrong("an index", "a manifest")
        document = json_fields.struct(document, _INDEX_KEYS)
        if "manifests" not in document:
            raise json_fields.Wrong("a list", "nothing", "manifests")
        return Index(
            manifests=_descriptors(document, "manifests"),
            media_type=json_fields.optional_text(document, "mediaType"),
            artifact_type=json_fields.optional_text(document, "artifactType"),
            subject=_subject(document),
            annotations=json_fields.text_map(document, "annotations"),
            schema_version=json_fields.number(document, "schemaVersion", 1 << 32),
        )
    except json_fields.Wrong as wrong:
        raise wrong.as_error("index") from None


def _subject(document: dict[str, Any]) -> Descriptor | None:
    subject = document.get("subject")
    return None if subject is None else _descriptor(subject, "subject")


def _descriptors(document: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    return tuple([_descriptor(item, key, number) for number, item in enumerate(json_fields.optional_items(document, key))])


def _descriptor(value: object, key: str, number: int | None = None) -> Descriptor:
    try:
        members = json_fields.struct(value, _DESCRIPTOR_KEYS)
        # by position: of an image with many layers this is what takes the time
        return Descriptor(
            json_fields.text(members, "mediaType"),
            _digest(members.get("digest")),
            json_fields.number(members, "size", 1 << 64),
            json_fields.text_map(members, "annotations"),
            _platform(members),
            json_fields.optional_text(members, "artifactType"),
            json_fields.texts(members, "urls"),
        )
    except json_fields.Wrong as wrong:
        raise wrong.under(key if number is None else f"{key}/{number}") from None


def _platform(descriptor: dict[str, Any]) -> Platform | None:
    value = descriptor.get("platform")
    if value is None:
        return None
    try:
        members = json_fields.struct(value, _PLATFORM_KEYS)
        return Platform(
            architecture=json_fields.optional_text(members, "architecture") or "",
            os=json_fields.optional_text(members, "os") or "",
            variant=json_fields.optional_text(members, "variant"),
            os_version=json_fields.optional_text(members, "os.version"),
        )
    except json_fields.Wrong as wrong:
        raise wrong.under("platform") from None


def _history(document: dict[str, Any]) -> tuple[History, ...]:
    result = []
    for number, step in enumerate(json_fields.optional_items(document, "history")):
        try:
            members = json_fields.struct(step, _HISTORY_KEYS)
            empty = members.get("empty_layer")
            if empty is not None and not isinstance(empty, bool):
                raise json_fields.Wrong("true or false", json_fields.shown(empty), "empty_layer")
            result.append(
                History(
                    created=json_fields.optional_text(members, "created"),
                    created_by=json_fields.optional_text(members, "created_by"),
                    author=json_fields.optional_text(members, "author"),
                    comment=json_fields.optional_text(members, "comment"),
                    empty_layer=bool(empty),
                )
            )
        except json_fields.Wrong as wrong:
            raise wrong.under(f"history/{number}") from None
    return tuple(result)


def _digest(value: object, place: str = "digest") -> Digest:
    if type(value) is not str:
        raise json_fields.Wrong("a digest", json_fields.shown(value), place)
    try:
        return Digest.parse(value)
    except InvalidDigest:
        if re.fullmatch(_OTHER_DIGEST, value) is None:
            raise json_fields.Wrong("a digest", json_fields.shown(value), place) from None
        return Digest.trusted(value)


def _digests(members: dict[str, Any], key: str) -> tuple[Digest, ...]:
    return tuple([_digest(item, f"{key}/{number}") for number, item in enumerate(json_fields.optional_items(members, key))])
