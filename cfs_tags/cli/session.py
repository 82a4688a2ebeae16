"""What the words before the command say: where the repository is, and how it is opened."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from cfs_tags.errors import CommandLineError, RepositoryNotFound

if TYPE_CHECKING:
    from cfs_tags.repo.refs import Note
    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = ["Session", "note"]

_SYSTEM = "/sysroot/composefs"


class Session(NamedTuple):
    """Where the commands work.

    ``path`` is the repository's; ``sysroot`` is set where the physical root was named, and not the repository.
    """

    path: str
    sysroot: str | None = None

    @classmethod
    def of(cls, *, repo: str | None, sysroot: str | None, user: bool, system: bool) -> Session:
        """From the options of the group and, where there is none, the environment.

        Raises:
            CommandLineError: more than one was given.
        """
        options = (("--repo", repo), ("--sysroot", sysroot), ("--user", user or None), ("--system", system or None))
        given = [name for name, value in options if value is not None]
        if len(given) > 1:
            raise CommandLineError(command="cfs-tag", text=f"{' and '.join(given)} exclude each other")
        if not given:
            # the more exact of the two wins, so that a session that has both behaves the same everywhere
            repo = os.environ.get("CFS_TAG_REPO") or None
            sysroot = None if repo is not None else os.environ.get("CFS_TAG_SYSROOT") or None
        if repo is not None:
            return cls(repo)
        if sysroot is not None:
            return cls(os.path.join(sysroot, "composefs"), sysroot)
        if system or (not user and os.geteuid() == 0):
            return cls(_SYSTEM)
        return cls(os.path.join(os.path.expanduser("~"), ".var/lib/composefs"))

    @overload
    def open(self, *, write: Literal[False] = False) -> ReadRepo: ...
    @overload
    def open(self, *, write: Literal[True]) -> WriteRepo: ...
    def open(self, *, write: bool = False) -> ReadRepo:
        """Open the repository; see :meth:`cfs_tags.Repository.open`."""
        from cfs_tags.repo.store import Repository

        try:
            return Repository.open(self.path, write=True) if write else Repository.open(self.path)
        except RepositoryNotFound as error:
            if os.path.isdir(os.path.join(self.path, "composefs/objects")):
                error.reason = "it is the root of a system, which --sysroot names; the repository is composefs/ in it"
            raise


def note(reason: str | None) -> Note:
    """What the reflog is told: the user's reason, and who the user is."""
    import pwd

    from cfs_tags.repo.refs import Note

    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    caller = os.environ.get("SUDO_USER")
    if caller and caller != name:
        name = f"{caller} as {name}"
    return Note(reason, f"{name} (cfs-tag)")
