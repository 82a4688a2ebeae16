"""Whose a repository is, and who can change it besides its owner: what is refused before anything is written.

Who can write a directory can put something else in the place of everything in it, at any moment.  Paths that follow no
link (``beneath.py``) keep that from reaching anything outside; whether what is inside is still what it was is decided here:

==============================================  ===============  ==================================================
directory                                       root             other users
==============================================  ===============  ==================================================
the repository belongs to another user          refused          as the permissions of the system allow
a directory in it belongs to another user       not written      as the permissions of the system allow
everybody can write it                          not written      not written
its group can write it                          not written      written; ``fsck`` says so
==============================================  ===============  ==================================================

One look, when a repository is opened for writing, is enough: where neither everybody nor a group can write a directory,
only its owner can change that, and the owner is the user who is at work here, or, for another user than root, may do
with the repository what they like.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from cfs_tags.errors import CfsTagsError, RefusedError
from cfs_tags.repo import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfs_tags.repo.directory import Directory

_DIRECTORIES = (
    ".",
    layout.OBJECTS,
    layout.STREAMS,
    layout.IMAGES,
    layout.STREAM_REFS,
    layout.IMAGE_REFS,
    layout.SHARED_TAGS,
    layout.OUR_REFS,
    layout.OUR_IMAGE_REFS,
    layout.STATE,
)
_SMALL = (layout.OUR_REFS, layout.OUR_IMAGE_REFS, layout.STATE)
"""Directories with few names, which are of directories mostly."""
_DEEP = (layout.STREAM_REFS, layout.IMAGE_REFS, layout.STATE)


def refuse_foreign(directory: os.stat_result, path: str) -> None:
    """Refuse root where a directory belongs to another user.

    Raises:
        RefusedError: code ``foreign-owner``.
    """
    if directory.st_uid != 0 and os.geteuid() == 0:
        raise RefusedError("foreign-owner", path=path, owner=directory.st_uid)


def refuse_strangers(directory: os.stat_result, path: str) -> None:
    """Refuse to write where others than this user can replace what is written.

    Raises:
        RefusedError: code ``foreign-owner`` or ``open-to-others``.
    """
    refuse_foreign(directory, path)
    who = openness(directory)
    if who is not None and (who == "everybody" or os.geteuid() == 0):
        raise RefusedError("open-to-others", path=path, who=who)


def directories(repo: Directory, *, deep: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """The directories that changes are made in, their paths in the repository and what the system says of them.

    Args:
        repo: where.
        deep: also those below the directories of refs and of our state that have their names from tags and times.  Else these
            are left out: :meth:`~cfs_tags.repo.store.WriteRepo.make_directories` looks at them on the way to a change.
    """
    pending = [*_DIRECTORIES]
    if deep:
        pending += _DEEP
    for path in pending:  # which grows meanwhile
        try:
            found = repo.status(path)
        except OSError:
            continue  # the function that needs it says what is there instead
        if not stat.S_ISDIR(found.st_mode):
            continue
        yield path, found
        if path == layout.OBJECTS:
            yield from _directories_of_objects(repo)
        if path in _SMALL or (deep and path.startswith(_DEEP)):
            with suppress(CfsTagsError):
                pending += [f"{path}/{name}" for name in repo.names(path) or ()]


def _directories_of_objects(repo: Directory) -> Iterator[tuple[str, os.stat_result]]:
    try:
        fd = repo.directory(layout.OBJECTS)
    except CfsTagsError:
        return  # the function that needs it says what is there instead
    if fd is None:
        return
    try:
        with repo.reading(layout.OBJECTS):
            names = os.listdir(fd)
        for name in names:
            path = f"{layout.OBJECTS}/{name}"
            if len(name) == 2:
                with repo.reading(path), suppress(FileNotFoundError):
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        yield path, found
    finally:
        os.close(fd)


def openness(directory: os.stat_result) -> str | None:
    """Who else can write a directory: ``everybody``, ``group N``, or None."""
    if directory.st_mode & stat.S_IWOTH:
        return "everybody"
    return f"group {directory.st_gid}" if directory.st_mode & stat.S_IWGRP else None
