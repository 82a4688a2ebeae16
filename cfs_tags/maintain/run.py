"""A maintenance from its beginning to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import gc
from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.fsck import objects as checks
from cfs_tags.gc import GcOptions, GcPlan, GcResult
from cfs_tags.host.refs import adopt, plan_adoption
from cfs_tags.inventory import names_of_objects, object_directories
from cfs_tags.maintain import settled
from cfs_tags.maintain.settled import Known
from cfs_tags.policy import files
from cfs_tags.policy.plan import plan_drops
from cfs_tags.policy.rules import Policy
from cfs_tags.repo import layout
from cfs_tags.repo.reflog import Fact
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction.change import NO_NOTE, Note
from cfs_tags.repo.transaction.run import record, transact
from cfs_tags.tags import edit

if TYPE_CHECKING:
    from cfs_tags.fsck.findings import Finding
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.tags.edit import TagPlan, TagResult
    from cfs_tags.values import DeploymentId

_TIMEOUT = 300.0
"""Seconds that maintenance waits for a lock, each time."""
_MOST_DAYS = 7 * 86400.0
"""Seconds after which everything is walked again, whatever the mark says."""
_FIRST = 86400.0
"""Seconds that count as gone by before the first check."""
_BATCH = 64


class Budget(NamedTuple):
    """How much one maintenance may do.

    Attributes:
        seconds: after so many it deletes and checks no more; marking, which nothing can be deleted without, is not cut short.
        free_bytes: it collects no more once so many bytes were freed; None: all there is.
        check_every: seconds in which each object is to be read once; each run does what is due of it.  0: none is.
    """

    seconds: float = 1800.0
    free_bytes: int | None = None
    check_every: float = 30 * 86400.0


class Failure(NamedTuple):
    """A step that was not done (``adopt``, ``policy``, ``collect``, ``check``), and why."""

    step: str
    error: CfsTagsError


class Part(NamedTuple):
    """What was checked: how many objects, how many bytes of them, what was found; ``whole`` is false where time was short."""

    objects: int = 0
    bytes: int = 0
    findings: tuple[Finding, ...] = ()
    whole: bool = True


class Maintained(NamedTuple):
    """What was done, or would be.

    Attributes:
        adopted: deployments that got their refs.
        dropped: tags that the policy deleted.
        collected: the collection; None where there was nothing to do, or it failed.
        unchanged: nothing has changed since a collection found nothing to do, so there was none.
        checked: what was checked; in a dry run nothing is.
        failures: steps that were not done.
    """

    adopted: tuple[DeploymentId, ...] = ()
    dropped: tuple[TagResult, ...] = ()
    collected: GcResult | GcPlan | None = None
    unchanged: bool = False
    checked: Part = Part()
    failures: tuple[Failure, ...] = ()

    @property
    def status(self) -> int:
        """The exit status that this comes to: that of the first failure, 6 where a check found something, else 0."""
        for failure in self.failures:
            return failure.error.status
        return 6 if any(one.fails for one in self.checked.findings) else 0


class _Job(NamedTuple):
    """What the steps need."""

    repo: WriteRepo
    read_view: Callable[[], SysrootView] | None
    budget: Budget
    note: Note
    timeout: float
    dry_run: bool
    end: float
    progress: Callable[[int, int], None] | None


def maintain(
    repo: WriteRepo,
    read_view: Callable[[], SysrootView] | None = None,
    budget: Budget = Budget(),  # noqa: B008
    *,
    note: Note = NO_NOTE,
    timeout: float = _TIMEOUT,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Maintained:
    """Adopt deployments, apply the policy, collect, and check the part of the objects that is due.

    Each step takes its own locks, and lets go of them; one that is refused does not keep the next from being done.

    Args:
        repo: where.
        read_view: reads the sysroot, where there is one.
        budget: how much may be done.
        note: for the reflog; what was done is recorded with it.
        timeout: seconds to wait for a lock, each time.
        dry_run: change nothing; nothing is checked either.
        progress: is called with how far the collection is.

    Raises:
        KeyboardInterrupt: what was done by then is done.
    """
    end = time.monotonic() + budget.seconds
    job = _Job(repo, read_view, budget, note, timeout, dry_run, end, progress)
    made = Maintained()
    for step, work in _STEPS.items():
        try:
            made = work(job, made)
        except CfsTagsError as error:
            made = made._replace(failures=(*made.failures, Failure(step, error)))
    if not dry_run:
        record(repo, "maintain", _facts(made), note, timeout)
    return made


def _facts(made: Maintained) -> dict[str, Fact]:
    swept = made.collected.swept if made.collected is not None else gc.Swept()
    return {
        "adopted": len(made.adopted),
        "dropped": len(made.dropped),
        "objects": swept.objects,
        "bytes": swept.allocated,
        "unchanged": int(made.unchanged),
        "checked": made.checked.objects,
        "findings": sum(one.fails for one in made.checked.findings),
        "failed": [failure.step for failure in made.failures],
    }


def _adopt(job: _Job, made: Maintained) -> Maintained:
    if job.read_view is None:
        return made
    view = job.read_view()
    plan = plan_adoption(job.repo, view)
    if plan.changes and not job.dry_run:  # no lock where there is nothing to do
        plan = adopt(job.repo, view, note=job.note, timeout=job.timeout)
    return made._replace(adopted=plan.ids)


def _apply_policy(job: _Job, made: Maintained) -> Maintained:
    repo = job.repo
    policy = files.read(repo)
    if policy is None or not policy.rules:
        return made

    def plan() -> TagPlan:
        return plan_drops(repo, files.read(repo) or Policy())

    done = plan()
    if done.changes and not job.dry_run:
        done = transact(repo, plan, job.note, job.timeout, command=edit.asked("maintain", once=True))
    return made._replace(dropped=done.results)


def _collect(job: _Job, made: Maintained) -> Maintained:
    """Collect what is dead, unless nothing has changed since there was nothing."""
    repo, view = job.repo, None if job.read_view is None else job.read_view()
    options = GcOptions(
        free_bytes=job.budget.free_bytes, seconds=max(job.end - time.monotonic(), 0.0), keep_log=files.kept_log(repo)
    )
    mark = "" if gc.plan_refs(repo, view).changes else settled.mark(repo)
    known = Known()
    with suppress(SystemFailure):  # then it is not known that there is nothing to do
        known = settled.read(repo)
    if mark and mark == known.mark and abs(time.time() - known.marked) < _MOST_DAYS:
        return made._replace(unchanged=True)
    if job.dry_run:
        with repo.locked("shared", job.timeout):
            return made._replace(collected=gc.plan(repo, options, view))
    done = gc.collect(repo, options, job.read_view, note=job.note, timeout=job.timeout, progress=job.progress)
    nothing = not (done.changes or any(done.swept) or done.problems or done.stopped)
    _remember(repo, mark=mark if nothing else "", marked=time.time() if nothing else 0.0)
    return made._replace(collected=done)


def _remember(repo: WriteRepo, **facts: str | float | tuple[str, ...]) -> None:
    """Write down what is known now; where the system refuses, the next run does more than it had to."""
    with suppress(CfsTagsError):
        settled.write(repo, settled.read(repo)._replace(**facts))  # type: ignore[arg-type]


# -- checking ----------------------------------------------------------------------------------------------------------


def _check(job: _Job, made: Maintained) -> Maintained:
    """Read what was damaged, and what is due of the objects, in the order of their ids, from where the last check ended."""
    if job.dry_run:
        return made
    known = settled.read(job.repo)
    # whatever time and budget there is: what was found stands until the object is right or gone
    part = _check_some(job, Part(), list(known.wrong)) if known.wrong else Part()
    part, since, place = _check_due(job, known, part, object_directories(job.repo))
    part = part._replace(findings=tuple(dict.fromkeys(part.findings)))
    wrong = checks.names_of(one for one in part.findings if one.fails)[: settled.MOST_WRONG]
    if (since, place, wrong) != (known.checked, known.place, known.wrong):
        _remember(job.repo, checked=since, place=place, wrong=wrong)
    return made._replace(checked=part)


def _check_due(job: _Job, known: Known, part: Part, parents: list[str]) -> tuple[Part, float, str]:
    """Read the directories that are due; gives also up to when all is checked, and the next place."""
    every, now = job.budget.check_every, time.time()
    if not every or not parents:
        return part, known.checked, known.place
    # where the clock was set back, time counts from now
    since = min(known.checked, now) or now - min(_FIRST, every)
    due = min(int((now - since) * len(parents) / every), len(parents))
    place = known.place
    for number in range(due):
        part, place = _check_directory(job, part, place, parents)
        if not part.whole:
            break
        since = now if number + 1 == len(parents) else since + every / len(parents)
    return part, since, place


def _check_directory(job: _Job, part: Part, place: str, parents: list[str]) -> tuple[Part, str]:
    """Read the objects of one directory, from a place on; the next place is the second part of the answer."""
    parent = next((one for one in parents if one >= place[:2]), parents[0])
    rest = place[2:] if place[:2] == parent else ""
    for batch in _batches(job.repo, parent, rest):
        if time.monotonic() >= job.end:
            return part._replace(whole=False), parent + batch[0]
        part = _check_some(job, part, [parent + name for name in batch])
    following = parents[(parents.index(parent) + 1) % len(parents)]
    return part, following


def _check_some(job: _Job, part: Part, names: list[str]) -> Part:
    # a batch at a time: a collector must not wait for a disk full of objects
    with job.repo.locked("shared", job.timeout):
        found = checks.check_whole(job.repo, names)
        size = sum(_sizes(job.repo, names))
    return part._replace(objects=part.objects + len(names), bytes=part.bytes + size, findings=(*part.findings, *found))


def _sizes(repo: ReadRepo, names: list[str]) -> Iterator[int]:
    for name in names:
        with suppress(OSError):
            yield repo.status(f"{layout.OBJECTS}/{name[:2]}/{name[2:]}").st_size


def _batches(repo: ReadRepo, parent: str, rest: str) -> Iterator[list[str]]:
    listed = repo.names(f"{layout.OBJECTS}/{parent}") or []
    names = sorted(name for name in names_of_objects(repo, parent, listed)[0] if name >= rest)
    for at in range(0, len(names), _BATCH):
        yield names[at : at + _BATCH]


# -- the steps, in their order ------------------------------------------------------------------------------------------

_STEPS = {"adopt": _adopt, "policy": _apply_policy, "collect": _collect, "check": _check}
