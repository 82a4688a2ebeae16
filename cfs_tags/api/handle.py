"""A repository as a program opened it: what its parts (tags, deployments, collection, policy) know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from cfs_tags.errors import RefusedError
from cfs_tags.repo.store import ReadRepo

if TYPE_CHECKING:
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.repo.transaction.change import Note
    from cfs_tags.values import DeploymentId


STATE = "/var/lib/cfs-tags"
"""Where this machine remembers what it has published."""


class Places(NamedTuple):
    """Where a host has what it boots from; None: where it is by rule, ``none``: nowhere.

    Attributes:
        sysroot: the physical root; by rule the directory above the repository, where ``state/deploy`` is there.
        boot: the boot directory.
        esp: where the EFI system partition is mounted.
        run: the system's ``/run``.
        booted: the booted deployment of another system, by its id or the start of one.
    """

    sysroot: str | None = None
    boot: str | None = None
    esp: str | None = None
    run: str | None = None
    booted: str | None = None


class Handle(ReadRepo):
    """A repository, and where its host has what it boots from.

    Attributes:
        places: of the host.
    """

    places = Places()

    def writable(self) -> WriteRepo:
        """This, to be changed.

        Raises:
            RefusedError (read-only-repository): it was opened for reading.
        """
        raise RefusedError("read-only-repository", path=self.path, reason="it was opened for reading alone")

    @staticmethod
    def note(reason: str | None, by: str | None) -> Note:
        """Reason and author, as the log records them."""
        from cfs_tags.repo.transaction.change import Note

        return Note(reason, by)


class Host(Protocol):
    """What other parts ask of the deployments of a host, see :class:`cfs_tags.api.deployments.Deployments`."""

    @property
    def are_seen(self) -> bool: ...  # noqa: D102

    def view(self) -> SysrootView: ...  # noqa: D102

    def in_state(self, state: str) -> tuple[DeploymentId, str]: ...  # noqa: D102
