"""The arguments of public functions: a wrong type or value is an error of the argument, before anything is done.

:func:`checked` reads the annotations of a function.  What they say is what is taken: a number is no text, a text
no list of texts, True no number.  A list is read once, and the function gets a tuple.
"""

from __future__ import annotations

import collections.abc
import os
import types
from datetime import UTC, datetime, timedelta
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from cfs_tags.errors import UsageError

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterable

    from cfs_tags.repo.store import ReadRepo

P = ParamSpec("P")
R = TypeVar("R")

WAIT = timedelta(seconds=30)
"""How long locks are waited for where nothing is said."""
Owner = Literal["app", "bootc", "deployment", "pin", "foreign"]
"""Who may move or delete a ref."""
Home = Literal["shared", "private"]
"""Who sees a tag."""
_LONGEST = timedelta(days=36500)
_SHOWN = 80
_MANY = (collections.abc.Iterable, collections.abc.Sequence, collections.abc.Collection)


class _Wrong(Exception):
    """What an argument is not; ``value`` is the one of several of which it is said."""

    value: object = None


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have every argument of a method looked at first.

    Raises:
        UsageError (invalid-argument): names the argument, shows it and says what is wanted.
    """
    look = _Looks(function)

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        try:
            bound = look.signature.bind(*given, **named)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}{look.near(named)}") from None
        for name, value in bound.arguments.items():
            if name != "self":
                bound.arguments[name] = _argument(name, value, look.wanted[name])
        return function(*bound.args, **bound.kwargs)

    return call


class _Looks:
    """What a function takes, found when it is called first."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def near(self, named: Iterable[str]) -> str:
        """What an argument that there is not may be meant to be."""
        from difflib import get_close_matches

        parameters = list(self.signature.parameters)
        near = [one for name in named if name not in parameters for one in get_close_matches(name, parameters, 1)]
        return f": there is {', '.join(near)}" if near else ""

    @cached_property
    def signature(self) -> inspect.Signature:
        import inspect

        return inspect.signature(self._function)

    @cached_property
    def wanted(self) -> dict[str, Any]:
        """What is wanted of each argument; the annotation of the result may name what is not imported."""
        names = getattr(self._function, "__globals__", {})
        wanted = {}
        for name, one in self.signature.parameters.items():
            if name != "self":
                wanted[name] = eval(
                    f"tuple[{one.annotation}, ...]" if one.kind is one.VAR_POSITIONAL else one.annotation, names
                )
        return wanted


def _argument(name: str, value: Any, wanted: Any) -> Any:
    try:
        return _fitting(value, wanted)
    except _Wrong as error:
        raise invalid(name, value if error.value is None else error.value, str(error)) from None


def invalid(argument: str, value: object, reason: str) -> UsageError:
    """The error of an argument."""
    shown = value if isinstance(value, str) else value.isoformat() if isinstance(value, datetime) else repr(value)
    shown = shown.encode("utf-8", "backslashreplace").decode()
    return UsageError("invalid-argument", argument=argument, value=shown[:_SHOWN], reason=reason)


def _fitting(value: Any, wanted: Any) -> Any:
    """The value, where it is what is wanted; a tuple for any number of values."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        reasons = []
        for part in parts:
            if part is type(None):
                continue
            try:
                return _fitting(value, part)
            except _Wrong as error:
                reasons.append(str(error))
        # the most exact reason: the type is right, the value is wrong
        raise _Wrong(next((reason for reason in reasons if not reason.startswith("is no ")), _not_a(wanted)))
    if origin is Literal:
        if not isinstance(value, str) or value not in parts:
            raise _Wrong(f"is none of {', '.join(parts)}")
        return value
    if origin in _MANY or origin is tuple:
        if isinstance(value, str | bytes) or not isinstance(value, collections.abc.Iterable):
            raise _Wrong(_not_a(wanted))
        return tuple(_one_of_several(one, parts[0]) for one in value)
    if origin is collections.abc.Mapping:
        if not isinstance(value, collections.abc.Mapping):
            raise _Wrong(_not_a(wanted))
        return {_fitting(key, parts[0]): _fitting(one, parts[1]) for key, one in value.items()}
    if origin is collections.abc.Callable:
        if not callable(value):
            raise _Wrong(_not_a(wanted))
        return value
    kind = origin or wanted
    if kind is float and isinstance(value, int):
        kind = int
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Wrong(_not_a(wanted))
    if isinstance(value, str):
        _check_text(value)
    if isinstance(value, os.PathLike):
        _check_text(os.fsdecode(value))
    if isinstance(value, datetime) and value.utcoffset() is None:
        raise _Wrong("has no time zone: write datetime(…, tzinfo=UTC)")
    return value


def _one_of_several(value: Any, wanted: Any) -> Any:
    try:
        return _fitting(value, wanted)
    except _Wrong as error:
        error.value = value
        raise


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _Wrong("has a NUL character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise _Wrong("has half a surrogate pair, which is no character and no byte") from None


_NAMES = {str: "text", bool: "bool", int: "int", timedelta: "timedelta", datetime: "datetime", type(None): "None"}


def _not_a(wanted: Any) -> str:
    return f"is no {_called(wanted)}"


def _called(wanted: Any) -> str:
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        *most, last = dict.fromkeys(_called(part) for part in parts)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is Literal:
        return f"{' or '.join(parts)}"
    if origin in _MANY or origin is tuple:
        return f"list of {_called(parts[0])}"
    if origin is collections.abc.Mapping:
        return f"mapping of {_called(parts[0])} to {_called(parts[1])}"
    if origin is collections.abc.Callable:
        return "function"
    kind = origin or wanted
    return "path" if kind is os.PathLike else _NAMES.get(kind, kind.__name__)


def seconds(duration: timedelta, argument: str) -> float:
    """Seconds in a duration that may be none at all.

    Raises:
        UsageError: it is negative, or more than a hundred years.
    """
    if not timedelta(0) <= duration <= _LONGEST:
        raise invalid(argument, duration, "must be between no time and a hundred years")
    return duration.total_seconds()


def until(repo: ReadRepo, end: timedelta | datetime | None, argument: str) -> str | None:
    """When a lease or trash ends, as refs say it; None for never.

    Args:
        repo: whose.
        end: how long from now on, or when.
        argument: what the caller calls it.

    Raises:
        UsageError: it is over already, or more than a hundred years away.
    """
    if end is None:
        return None
    now = datetime.now(UTC)
    left = end if isinstance(end, timedelta) else end - now
    if not timedelta(seconds=1) <= left <= _LONGEST:
        raise invalid(argument, end, "must be between a second and a hundred years from now")
    from cfs_tags.tags.rows import expiry, expiry_here

    return expiry_here(repo, left.total_seconds()) if isinstance(end, timedelta) else expiry(0, end.timestamp())


def positive(number: int | None, argument: str) -> int | None:
    """A number above 0, or None.

    Raises:
        UsageError: it is less.
    """
    if number is not None and not 0 < number < 1 << 62:
        raise invalid(argument, number, "must be above 0")
    return number
