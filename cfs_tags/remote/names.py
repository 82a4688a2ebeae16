"""Names of repositories in registries, and how these are reached.  Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9-]{1,63}){0,20}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_NAME = re.compile(rf"(?P<host>{_HOST})/(?P<repository>{_COMPONENT}(?:/{_COMPONENT})*)", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?", re.ASCII)
_LONGEST = 255

_DOCKER_HUB = ("docker.io", "index.docker.io")
_DOCKER_HUB_API = "registry-1.docker.io"


class Place(NamedTuple):
    """A repository in a registry: ``quay.io/org/os`` is ``org/os`` at ``quay.io``."""

    registry: str
    repository: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def address(self) -> str:
        """Host and port that answer for the registry."""
        return _DOCKER_HUB_API if self.registry in _DOCKER_HUB else self.registry

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine, where clients speak HTTP without TLS."""
        return _LOOPBACK.fullmatch(self.registry) is not None


class Access(NamedTuple):
    """How registries are reached from this machine.

    Attributes:
        files: with credentials, the first counts first.
        certificates: directories with ``<registry>/*.crt``: authorities that are trusted for it besides the system's.
        proxies: the proxy by scheme; ``no`` has hosts that are reached without one.
        plain: HTTP without TLS, also for registries that are not on this machine.
    """

    files: Sequence[str] = ()
    certificates: Sequence[str] = ()
    proxies: Mapping[str, str] = {}
    plain: bool = False


def parse_place(text: str) -> Place:
    """A repository as people write it, with or without ``docker://``.

    Raises:
        UsageError: it names no registry, or is no name of a repository.
    """
    found = _NAME.fullmatch(text.removeprefix("docker://"))
    if found is None or not _is_registry(found["host"]) or len(found["repository"]) > _LONGEST:
        reason = "is no repository of a registry: write quay.io/org/os, without a tag"
        raise UsageError("invalid-argument", argument="place", value=text[:_LONGEST], reason=reason)
    return Place(found["host"], found["repository"])


def place_of(image: str) -> Place | None:
    """The repository of an image reference (``quay.io/org/os:41``); None where it names no registry."""
    plain = image.removeprefix("docker://").partition("@")[0]
    above, slash, last = plain.rpartition("/")
    try:
        return parse_place(f"{above}{slash}{last.partition(':')[0]}")
    except UsageError:
        return None


def is_repository(text: str) -> bool:
    """Whether text may be the name of a repository in a registry."""
    return len(text) <= _LONGEST and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether text may be a tag in a registry (distribution-spec 1.1)."""
    return _TAG.fullmatch(text) is not None


def _is_registry(host: str) -> bool:
    """Whether what stands before the first slash is a host: else Docker reads it as a part of a repository of its own."""
    return "." in host or ":" in host or host == "localhost"
