"""What was seen of a sysroot: deployments with the places that have them, places that were not read, and what is odd."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError
from cfs_tags.formats.boot.cmdline import mentioned_ids
from cfs_tags.values import Algorithm, DeploymentId

BOOTING = frozenset({"boot-entry", "staged-entry", "uki", "aboot"})
"""Places whose deployments a boot loader can start."""


class Place(NamedTuple):
    """Somewhere deployments are seen.  ``reason`` says why it was not read, None where it was."""

    name: str
    path: str
    reason: str | None = None


class Entry(NamedTuple):
    """A boot entry: where it stands, which deployment it boots, and what is wrong with it."""

    path: str
    kind: str
    staged: bool
    deployment: DeploymentId | None
    title: str | None = None
    version: str | None = None
    problem: str | None = None
    ambiguous: bool = False


class Finding(NamedTuple):
    """A fault: a stable code, a description, what to do about it."""

    code: str
    message: str
    advice: str


class Sightings:
    """Collected while a sysroot is read.

    Attributes:
        algorithm: of the repository; ids of the other one are another writing of the same image, or another system's.
        known: deployments that the repository has something of.
        deployments: each with the names of the places that have it.
        places: all that were tried.
        findings: what is odd.
    """

    def __init__(self, algorithm: Algorithm, known: Collection[DeploymentId] = ()) -> None:
        self.algorithm = algorithm
        self.known = known
        self.deployments: dict[DeploymentId, set[str]] = {}
        self.places: list[Place] = []
        self.findings: list[Finding] = []

    def see(self, name: str | None, place: str) -> DeploymentId | None:
        """Note that a place has a deployment; None where that is no id of this repository."""
        if name is None or len(name) != self.algorithm.hex_length:
            return None
        deployment = DeploymentId.trusted(name)
        self.deployments.setdefault(deployment, set()).add(place)
        return deployment

    def see_all(self, names: Iterable[str], place: str) -> list[DeploymentId]:
        """As :meth:`see`, of several: those that are ids of this repository, each once, in their order."""
        found = (self.see(name, place) for name in names)
        return list(dict.fromkeys(deployment for deployment in found if deployment is not None))

    def see_mentioned(self, data: bytes, place: str) -> list[DeploymentId]:
        """As :meth:`see_all`, of the deployments of the repository whose ids are in a text, in whatever form."""
        return self.see_all((name for name in mentioned_ids(data) if name in self.known), place)

    def place(self, name: str, path: str | None, reason: str | None = None) -> None:
        """Note a place that was read, or why it was not."""
        self.places.append(Place(name, path or "", reason))

    def find(self, code: str, message: str, advice: str) -> None:
        """Note something odd."""
        self.findings.append(Finding(code, message, advice))


def reason_of(error: Exception) -> str:
    """The words of an error, ours or the system's."""
    if isinstance(error, CfsTagsError):
        return error.message
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
