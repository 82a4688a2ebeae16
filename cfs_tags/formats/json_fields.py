"""Fields of JSON that other programs wrote, read as strictly as composefs-rs 0.9.4 reads them (serde).

A key that is not known is ignored, an optional key may be null, a key that is read must not stand there twice.  Text is
kept as it stands; it is foreign, and none of it is safe to print as it is.  What is wrong is raised as :class:`Wrong`,
which learns its place on the way out.
"""

from __future__ import annotations

import json
from math import isinf
from typing import Any, NoReturn

from cfs_tags.errors import FormatError
from cfs_tags.values import encodable

_MAX_DEPTH = 128
"""Levels of objects and lists of the deepest document that is read, as serde_json has it, which cfsctl reads with."""

_MAX_DIGITS = 309  # with a sign; serde_json takes longer ones for fractions, and refuses those
_TOO_DEEP = f"too many levels: more than {_MAX_DEPTH}"


class Wrong(Exception):
    """A value that is not what it should be.  The place is put together on the way out: nothing when all is well."""

    def __init__(self, wanted: str, found: str, place: str = "") -> None:
        super().__init__()
        self.wanted = wanted
        self.found = found
        self.place = f"/{place}" if place else ""

    def under(self, place: str) -> Wrong:
        """The same, one level further out."""
        self.place = f"/{place}{self.place}"
        return self

    def as_error(self, structure: str) -> FormatError:
        """The error, at the outermost level; ``wanted`` says where, as a JSON pointer."""
        wanted = f"{self.wanted} at {self.place}" if self.place else self.wanted
        return FormatError(structure=structure, offset=0, wanted=wanted, found=self.found)


class _Doubled(dict[str, Any]):
    """An object in which a key stands more than once; the last value counts, unless we read that key."""

    __slots__ = ("keys_twice",)

    keys_twice: frozenset[str]


def load(data: bytes, structure: str, limit: int, *, unique: bool = False) -> dict[str, Any]:
    """Read a document that is an object.  Arguments and errors as those of :func:`load_any`; no object is an error too."""
    document = load_any(data, structure, limit, unique=unique)
    if not isinstance(document, dict):
        raise FormatError(structure=structure, offset=0, wanted="an object", found=shown(document))
    return document


def load_any(data: bytes, structure: str, limit: int, *, unique: bool = False) -> object:
    """Read a document.

    Args:
        data: UTF-8.
        structure: what errors call it.
        limit: bytes of the longest that is read.
        unique: whether a key that stands twice in one object is refused wherever it is; else where it is read
            (:func:`struct`).

    Raises:
        FormatError: too long, no JSON (NaN, Infinity and numbers beyond all bounds are none), or more than
            :data:`_MAX_DEPTH` levels deep.
    """
    if len(data) > limit:
        found = f"{len(data)} bytes"
        raise FormatError(structure=structure, offset=limit, wanted=f"at most {limit} bytes", found=found)
    offset, wanted = 0, "JSON"
    try:
        document = json.loads(
            data.decode(),
            object_pairs_hook=_once if unique else _pairs,
            parse_constant=_no_constant,
            parse_float=_float,
            parse_int=_int,
        )
        if data.count(b"[") + data.count(b"{") > _MAX_DEPTH:
            _refuse_depth(document)
        return document
    except UnicodeDecodeError as error:
        offset, wanted, found = error.start, "UTF-8", error.reason
    except json.JSONDecodeError as error:
        offset, found = len(error.doc[: error.pos].encode()), error.msg
    except RecursionError:
        found = _TOO_DEEP
    except ValueError as error:
        found = str(error)
    raise FormatError(structure=structure, offset=offset, wanted=wanted, found=found) from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    doubled = _Doubled(result)
    seen: set[str] = set()
    twice: set[str] = set()
    for key, _ in pairs:
        (twice if key in seen else seen).add(key)
    doubled.keys_twice = frozenset(twice)
    return doubled


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise ValueError(f"a number beyond all bounds: {text[:40]}")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _refuse_depth(document: object) -> None:
    level: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def struct(value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    """An object of which these keys are read."""
    if type(value) is dict:
        return value
    if type(value) is not _Doubled:
        raise Wrong("an object", shown(value))
    for key in keys:
        if key in value.keys_twice:
            raise Wrong("one value", "two", key)
    return value


def optional_text(fields: dict[str, Any], key: str) -> str | None:
    """Text that can be written again; None where it is absent or null."""
    value = fields.get(key)
    if value is None:
        return None
    if type(value) is not str or not (value.isascii() or encodable(value)):
        raise Wrong("text", shown(value), key)
    return value


def text(fields: dict[str, Any], key: str) -> str:
    """Text that must be there."""
    value = optional_text(fields, key)
    if value is None:
        raise Wrong("text", "nothing", key)
    return value


def texts(fields: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts; empty where it is absent or null."""
    value = fields.get(key)
    if value is None:
        return ()
    if type(value) is not list:
        raise Wrong("a list", shown(value), key)
    for number, item in enumerate(value):
        if type(item) is not str or not (item.isascii() or encodable(item)):
            raise Wrong("text", shown(item), f"{key}/{number}")
    return tuple(value)


def text_map(fields: dict[str, Any], key: str) -> dict[str, str]:
    """An object whose values are texts; empty where it is absent or null, and so is a value."""
    value = fields.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Wrong("an object", shown(value), key)
    if None in value.values():
        value = {name: "" if item is None else item for name, item in value.items()}
    for name, item in value.items():
        if type(item) is not str or not ((item.isascii() and name.isascii()) or encodable(item + name)):
            raise Wrong("text", shown(item), f"{key}/{_pointer(name)}")
    return value


def number(fields: dict[str, Any], key: str, limit: int) -> int:
    """A whole number from 0 to below ``limit``."""
    value = fields.get(key)
    if type(value) is not int or not 0 <= value < limit:
        raise Wrong(f"a number from 0 to {limit - 1}", shown(value), key)
    return value


def optional_items(fields: dict[str, Any], key: str) -> list[Any]:
    """A list of anything; empty where it is absent or null."""
    return [] if fields.get(key) is None else items(fields, key)


def items(fields: dict[str, Any], key: str) -> list[Any]:
    """A list that must be there, of anything."""
    value = fields.get(key)
    if type(value) is not list:
        raise Wrong("a list", shown(value), key)
    return value


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def shown(value: object) -> str:
    """How errors call what was found."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value[:100])
    if isinstance(value, int):
        return str(value)[:100]
    return {float: "a fraction", list: "a list"}.get(type(value), "an object")
