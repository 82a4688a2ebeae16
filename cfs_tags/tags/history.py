"""The history of a tag: what the log says of its name, in whichever home it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import NotFoundError, TagNotFound
from cfs_tags.repo import clock, layout, reflog, refs
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags.rows import Tag, file_name, find, link_at
from cfs_tags.values import ContentId, Digest, instant_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class LogLine(NamedTuple):
    """One entry of a tag's history.  ``number`` counts back from 0, the newest: the N of ``NAME@{N}``."""

    number: int
    name: str
    entry: reflog.Entry
    old: str | None
    new: str | None

    @property
    def when(self) -> datetime | None:
        """When it was done, or found."""
        return instant_of(self.entry.time)


def log(repo: ReadRepo, name: str) -> list[LogLine]:
    """The history of a tag, newest first, completed with what others did since the last record.

    Raises:
        TagNotFound: there is no such tag, and never was.
    """
    lines = _history(repo, name)
    if not lines:
        raise TagNotFound(name=name)
    return lines


def logged_digest(repo: ReadRepo, name: str, which: int | float) -> Digest:
    """The value that a tag had after an entry of its log, or at a time.

    Args:
        repo: where.
        name: of the tag.
        which: a whole number: of an entry, 0 being the newest; a fraction: seconds since 1970.

    Raises:
        TagNotFound: no such tag, ever.
        NotFoundError: no such entry, the log begins later than that (before-the-log), or the tag was absent then, or led to
            something that is no manifest.
    """
    lines = _history(repo, name)
    if not lines:
        raise TagNotFound(name=name)
    if isinstance(which, float):
        moment = reflog.timestamp(min(max(which, 0.0), clock.LATEST))  # later years have more digits than entries
        # in the order of writing, whatever the clock said in between
        number = next((line.number for line in lines if line.entry.time <= moment), None)
        if number is None:
            raise NotFoundError("before-the-log", name=name, time=moment, begins=lines[-1].entry.time)
    else:
        number = which
    entry = lines[number].entry if number < len(lines) else None
    digest = _logged(lines[number]) if entry is not None else None
    if digest is None:
        action, time = (entry.action, entry.time) if entry is not None else (None, None)
        raise NotFoundError("reflog-entry-not-found", name=name, number=number, entries=len(lines), action=action, time=time)
    return digest


def previous_digest(repo: ReadRepo, name: str, current: Tag | None) -> Digest:
    """The newest value in a tag's log that differs from the present one.  Raises as :func:`logged_digest`."""
    now = current.value if current is not None else None
    lines = _history(repo, name)
    if not lines:
        raise TagNotFound(name=name)
    for line in lines:
        digest = _logged(line)
        if digest is not None and digest != now:
            return digest
    raise NotFoundError("reflog-entry-not-found", name=name, number=None, entries=len(lines), action=None, time=None)


@refs.at_once
def _history(repo: ReadRepo, name: str) -> list[LogLine]:
    # in the middle of a transaction the refs are ahead of the log
    component, tag = None, None
    if name.startswith("@deployment/"):
        paths = [f"{layout.DEPLOYMENTS}/{name.partition('/')[2]}"]
    elif name.startswith("@pin/"):
        paths = _dated(repo, layout.PINS, file_name(name.partition("/")[2]), ())
    else:
        component, tag = file_name(name), find(repo, name)
        paths = [f"{top}/{component}" for top in (layout.SHARED_TAGS, layout.PRIVATE_TAGS)] if component else []
    if tag is not None and tag.path not in paths:
        paths.append(tag.path)
    now = reflog.timestamp()
    found = [_completed(repo, path, now) for path in paths]
    is_lease = tag.home == "lease" if tag is not None else not any(reflog.last_value(repo, path) for path in paths)
    if component and (is_lease or _came_from_elsewhere([entry for entries in found for entry in entries])):
        found += [_completed(repo, path, now) for path in _dated(repo, layout.LEASES, component, paths)]
    entries = reversed(_one_home(reflog.arranged(repo, found)))
    return [
        LogLine(number, name, entry, _digest_text(entry.old), _digest_text(entry.new)) for number, entry in enumerate(entries)
    ]


def _completed(repo: ReadRepo, path: str, now: str) -> tuple[reflog.Entry, ...]:
    return reflog.with_found(reflog.history(repo, path).entries, path, link_at(repo, path), now)


def _came_from_elsewhere(entries: list[reflog.Entry]) -> bool:
    """Whether the tag was moved to one of these homes from one that is not among them."""
    left = {entry.transaction for entry in entries if entry.new is None}
    return any(entry.action == "move" and entry.old is None and entry.transaction not in left for entry in entries)


def _dated(repo: ReadRepo, top: str, component: str | None, known: Sequence[str]) -> list[str]:
    """Where leases or pins of that file name once stood."""
    if component is None:
        return []
    ends = f"/{component}"
    paths = {entry.ref for entry in reflog.all_entries(repo).entries}
    return sorted(path for path in paths if path.startswith(f"{top}/") and path.endswith(ends) and path not in known)


def _one_home(entries: list[reflog.Entry]) -> list[reflog.Entry]:
    """A move between homes as one entry: what was made in one and removed from another in the same transaction."""
    made: dict[str, reflog.Entry] = {}
    left: dict[str, reflog.Entry] = {}
    for entry in entries:
        if entry.action != reflog.FOUND:
            (left if entry.new is None else made)[entry.transaction] = entry
    result = []
    pending: set[str] = set()
    for entry in entries:
        transaction = entry.transaction
        if entry.action == reflog.FOUND or transaction not in made or transaction not in left:
            result.append(entry)
        elif transaction not in pending:
            pending.add(transaction)  # where the other half stands, the move was done
        else:
            both = made[transaction]
            result.append(both._replace(old=both.old or left[transaction].old))
    return result


def _digest_text(link: str | None) -> str | None:
    return None if link is None else layout.named_by(link)


def _logged(line: LogLine) -> Digest | None:
    return ContentId(f"{ContentId.MANIFEST}{line.new}").manifest_digest
