"""Frozen values, parsed once at the edge and trusted afterwards.

Each is a ``str`` that was checked: it compares, sorts, hashes and serialises as its text, costs one allocation, and
cannot be confused with unchecked text, because functions ask for the type.  ``parse`` takes text from people and raises
a :class:`~cfs_tags.errors.UsageError`; ``trusted`` skips the check, for text that the program made itself or that a
parser of ``formats/`` has checked already.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from cfs_tags.errors import InvalidDigest, InvalidTagName

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MAX_NAME_BYTES", "Algorithm", "ContentId", "DeploymentId", "Digest", "ObjectId", "TagName", "encodable"]

MAX_NAME_BYTES = 255
"""Longest file name on the file systems that matter (NAME_MAX), in bytes."""


def encodable(text: str) -> bool:
    """Whether text can be written as UTF-8: half a surrogate pair, which JSON may hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Algorithm(Enum):
    """Hash algorithm of a repository: its fs-verity digests, and so the names of its objects."""

    SHA256 = "sha256"
    SHA512 = "sha512"

    @property
    def number(self) -> int:
        """The number in fs-verity descriptors and splitstream headers (FS_VERITY_HASH_ALG_SHA256 and _SHA512)."""
        return 1 if self is Algorithm.SHA256 else 2

    @property
    def size(self) -> int:
        """Digest length in bytes: 32 or 64."""
        return 32 if self is Algorithm.SHA256 else 64

    @property
    def hex_length(self) -> int:
        """Digest length in hexadecimal digits: 64 or 128."""
        return self.size * 2

    @classmethod
    def of_hex_length(cls, digits: int) -> Algorithm | None:
        """The algorithm whose digests have that many hexadecimal digits, or None."""
        return {64: cls.SHA256, 128: cls.SHA512}.get(digits)


class _Checked(str):
    __slots__ = ()

    @classmethod
    def trusted(cls, text: str) -> Self:
        """Take text that is known to be right."""
        return cls(text)


class Digest(_Checked):
    """An OCI content digest such as ``sha256:<64 hex digits>`` (lower case)."""

    __slots__ = ()

    _SHAPE = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}|sha384:[0-9a-f]{96}", re.ASCII)

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Check ``text``.

        Raises:
            InvalidDigest: it is not algorithm, colon and as many lower-case hexadecimal digits as that algorithm has.
        """
        if cls._SHAPE.fullmatch(text) is None:
            raise InvalidDigest(text=text, wanted="sha256: and 64 hexadecimal digits in lower case")
        return cls(text)

    @property
    def algorithm(self) -> str:
        """The name before the colon, as ``hashlib`` knows it."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The digits after the colon."""
        return self.partition(":")[2]


class ObjectId(_Checked):
    """The fs-verity digest of an object: 64 (sha256) or 128 (sha512) lower-case hexadecimal digits."""

    __slots__ = ()

    _SHAPE = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?", re.ASCII)

    @classmethod
    def parse(cls, text: str, algorithm: Algorithm | None = None) -> Self:
        """Check ``text``, against the length of ``algorithm`` where one is given.

        Raises:
            InvalidDigest: wrong characters or length.
        """
        if cls._SHAPE.fullmatch(text) is None or (algorithm is not None and len(text) != algorithm.hex_length):
            digits = f"{algorithm.hex_length}" if algorithm is not None else "64 or 128"
            raise InvalidDigest(text=text, wanted=f"{digits} hexadecimal digits in lower case")
        return cls(text)

    @classmethod
    def of_bytes(cls, digest: bytes) -> Self:
        """From the 32 or 64 bytes of a digest."""
        return cls(digest.hex())

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm, by length."""
        return Algorithm.SHA256 if len(self) == 64 else Algorithm.SHA512


class DeploymentId(ObjectId):
    """The name of a deployment: the fs-verity digest of its EROFS image."""

    __slots__ = ()


class ContentId(_Checked):
    """The name of a splitstream in ``streams/``: ``oci-manifest-sha256:…``, ``oci-layer-sha256:…`` or any other.

    Always one path component (never empty, ``.``, ``..`` or ``refs``; no ``/``, no NUL).
    """

    __slots__ = ()

    _MANIFEST = "oci-manifest-"
    _CONFIG = "oci-config-"
    _LAYER = "oci-layer-"
    _BLOB = "oci-blob-"
    _KEPT = "cfs-tags-kept-"

    @classmethod
    def manifest(cls, digest: Digest) -> ContentId:
        """Where the manifest with that digest is kept."""
        return cls(cls._MANIFEST + digest)

    @classmethod
    def config(cls, digest: Digest) -> ContentId:
        """Where the config with that digest is kept."""
        return cls(cls._CONFIG + digest)

    @classmethod
    def layer(cls, diff_id: Digest) -> ContentId:
        """Where the layer with that diff_id is kept."""
        return cls(cls._LAYER + diff_id)

    @classmethod
    def blob(cls, digest: Digest) -> ContentId:
        """Where the layer of an artifact that is no tar is kept."""
        return cls(cls._BLOB + digest)

    @classmethod
    def kept(cls, stream: ObjectId) -> ContentId:
        """A name for a splitstream whose own name has gone to another object."""
        return cls(cls._KEPT + stream)

    @property
    def is_kept(self) -> bool:
        """Whether this is such a name."""
        return self.startswith(self._KEPT)

    @property
    def manifest_digest(self) -> Digest | None:
        """The digest when this is a manifest with a well-formed one, else None."""
        if not self.startswith(self._MANIFEST):
            return None
        text = self[len(self._MANIFEST) :]
        return Digest(text) if Digest._SHAPE.fullmatch(text) is not None else None


class TagName(_Checked):
    """A name for a manifest, decoded (``quay.io/org/app:1``).

    ``parse`` applies the rules for names that are made; ``trusted`` takes any name that was found on disk (undecodable
    bytes are surrogates, as :func:`os.fsdecode` makes them).
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> TagName:
        """Check a name that is to be made.

        Raises:
            InvalidTagName: names the rule that it breaks.
        """
        rule = cls._broken_rule(text)
        if rule is not None:
            raise InvalidTagName(name=text, rule=rule)
        return cls(text)

    @staticmethod
    def _broken_rule(text: str) -> str | None:
        if not text:
            return "is empty"
        # cfsctl keeps "@" for digests and so do we; "-" would be read as an option by every tool
        if text[0] == "@":
            return "starts with '@', which stands for digests and deployments"
        if text[0] == "-":
            return "starts with '-', which would be read as an option"
        if text in (".", ".."):
            return "is a directory entry of its own"
        if not text.isprintable():
            return "has a control character or one that cannot be shown"
        encoded = len(text.encode()) + 2 * (text.count("%") + text.count("/"))
        if encoded > MAX_NAME_BYTES:
            return f"takes {encoded} bytes once encoded, {MAX_NAME_BYTES} at most"
        return None
