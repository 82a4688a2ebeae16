"""Leases and trash whose time is over, and indexes whose tag is gone."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import tags
from cfs_tags.errors import SystemFailure
from cfs_tags.formats import layout
from cfs_tags.repo import fsops, refs
from cfs_tags.repo.refs import Note, RefChange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = ["Changes", "expire", "expire_unlogged", "plan_expiry", "with_indexes"]


class Changes(NamedTuple):
    """Changes of refs, as a plan."""

    changes: tuple[RefChange, ...]


def plan_expiry(repo: ReadRepo, now: float | None = None) -> Iterator[RefChange]:
    """Removal of leases and trash whose time is over."""
    moment = tags.moment(now)
    for top in (layout.LEASES, layout.TRASH):
        for path, link in refs.walk(repo, top):
            directory, _, name = path[len(top) + 1 :].partition("/")
            expires = layout.expiry_of(directory)
            if expires is not None and name and "/" not in name and link is not None and expires <= moment:
                yield RefChange(path, link, None, "expire")


def with_indexes(repo: ReadRepo, expired: tuple[RefChange, ...]) -> tuple[RefChange, ...]:
    """Expiry, and removal of indexes that were kept for tags that are gone, or will be."""
    alone = tags.orphaned_indexes(repo, {change.path for change in expired})
    return (*expired, *(RefChange(path, link, None, "expire") for path, link in alone))


def expire(repo: WriteRepo, note: Note, timeout: float) -> tuple[RefChange, ...]:
    """Remove leases and trash whose time is over, and the directories that they leave."""

    def planned() -> Changes:
        _clear_directories(repo)
        return Changes(with_indexes(repo, tuple(plan_expiry(repo))))

    made, _ = refs.transact(repo, planned, note, timeout)
    if made.changes:
        refs.transact(repo, planned, note, timeout)
    return made.changes


def _clear_directories(repo: WriteRepo) -> None:
    """Remove directories of leases and trash whose time is over and that are empty; the refs lock is held."""
    moment = tags.moment()
    for top in (layout.LEASES, layout.TRASH):
        for name in repo.names(top) or ():
            expires = layout.expiry_of(name)
            if expires is not None and expires <= moment:
                with suppress(OSError):  # not empty, most often
                    fsops.remove_directory(repo.fd, f"{top}/{name}")


def expire_unlogged(repo: WriteRepo) -> Iterator[RefChange]:
    """The same without a journal and a log, for which there is no room: a path that has run out is never used again."""
    for change in list(plan_expiry(repo)):
        try:
            fsops.remove(repo.fd, change.path)
            fsops.sync(repo.fd, change.path.rpartition("/")[0])
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SystemFailure.of(error, "delete", os.path.join(repo.path, change.path)) from error
        yield change
