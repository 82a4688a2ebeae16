"""Messages of errors: templates with the names of facts in braces, and functions where a template cannot say it.

How a fact is shown stands behind its name::

    {path}              as it is
    {name:quoted}       in quotes, at most 200 characters
    {found:short}       at most 200 characters
    {image:id}          the first twelve characters of an id
    {seconds:g}         a number
    {entries:entry}     how many: "1 entry", "7 entries"
    {candidates:5,}     the first five, with commas between them, and "…" where there are more
    {lost:3;}           the same, with semicolons
    {missing:3;+}       the same, and how many more there are
    {images:3id,+}      the same, each of them an id
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

SHOWN_PROBLEMS = 5
"""So many problems a message names."""

Facts = Mapping[str, Any]
Text = str | Callable[[Facts], str | None]


def render(text: Text, facts: Facts) -> str | None:
    """A message or a way out with its facts; may hold foreign text, unescaped.  None where there is nothing to say."""
    if callable(text):
        return text(facts)
    return text.format_map({name: _Fact(value) for name, value in facts.items()})


class _Fact:
    """A fact in a template, shown as the module's docstring says."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __format__(self, how: str) -> str:
        value = self._value
        if isinstance(value, tuple | list):
            return _listed(value, how)
        if how == "quoted":
            return repr(short(value))
        if how == "short":
            return short(value)
        if how == "id":
            return f"{value[:12]}…"
        if how == "entry":
            return "1 entry" if value == 1 else f"{value} entries"
        return format(value, how) if how else str(value)


def _listed(values: Any, how: str) -> str:
    """``[N][id]`` and a comma or semicolon, then ``+`` where the number of those left out is said."""
    number, separator, count_rest = how.rstrip(",;+"), f"{how.rstrip('+')[-1]} ", how.endswith("+")
    ids = number.endswith("id")
    number = number.removesuffix("id")
    shown = values[: int(number)] if number else values
    text = separator.join(f"{value[:12]}…" if ids else str(value) for value in shown)
    left = len(values) - len(shown)
    if left and count_rest:
        return f"{text}{';' if separator == '; ' else ''} and {left} more"
    return f"{text}{separator}…" if left else text or "none"


def short(text: str, limit: int = 200) -> str:
    """The beginning of a long text, with its length."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


# -- messages and ways out that depend on the facts --------------------------------------------------------------------


def unresolved(facts: Facts) -> str:
    """The message of ``unresolved-deployment``."""
    if facts["candidates"]:
        return render("deployment {deployment:id} may be of any of {candidates:,}", facts) or ""
    return f"no manifest for deployment {facts['deployment'][:12]}…: {'; '.join(facts['notes']) or 'nothing says which'}"


def sysroot_unseen(facts: Facts) -> str:
    """The message of ``sysroot-unseen``."""
    what = "images without a ref may be of deployments, and would be collected: {images:3id,+}"
    said = what if facts["images"] else "no deployment is adopted or retired"
    return render("{path} is a repository of bootc's, and its sysroot is not known: " + said, facts) or ""


def held_by(holders: Sequence[Mapping[str, Any]]) -> str:
    """Who holds a lock, in words."""
    shown = ", ".join(f"{one['command']} (PID {one['pid']}, {one['mode']})" for one in holders)
    return f"held by {shown or 'a process that the system does not show'}"


def lock_timeout(facts: Facts) -> str:
    """The message of ``lock-timeout``."""
    held = held_by(facts["holders"])
    return f"no {facts['mode']} lock on {facts['path']} within {facts['seconds']:g} s: {held}"


def malformed(facts: Facts) -> str:
    """The message of ``malformed``."""
    where = f"{facts['path']}: " if facts["path"] is not None else ""
    return where + (render("{structure} at byte {offset}: wanted {wanted}, found {found:short}", facts) or "")


def broken_roots(facts: Facts) -> str:
    """The message of ``broken-roots``."""
    problems = facts["problems"]
    shown = "; ".join(_needed(what, refs) for what, refs in problems[:SHOWN_PROBLEMS])
    left = len(problems) - SHOWN_PROBLEMS
    more = f"; and {left} more" if left > 0 else ""
    return f"refs lead to what cannot be followed: {shown}{more}"


def _needed(what: str, refs: tuple[str, ...]) -> str:
    """A problem with the refs that need it, where it does not name them itself."""
    others = [ref for ref in refs[:3] if ref not in what]
    return f"{what} (needed by {', '.join(others)})" if others else what


def what_it_has(facts: Facts) -> str | None:
    """name an image that it has; the error says which those are"""
    return render("it has: {names:10,}", facts) if facts["names"] else None


def near(facts: Facts) -> str:
    """look at the tags that there are, and at deleted ones that are kept"""
    return f"there is {', '.join(facts['near'])}" if facts["near"] else "look at the tags that there are"


def left(facts: Facts) -> str:
    """{objects} objects, {bytes} bytes, are left in the repository, and nothing names them yet"""
    one = facts["objects"] == 1
    objects = f"{facts['objects']:,} object{'' if one else 's'} ({facts['bytes']:,} bytes)"
    return f"{objects} {'is' if one else 'are'} left in the repository, and nothing names {'it' if one else 'them'} yet"


def no_entry(facts: Facts) -> str:
    """the log of {name:quoted} has {entries:entry}, none with number {number}; without a number: and no other value; where
    there is such an entry: {name:quoted} named no image then: entry {number} of its log is {action:quoted} of {time}"""
    name, entries = f"{facts['name']!r}", facts["entries"]
    many = f"{entries} {'entry' if entries == 1 else 'entries'}"
    if facts["number"] is None:
        return f"{name} is as it was: its log has {many}, and no other value"
    if facts["action"] is not None:
        return f"{name} named no image then: entry {facts['number']} of its log is {facts['action']!r} of {facts['time']}"
    return f"the log of {name} has {many}, none with number {facts['number']}"


def permission_or_room(facts: Facts) -> str | None:
    """without permission: run it as the owner, or as root; without space: make room; else mend what the system names"""
    import errno

    if facts["errno"] in (errno.EACCES, errno.EPERM):
        return "run it as the owner, or as root"
    if facts["errno"] in (errno.ENOSPC, errno.EDQUOT):
        if facts["operation"] == "store the image in":
            return "make room, and import it again: what is stored is used"
        return "make room"
    return None


def close_to_others(facts: Facts) -> str:
    """chmod o-w PATH, or g-w"""
    return f"chmod {'o-w' if facts['who'] == 'everybody' else 'g-w'} {facts['path']}"
