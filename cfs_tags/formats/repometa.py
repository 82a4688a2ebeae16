"""``meta.json``: what a repository is made of, and who may open it (composefs-rs 0.9.4, ``repository.rs``).

::

    {"version": 1, "algorithm": "fsverity-sha512-12",
     "features": {"compatible": [], "read-only-compatible": ["v1_erofs"], "incompatible": []},
     "erofs_formats": {"default": 1, "extra": [2]}}

``features`` and ``erofs_formats`` may be absent.  Keys that are not known are ignored: what must not be ignored has a
feature flag.  An unknown *compatible* flag means nothing, an unknown *read-only-compatible* one forbids writing, an
unknown *incompatible* one forbids reading.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from cfs_tags.errors import UnsupportedError
from cfs_tags.formats import json_fields
from cfs_tags.values import Algorithm, encodable

_VERSION = 1
"""The newest version that is known here."""

MAX_SIZE = 1 << 20
"""Bytes of the longest ``meta.json`` that is read; real ones have some 250."""

_STRUCTURE = "meta.json"
_V1_EROFS = "v1_erofs"
_KNOWN_READ_ONLY = frozenset({_V1_EROFS})
_KNOWN_INCOMPATIBLE: frozenset[str] = frozenset()
_EROFS_VERSIONS = (0, 1, 2)
_ALGORITHMS = {"fsverity-sha256-12": Algorithm.SHA256, "fsverity-sha512-12": Algorithm.SHA512}


class RepoMeta(NamedTuple):
    """The content of a ``meta.json``.

    Attributes:
        version: of the repository format.
        algorithm: of every digest in the repository; blocks are of 4096 bytes.
        compatible: flags that an older program may ignore.
        read_only_compatible: flags without which a program must not write.
        incompatible: flags without which a program must not even read.
        erofs_default: version of the EROFS images that are made, None where the file does not say.
        erofs_extra: versions that are made besides, ascending.
    """

    version: int
    algorithm: Algorithm
    compatible: tuple[str, ...] = ()
    read_only_compatible: tuple[str, ...] = ()
    incompatible: tuple[str, ...] = ()
    erofs_default: int | None = None
    erofs_extra: tuple[int, ...] = ()

    @property
    def unknown_read_only(self) -> tuple[str, ...]:
        """The read-only-compatible flags that this program does not know."""
        return tuple(flag for flag in self.read_only_compatible if flag not in _KNOWN_READ_ONLY)

    @property
    def writable(self) -> bool:
        """Whether this program may write to the repository, as far as its format goes."""
        return not self.unknown_read_only

    @property
    def erofs_version(self) -> int:
        """The version of the EROFS images that are made, also where the file does not say.

        Repositories from before ``erofs_formats`` have version 1 with the flag ``v1_erofs``, else 2; cfsctl takes
        ``{"default": 2}`` alone for an absent one.
        """
        if self.erofs_default is None or (self.erofs_default == 2 and not self.erofs_extra):
            return 1 if _V1_EROFS in self.read_only_compatible else 2
        return self.erofs_default


def parse(data: bytes) -> RepoMeta:
    """Read a ``meta.json``.

    Raises:
        FormatError: it is not JSON of that shape, or longer than ``MAX_SIZE``.
        UnsupportedError: of a version above ``_VERSION``.
        UnsupportedError: an incompatible flag, a hash algorithm, a block size or an EROFS version that is not known.
    """
    # the two halves of a doubled key would be a different repository for different programs
    document = json_fields.load_any(data, _STRUCTURE, MAX_SIZE, unique=True)
    try:
        return _meta(document)
    except json_fields.Wrong as wrong:
        raise wrong.as_error(_STRUCTURE) from None


def _meta(document: object) -> RepoMeta:
    if not isinstance(document, dict):
        raise json_fields.Wrong("an object at /", json_fields.shown(document))
    # the version first: nothing else means the same in a version that is not known
    version = document.get("version")
    if type(version) is not int or not 0 <= version < 1 << 32:
        raise json_fields.Wrong("a number below 2^32", json_fields.shown(version), "version")
    if version > _VERSION:
        raise UnsupportedError("unsupported-version", structure=_STRUCTURE, wanted=f"up to {_VERSION}", found=str(version))
    features = _object(document, "features")
    incompatible = _flags(features, "incompatible")
    unknown = tuple(flag for flag in incompatible if flag not in _KNOWN_INCOMPATIBLE)
    if unknown:
        raise UnsupportedError("unsupported-feature", structure=_STRUCTURE, features=unknown)
    default: int | None = None
    extra: tuple[int, ...] = ()
    if "erofs_formats" in document:
        formats = _object(document, "erofs_formats")
        default = _erofs_version(formats.get("default"), "default")
        extra = tuple(sorted({_erofs_version(item, "extra") for item in _list(formats, "extra", "erofs_formats")}))
    return RepoMeta(
        version=version,
        algorithm=_algorithm(document.get("algorithm")),
        compatible=_flags(features, "compatible"),
        read_only_compatible=_flags(features, "read-only-compatible"),
        incompatible=incompatible,
        erofs_default=default,
        erofs_extra=extra,
    )


def fresh(algorithm: Algorithm) -> RepoMeta:
    """What cfsctl 0.9.4 says of a repository that it finds without a ``meta.json``.

    Whatever EROFS version the images in it have: those that are made from then on are of version 1.
    """
    return RepoMeta(_VERSION, algorithm, read_only_compatible=(_V1_EROFS,), erofs_default=1)


def render(meta: RepoMeta) -> bytes:
    """The bytes of a ``meta.json``, as cfsctl writes them: indented by two, a line feed at the end."""
    document: dict[str, Any] = {
        "version": meta.version,
        "algorithm": f"fsverity-{meta.algorithm.value}-12",
        "features": {
            "compatible": list(meta.compatible),
            "read-only-compatible": list(meta.read_only_compatible),
            "incompatible": list(meta.incompatible),
        },
    }
    if meta.erofs_default is not None:
        document["erofs_formats"] = {"default": meta.erofs_default}
        if meta.erofs_extra:
            document["erofs_formats"]["extra"] = list(meta.erofs_extra)
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    try:
        return json_fields.struct(document.get(key, {}), ())
    except json_fields.Wrong as wrong:
        raise wrong.under(key) from None


def _list(fields: dict[str, Any], key: str, place: str) -> list[Any]:
    try:
        return json_fields.items(fields, key) if key in fields else []
    except json_fields.Wrong as wrong:
        raise wrong.under(place) from None


def _flags(features: dict[str, Any], key: str) -> tuple[str, ...]:
    flags = _list(features, key, "features")
    for flag in flags:
        if not isinstance(flag, str) or not encodable(flag):
            raise json_fields.Wrong("text", json_fields.shown(flag), f"features/{key}")
    return tuple(flags)


def _algorithm(value: object) -> Algorithm:
    if not isinstance(value, str) or not value.startswith("fsverity-"):
        raise json_fields.Wrong("fsverity-<hash>-<log2 of the block size>", json_fields.shown(value), "algorithm")
    algorithm = _ALGORITHMS.get(value)
    if algorithm is None:
        raise UnsupportedError("unsupported-feature", structure=_STRUCTURE, features=(f"algorithm {value[:100]}",))
    return algorithm


def _erofs_version(value: object, key: str) -> int:
    if type(value) is not int:
        raise json_fields.Wrong("a number", json_fields.shown(value), f"erofs_formats/{key}")
    if value not in _EROFS_VERSIONS:
        raise UnsupportedError("unsupported-feature", structure=_STRUCTURE, features=(f"EROFS format {str(value)[:100]}",))
    return value
