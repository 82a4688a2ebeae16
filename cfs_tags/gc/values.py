"""Options, plan and result of a collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.host.refs import GRACE, RetirePlan
from cfs_tags.repo.forgetting import USUAL
from cfs_tags.repo.transaction.change import RefChange

if TYPE_CHECKING:
    from cfs_tags.errors import CfsTagsError
    from cfs_tags.values import DeploymentId


class GcOptions(NamedTuple):
    """What a collection is asked to do besides.

    ``roots`` are names in ``streams/`` or ``images/`` that stay; ``free_bytes`` stops when so much was freed (allocated
    bytes); ``grace`` keeps what is younger, in seconds; ``prune_referrers`` removes referrers of dead subjects;
    ``keep_broken`` continues if something could not be followed, unless the system refused to read it; ``image_only`` keeps
    the EROFS image alone of a deployment that cannot be resolved; ``no_sysroot`` collects bootc's repository without a look
    at its deployments; ``seconds`` ends deleting when so many have gone by since the beginning;
    ``trust_clock`` believes a clock that has jumped; ``keep_log`` is how long entries of the log stay, in seconds, None for
    ever.
    """

    roots: tuple[str, ...] = ()
    free_bytes: int | None = None
    grace: float = 0.0
    prune_referrers: bool = False
    keep_broken: bool = False
    image_only: bool = False
    retire_grace: float = GRACE
    no_sysroot: bool = False
    seconds: float | None = None
    trust_clock: bool = False
    keep_log: float | None = USUAL


class Pace(NamedTuple):
    """How much is deleted at a time.

    Attributes:
        slice: seconds that the exclusive lock is held for deletions at a time.
        pause: seconds between two slices.
        threads: that delete at a time: a deletion waits for the disk.
        batch: objects that one thread deletes between two looks at the clock.
    """

    slice: float = 0.3
    pause: float = 0.005
    threads: int = 16
    batch: int = 64


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


class Problem(NamedTuple):
    """Something that a collector had to follow and could not, and the refs that need it: at most :data:`MOST_REFS` of them.

    ``unreadable``: it is there and the system would not give it, so that it may lead to anything.
    """

    message: str
    refs: tuple[str, ...]
    unreadable: bool = False


class GcPlan(NamedTuple):
    """What a collection would do now.

    ``changes`` are refs that go or come first; ``swept`` what is deleted then; ``live`` the number of objects that stay;
    ``problems`` what could not be followed (with ``keep_broken`` only: else they are raised); ``lacking`` content of live
    images that is not there, as far as it was noticed; ``meta`` whether ``meta.json`` is made, because there is none;
    ``doubt`` why the clock is not believed, so that nothing goes by it which was made lately;
    ``forgotten`` how many entries of the log went.
    """

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
    swept: Swept
    live: int
    problems: tuple[Problem, ...]
    lacking: tuple[Problem, ...] = ()
    meta: bool = False
    doubt: CfsTagsError | None = None
    forgotten: int = 0


class GcResult(NamedTuple):
    """What a collection did.  As :class:`GcPlan`; ``slices`` is how often it held the exclusive lock, ``stopped`` why it
    ended before everything dead was gone, if it did."""

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
    swept: Swept
    live: int
    problems: tuple[Problem, ...]
    lacking: tuple[Problem, ...]
    slices: int
    stopped: str | None = None
    meta: bool = False
    doubt: CfsTagsError | None = None
    forgotten: int = 0

    def then(self, later: GcResult) -> GcResult:
        """This and what a later run did, as one."""
        return later._replace(
            changes=(*self.changes, *later.changes),
            swept=self.swept.plus(later.swept),
            slices=self.slices + later.slices,
            meta=self.meta or later.meta,
        )


NOTHING_DONE = GcResult((), (), None, Swept(), 0, (), (), 0)
"""A collection at its beginning."""


class RefsPlan(NamedTuple):
    """What a collection does with refs before it marks: adoption and retiring where there is a sysroot, and expiry."""

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
