"""The text of a policy: rules that say which tags stay.

A policy is TOML (``docs/policy.md``).  Everything here is pure, and strict: a key that is not known is an error, because a word
that is misspelt would drop what it should keep.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from fnmatch import translate
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from cfs_tags.errors import UsageError
from cfs_tags.policy.retention import ALL, Counts
from cfs_tags.values import LONGEST, duration

_MOST_RULES = 1000
_MOST_PARTS = 20
"""Of a key with dots: what tomllib does with one grows with their square."""
_NO_KEYS = re.compile(r"""\"(?:[^"\\\n]|\\.)*+(?:"|\\?$)|'[^'\n]*(?:'|$)|\#[^\n]*""", re.MULTILINE)
"""Texts and comments of TOML, to the end of their line."""
_WEEK = 7 * 86400
_COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_KEYS = frozenset(("tags", "keep-tags", "keep-within", "keep-good", "group-by", "time", *(f"keep-{name}" for name in _COUNTS)))
_GROUPS = ("repository", "rule")
"""What a rule counts in: the tags of each repository (a name up to the last ``:``), or all that the rule fits."""
_TIMES = ("created", "logged")
"""Whose time counts: the image's creation, or the last move of the tag."""


class Rule(NamedTuple):
    """One rule.

    Attributes:
        source: the file that has it.
        number: which one of the file it is, from 1.
        tags: patterns of names; the rule is for tags that fit one of them.
        counts: what stays.
        keep_tags: patterns of names that stay whatever their time is.
        group_by: ``repository`` or ``rule``.
        time: ``created`` or ``logged``.
        good: of how many images that were booted successfully the tags stay, those that were so last; :data:`ALL` for each.
    """

    source: str
    number: int
    tags: tuple[str, ...]
    counts: Counts
    keep_tags: tuple[str, ...] = ()
    group_by: str = "repository"
    time: str = "created"
    good: int = 0

    def __str__(self) -> str:
        return f"rule {self.number} of {self.source}"

    def group(self, name: str) -> str:
        """What a tag is counted with."""
        return (name.rpartition(":")[0] or name) if self.group_by == "repository" else str(self)


class Policy:
    """Rules, in the order in which they are tried.

    Attributes:
        rules: the first one that fits a tag is the tag's.
        keep_for: seconds that a tag which is deleted stays in the trash; None: nothing is said of it.
        keep_log: seconds that an entry of the log stays; likewise.
    """

    def __init__(self, rules: Iterable[Rule] = (), keep_for: int | None = None, keep_log: int | None = None) -> None:
        self.rules = tuple(rules)
        self.keep_for = keep_for
        self.keep_log = keep_log

    @property
    def kept_by_policy(self) -> int:
        """Seconds that a tag which no rule keeps stays in the trash: a week where nothing is said."""
        return _WEEK if self.keep_for is None else self.keep_for

    @property
    def kept_by_delete(self) -> int:
        """Seconds that a tag which somebody deletes stays there: none where nothing is said."""
        return self.keep_for or 0

    @cached_property
    def _patterns(self) -> list[tuple[Rule, re.Pattern[str]]]:
        return [(rule, _one_of(rule.tags)) for rule in self.rules]

    def rule_of(self, name: str) -> Rule | None:
        """The first rule that fits a tag, or None."""
        return next((rule for rule, pattern in self._patterns if pattern.match(name)), None)

    def before(self, other: Policy) -> Policy:
        """Both: these rules are tried first, and these times hold, where there are some."""
        keep_for = other.keep_for if self.keep_for is None else self.keep_for
        return Policy((*self.rules, *other.rules), keep_for, other.keep_log if self.keep_log is None else self.keep_log)


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of some patterns."""
    return _one_of(tuple(patterns)).match(name) is not None


def parse(text: bytes, source: str) -> Policy:
    """Read a policy.

    Args:
        text: of the file.
        source: its path, for messages.

    Raises:
        UsageError: ``invalid-policy``.
    """
    try:
        decoded = text.decode()
        if any(line.count(".") > _MOST_PARTS for line in _NO_KEYS.sub("", decoded).split("\n")):
            raise _wrong(source, f"a key has more than {_MOST_PARTS} parts")
        document = tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or a number of too many digits
        raise _wrong(source, f"it is no TOML: {error}") from None
    _known(document, {"rule", "trash", "log"}, source, "the file")
    log = _table(document.get("log", {}), source, "log")
    _known(log, {"keep-for"}, source, "log")
    keep_log = _duration(log["keep-for"], source, "log.keep-for") if "keep-for" in log else None
    trash = _table(document.get("trash", {}), source, "trash")
    _known(trash, {"keep-for"}, source, "trash")
    rules = document.get("rule", [])
    if not isinstance(rules, list) or len(rules) > _MOST_RULES:
        raise _wrong(source, f"rules are written as [[rule]], at most {_MOST_RULES} of them")
    keep_for = _keep_for(trash["keep-for"], source) if "keep-for" in trash else None
    return Policy((_rule(table, source, number) for number, table in enumerate(rules, 1)), keep_for, keep_log)


def _rule(table: object, source: str, number: int) -> Rule:
    where = f"rule {number}"
    fields = _table(table, source, where)
    _known(fields, _KEYS, source, where)
    if "tags" not in fields:
        raise _wrong(source, f'{where} does not say for which tags it is: tags = ["quay.io/org/app:*"]')
    within = fields.get("keep-within")
    counts = Counts(
        **{name: _count(fields.get(f"keep-{name}", 0), source, f"{where}: keep-{name}") for name in _COUNTS},
        within=None if within is None else timedelta(seconds=_duration(within, source, f"{where}: keep-within")),
    )
    keep_tags = _patterns(fields.get("keep-tags", []), source, f"{where}: keep-tags")
    good = _count(fields.get("keep-good", 0), source, f"{where}: keep-good")
    if counts.says_nothing and not keep_tags and not good:
        raise _wrong(source, f"{where} keeps nothing: it needs a keep-last, keep-daily, keep-within, or another")
    group_by = _word(fields.get("group-by", _GROUPS[0]), _GROUPS, source, f"{where}: group-by")
    time = _word(fields.get("time", _TIMES[0]), _TIMES, source, f"{where}: time")
    tags = _patterns(fields["tags"], source, f"{where}: tags")
    if not tags:
        raise _wrong(source, f"{where}: tags is empty")
    return Rule(source, number, tags, counts, keep_tags, group_by, time, good)


@lru_cache(2 * _MOST_RULES)
def _one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in patterns) or r"(?!)")


def _table(value: object, source: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(source, f"{where} is no table")
    return value


def _known(table: dict[str, Any], keys: Iterable[str], source: str, where: str) -> None:
    for key in table:
        if key not in keys:
            raise _wrong(source, f"{where} has {key!r}, which is not known; known are {', '.join(sorted(keys))}")


def _count(value: object, source: str, where: str) -> int:
    if value == "all":
        return ALL
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(source, f'{where} is no count: write a number from 0, or "all"')
    return value


def _keep_for(value: object, source: str) -> int:
    return 0 if value in ("0", 0) and not isinstance(value, bool) else _duration(value, source, "trash.keep-for")


def _duration(value: object, source: str, where: str) -> int:
    found = duration(value) if isinstance(value, str) else None
    if found is None or not 0 < found <= LONGEST:
        raise _wrong(source, f'{where} is no duration of up to a hundred years: write "30d", "12h", "2w"')
    return found


def _word(value: object, words: Sequence[str], source: str, where: str) -> str:
    if value not in words:
        raise _wrong(source, f"{where} is none of {', '.join(words)}")
    return str(value)


def _patterns(value: object, source: str, where: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) and 0 < len(each) <= 255 for each in found):
        raise _wrong(source, f"{where} is no list of patterns of at most 255 characters")
    return tuple(found)


def _wrong(source: str, reason: str) -> UsageError:
    return UsageError("invalid-policy", path=source, reason=reason)
