"""Hosts and their registry, as :meth:`cfs_tags.Repository.publish` and :class:`Fleet` have them."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

from cfs_tags.api.arguments import WAIT, checked, seconds
from cfs_tags.errors import CfsTagsError, NotFoundError, UsageError, installed
from cfs_tags.fleet import hosts
from cfs_tags.remote.names import parse_place
from cfs_tags.values import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from cfs_tags.api.deployments import Deployments
    from cfs_tags.api.handle import Handle
    from cfs_tags.fleet.memory import Memory
    from cfs_tags.fleet.publish import Published, Row
    from cfs_tags.fleet.view import Fleet
    from cfs_tags.fleet.what_if import Answer
    from cfs_tags.remote.client import Client
    from cfs_tags.remote.credentials import Challenge
    from cfs_tags.remote.names import Access, Place
    from cfs_tags.values import Digest

_MACHINE_ID = "/etc/machine-id"


def _name_of_host(name: str | None) -> str:
    """The name that was given, or that of the machine-id.

    Raises:
        UsageError: it is no name; there is no machine-id that makes one.
    """
    if name is not None:
        return hosts.parse_host(name)
    try:
        with open(_MACHINE_ID, encoding="ascii") as file:
            found = hosts.host_of_machine(file.read(100))
    except (OSError, ValueError):
        found = None
    if found is None:
        reason = f"is needed: {_MACHINE_ID} gives none"
        raise UsageError("invalid-argument", argument="name", value="", reason=reason)
    return found


def _connect(place: Place, access: Access, challenge: Challenge | None = None, *, command: str = "publish") -> Client:
    """A client for a registry.

    Raises:
        CfsTagsError (missing-extra): the package that it needs is not installed.
    """
    with installed("urllib3", extra="fleet", command=command):
        from cfs_tags.remote.client import Client
    return Client(place, access, challenge)


def publish(
    repo: Handle,
    deployments: Deployments,
    place: str,
    access: Access,
    *,
    name: str | None,
    refresh: timedelta,
    restore: bool,
    state: str,
    timeout: timedelta,
    dry_run: bool,
    progress: Callable[[int], None] | None = None,
) -> Published:
    """What :meth:`cfs_tags.Repository.publish` does, for any places of the host."""
    from cfs_tags.fleet import facts
    from cfs_tags.fleet import publish as publishing
    from cfs_tags.fleet.memory import Memory
    from cfs_tags.repo import images

    where, host_name = parse_place(place), _name_of_host(name)
    wait, often = seconds(timeout, "timeout"), seconds(refresh, "refresh")
    memory = Memory(state, f"publish {where} as {host_name}", publishing.MAX_MEMORY)
    host, problems = facts.read(repo, deployments.view(), host_name, f"cfs-tag {VERSION}")
    warnings = tuple(CfsTagsError("use-unknown", host=host_name, reason=problem) for problem in problems)

    def raw(digest: Digest) -> bytes | None:
        try:
            return images.raw_manifest(repo, digest)
        except (NotFoundError, CfsTagsError):
            return None

    if dry_run:
        known = publishing.Remembered.of(memory)
        with closing(_connect(where, access, known.challenge)) as client:
            made = publishing.plan(client, where, host, known, refresh=often)
        return publishing.Published(made, (), None, (*warnings, *made.warnings))
    with memory.held(wait):
        known = publishing.Remembered.of(memory)
        with closing(_connect(where, access, known.challenge)) as client:

            def put_back(digest: Digest) -> bytes:
                from cfs_tags.fleet.restore import restore as push

                return push(repo, client, digest, where.repository, timeout=wait, progress=progress)

            made = publishing.plan(client, where, host, known, refresh=often)
            done = publishing.publish(client, made, memory, known, raw, put_back if restore else None)
    return done._replace(warnings=(*warnings, *done.warnings))


def retract(place: str, access: Access, *, name: str | None, state: str, timeout: timedelta, dry_run: bool) -> tuple[Row, ...]:
    """What :meth:`cfs_tags.Repository.retract` does."""
    from cfs_tags.fleet import publish as publishing
    from cfs_tags.fleet.memory import Memory

    where, host_name = parse_place(place), _name_of_host(name)
    memory = Memory(state, f"publish {where} as {host_name}", publishing.MAX_MEMORY)
    with memory.held(seconds(timeout, "timeout")):
        known = publishing.Remembered.of(memory)
        with closing(_connect(where, access, known.challenge)) as client:
            return publishing.retract(client, where, host_name, memory, known, dry_run=dry_run)


class Fleets:
    """The hosts that publish to a repository of a registry: a context manager, or to be closed.

    Args:
        place: ``registry/repository``.
        access: how it is reached; None: without credentials.
        cache: a directory where what was read is kept; None: nothing is.
        timeout: how long another process that uses the cache is waited for.

    Raises:
        UsageError: it is no repository of a registry.
    """

    def __init__(
        self, place: str, access: Access | None = None, *, cache: str | None = None, timeout: timedelta = WAIT
    ) -> None:
        from cfs_tags.remote.names import Access

        self._place = parse_place(place)
        self._client = _connect(self._place, access or Access(), command="fleet")
        self._cache = cache
        self._timeout = seconds(timeout, "timeout")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    @checked
    def read(self, *, wanted: str | None = None, unseen: timedelta = timedelta(days=7)) -> Fleet:
        """Every host, and what is wrong with it.

        Args:
            wanted: what all are to have booted, by tag or digest.
            unseen: after which time a host that says nothing is ``not-seen``.

        Raises:
            TargetNotFound: the registry has no such tag.
            CfsTagsError: it does not answer.
        """
        from cfs_tags.fleet import view
        from cfs_tags.fleet.memory import Memory

        limit = seconds(unseen, "unseen")

        def look(cache: Memory | None) -> Fleet:
            return view.read(self._client, self._place, cache, wanted=wanted, unseen=limit)

        if self._cache is None:
            return look(None)
        memory = Memory(self._cache, f"fleet {self._place}", view.MAX_CACHED)
        with memory.held(self._timeout):
            return look(memory)

    def what_if(self, fleet: Fleet, reference: str) -> Answer:
        """Who uses an image, by tag or digest, and what each host would fetch to have it.

        Raises:
            TargetNotFound: the registry does not have it.
            CfsTagsError: it does not answer.
        """
        from cfs_tags.fleet.what_if import what_if

        return what_if(self._client, fleet, reference)
