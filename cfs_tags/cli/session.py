"""What the words before the command and the environment say: the repository and how it is opened, the user, the machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from cfs_tags.cli import output
from cfs_tags.errors import RepositoryNotFound, UsageError
from cfs_tags.formats.boot.paths import REPOSITORY, SYSROOT
from cfs_tags.repo import layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cfs_tags import Repository, WriteRepository
    from cfs_tags.apps.workdir import Machine
    from cfs_tags.repo.transaction.change import Note

_SYSTEM = f"{SYSROOT}/{REPOSITORY}"


class Session(NamedTuple):
    """Where the commands work.

    ``path`` is the repository's; ``sysroot`` is set where the physical root was named, and not the repository; ``options`` are
    those that said so, for commands that are proposed.
    """

    path: str
    sysroot: str | None = None
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, *, repo: str | None, sysroot: str | None, user: bool, system: bool) -> Session:
        """From the options of the group and, where there is none, the environment.

        Raises:
            UsageError: more than one was given.
        """
        options = (("--repo", repo), ("--sysroot", sysroot), ("--user", user or None), ("--system", system or None))
        given = [name for name, value in options if value is not None]
        if len(given) > 1:
            raise UsageError("command-line", command="cfs-tag", text=f"{' and '.join(given)} exclude each other")
        words = tuple(word for name, value in options if value for word in ((name,) if value is True else (name, str(value))))
        if not given:
            # the more exact of the two wins, so that a session that has both behaves the same everywhere
            repo = os.environ.get("CFS_TAG_REPO") or None
            sysroot = None if repo is not None else os.environ.get("CFS_TAG_SYSROOT") or None
        if repo is not None:
            return cls(repo, options=words)
        if sysroot is not None:
            return cls(os.path.join(sysroot, REPOSITORY), sysroot, words)
        if system or (not user and os.geteuid() == 0):
            return cls(_SYSTEM, options=words)
        return cls(os.path.join(os.path.expanduser("~"), ".var/lib/composefs"), options=words)

    @overload
    def open(self, places: Iterable[str | None] = (), *, write: Literal[False] = False) -> Repository: ...
    @overload
    def open(self, places: Iterable[str | None] = (), *, write: Literal[True], dry_run: bool = False) -> WriteRepository: ...
    def open(self, places: Iterable[str | None] = (), *, write: bool = False, dry_run: bool = False) -> Repository:
        """Open the repository; see :meth:`cfs_tags.Repository.open`.  Root becomes its owner first (``owner.py``).

        Args:
            places: of the host, as :class:`cfs_tags.cli.sysroots.Places` has them.
            write: whether it is to be changed.
            dry_run: reading is enough: what the system would refuse the run is a warning.
        """
        from cfs_tags import Repository, WriteRepository
        from cfs_tags.api.handle import Places
        from cfs_tags.cli import owner

        fd = owner.opened(self.path, output.note)
        where = Places(self.sysroot, *places)
        try:
            if not write:
                return Repository.open(self.path, fd=fd, **where._asdict())
            if dry_run:
                repo = WriteRepository(self.path, fd, dry_run=True)
                repo.places = where
                output.watch([] if repo.hindrance is None else [repo.hindrance])
                return repo
            repo = Repository.open(self.path, write=True, fd=fd, **where._asdict())
        except RepositoryNotFound as error:
            if os.path.isdir(os.path.join(self.path, REPOSITORY, layout.OBJECTS)):
                error.reason = "it is the root of a system, which --sysroot names; the repository is composefs/ in it"
            raise
        output.watch(repo.recovered)
        return repo


def note(reason: str | None) -> Note:
    """The note for the reflog: the reason, and the name of the user."""
    import pwd

    from cfs_tags.repo.transaction.change import Note

    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    caller = os.environ.get("SUDO_USER")
    if caller and caller != name:
        name = f"{caller} as {name}"
    return Note(reason, f"{name} (cfs-tag)")


def machine() -> Machine:
    """From ``PATH`` and ``TMPDIR``; temporary files go to ``/var/tmp``, because images are large."""
    from cfs_tags.apps.workdir import Machine

    temporary = os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else "/tmp")
    return Machine(temporary, _program("skopeo"), _program("cfsctl"))


def bootc() -> str:
    """The path of bootc.

    Raises:
        CfsTagsError (program-missing): it is not installed.
    """
    from cfs_tags.errors import CfsTagsError

    found = _program("bootc")
    if found is None:
        raise CfsTagsError("program-missing", program="bootc", purpose="to deploy the image")
    return found


def _program(name: str) -> str | None:
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
