"""Frozen values, parsed once at the edge and trusted afterwards.

Each is a ``str`` that was checked: it compares, sorts, hashes and serialises as its text, costs one allocation, and
cannot be confused with unchecked text, because functions ask for the type.  ``parse`` takes text from people and raises
a :class:`~cfs_tags.errors.UsageError`; ``trusted`` skips the check, for text that the program made itself or that a
parser of ``formats/`` has checked already.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Self

from cfs_tags.errors import InvalidDigest, UsageError

if TYPE_CHECKING:
    from datetime import datetime

VERSION = "0.1.0"
"""Of this package."""

OWNERS = ("app", "bootc", "deployment", "pin", "foreign")
"""Who may move or delete a ref: see ``tags/rows.py: owner_of``."""

MAX_NAME_BYTES = 255
"""Longest file name on the file systems that matter (NAME_MAX), in bytes."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST = 100 * 365 * 86400
"""Seconds of the longest duration that anything takes: a hundred years."""
_DURATION = re.compile(r"(?:\d{1,9}[smhdw])+", re.ASCII)


def duration(text: str) -> int | None:
    """Seconds in a duration: ``7d``, ``12h``, ``30m``, ``90s``, ``2w``, or several (``1d12h``); None where it is none."""
    if _DURATION.fullmatch(text) is None:
        return None
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhdw])", text))


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

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of bytes."""
        import hashlib

        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

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

    MANIFEST = "oci-manifest-"
    CONFIG = "oci-config-"
    LAYER = "oci-layer-"
    BLOB = "oci-blob-"
    _KEPT = "cfs-tags-kept-"

    @classmethod
    def manifest(cls, digest: Digest) -> ContentId:
        """Where the manifest with that digest is kept."""
        return cls(cls.MANIFEST + digest)

    @classmethod
    def config(cls, digest: Digest) -> ContentId:
        """Where the config with that digest is kept."""
        return cls(cls.CONFIG + digest)

    @classmethod
    def layer(cls, diff_id: Digest) -> ContentId:
        """Where the layer with that diff_id is kept."""
        return cls(cls.LAYER + diff_id)

    @classmethod
    def blob(cls, digest: Digest) -> ContentId:
        """Where the layer of an artifact that is no tar is kept."""
        return cls(cls.BLOB + digest)

    @classmethod
    def kept(cls, stream: ObjectId) -> ContentId:
        """A name for a splitstream whose own name has gone to another object."""
        return cls(cls._KEPT + stream)

    @property
    def manifest_digest(self) -> Digest | None:
        """The digest when this is a manifest with a well-formed one, else None."""
        if not self.startswith(self.MANIFEST):
            return None
        text = self[len(self.MANIFEST) :]
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
            UsageError: names the rule that it breaks.
        """
        rule = cls._broken_rule(text)
        if rule is not None:
            raise UsageError("invalid-tag-name", name=text, rule=rule)
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


def instant_of(text: str | None) -> datetime | None:
    """An instant (RFC 3339); None for any other text: one without a zone is no instant, it may be any of a whole day."""
    from datetime import datetime

    try:
        found = datetime.fromisoformat(text or "")
        return found if found.utcoffset() is not None else None
    except ValueError:
        return None


_AGO = re.compile(r"(\d{1,9}) ?(second|minute|hour|day|week|month|year)s?(?: ago)?", re.ASCII)
_WORDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2629746, "year": 31556952}


def seconds_of(text: str) -> float | None:
    """Seconds from 1970 to a time as people write it: ``2026-01-31``, ``2026-01-31T12:00:00Z``, ``yesterday``, ``2 days ago``,
    or how long ago it was (``36h``); None for any other text.

    A day stands for its beginning.  A time without a zone is that of the machine.
    """
    import time
    from datetime import UTC, datetime, timedelta

    now = time.time()
    if (length := duration(text)) is not None:
        return now - length
    if (ago := _AGO.fullmatch(text)) is not None:
        return now - int(ago[1]) * _WORDS[ago[2]]
    try:
        if text in ("now", "today", "yesterday"):
            today = datetime.fromtimestamp(now, UTC).astimezone().date()
            day = today - timedelta(days=text == "yesterday")
            return now if text == "now" else datetime(day.year, day.month, day.day).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None
