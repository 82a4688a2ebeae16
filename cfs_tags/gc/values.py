"""What a collection is asked to do, what it would do, and what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.deploying import GRACE
from cfs_tags.repo.refs import RefChange

if TYPE_CHECKING:
    from cfs_tags.deploying import RetirePlan
    from cfs_tags.marking import Problem
    from cfs_tags.values import DeploymentId

__all__ = ["GcOptions", "GcPlan", "GcResult", "RefsPlan", "Swept"]


class GcOptions(NamedTuple):
    """What a collection is asked to do besides.

    ``roots`` are names in ``streams/`` or ``images/`` that stay; ``free_bytes`` stops when so much was freed (allocated
    bytes); ``grace`` keeps what is younger, in seconds; ``prune_referrers`` removes referrers of dead subjects;
    ``keep_broken`` goes on where something could not be followed, unless the system does not give it; ``image_only`` keeps
    the EROFS image alone of a deployment that cannot be resolved; ``no_sysroot`` collects bootc's repository without a look
    at its deployments.
    """

    roots: tuple[str, ...] = ()
    free_bytes: int | None = None
    grace: float = 0.0
    prune_referrers: bool = False
    keep_broken: bool = False
    image_only: bool = False
    retire_grace: float = GRACE
    no_sysroot: bool = False


class Swept(NamedTuple):
    """Deleted, or dead: number of objects, bytes that they take on disk, bytes that they hold; links by directory."""

    objects: int = 0
    allocated: int = 0
    size: int = 0
    streams: int = 0
    images: int = 0

    def plus(self, other: Swept) -> Swept:
        """Both together."""
        return Swept(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class GcPlan(NamedTuple):
    """What a collection would do now.

    ``changes`` are refs that go or come first; ``swept`` what is deleted then; ``live`` the number of objects that stay;
    ``problems`` what could not be followed (with ``keep_broken`` only: else they are raised); ``meta`` whether
    ``meta.json`` is made, because there is none.
    """

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
    swept: Swept
    live: int
    problems: tuple[Problem, ...]
    meta: bool = False


class GcResult(NamedTuple):
    """What a collection did.  As :class:`GcPlan`; ``slices`` is how often it held the exclusive lock, ``stopped`` why it
    ended before everything dead was gone, if it did."""

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
    swept: Swept
    live: int
    problems: tuple[Problem, ...]
    slices: int
    stopped: str | None = None
    meta: bool = False


class RefsPlan(NamedTuple):
    """What a collection does with refs before it marks: expiry, then adoption and retiring where there is a sysroot."""

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
