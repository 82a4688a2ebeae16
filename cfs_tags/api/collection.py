"""Collecting garbage, as :attr:`cfs_tags.Repository.gc` does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from cfs_tags import gc
from cfs_tags.api.arguments import checked, positive, seconds
from cfs_tags.api.deployments import Deployments
from cfs_tags.api.handle import Handle
from cfs_tags.policy import files
from cfs_tags.repo.store import ReadRepo

_NOTHING = timedelta(0)
_WAIT = timedelta(minutes=5)


class Collection:
    """What no ref leads to, and removing it.

    Refs come first: leases and trash that have run out go; on a host deployments are adopted, and refs of those that are gone
    retired.  Arguments and errors are as with :class:`cfs_tags.api.tags.Tags`.
    """

    def __init__(self, repo: Handle, deployments: Deployments) -> None:
        self._repo = repo
        self._deployments = deployments

    @checked
    def plan(
        self,
        *,
        roots: Sequence[str] = (),
        free_bytes: int | None = None,
        grace: timedelta = _NOTHING,
        prune_referrers: bool = False,
        keep_broken: bool = False,
        image_only: bool = False,
        no_sysroot: bool = False,
        trust_clock: bool = False,
        timeout: timedelta = _WAIT,
    ) -> gc.GcPlan:
        """What :meth:`collect` would do now; arguments and errors as there."""
        repo = self._repo
        options = _options(
            self._repo, roots, free_bytes, grace, prune_referrers, keep_broken, image_only, no_sysroot, trust_clock
        )
        with_host = self._deployments.are_seen and not no_sysroot
        with repo.locked("shared", seconds(timeout, "timeout")):
            return gc.plan(repo, options, self._deployments.view() if with_host else None)

    @checked
    def collect(
        self,
        *,
        roots: Sequence[str] = (),
        free_bytes: int | None = None,
        grace: timedelta = _NOTHING,
        prune_referrers: bool = False,
        keep_broken: bool = False,
        image_only: bool = False,
        no_sysroot: bool = False,
        trust_clock: bool = False,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = _WAIT,
        progress: Callable[[int, int], None] | None = None,
    ) -> gc.GcResult:
        """Collect garbage.

        Args:
            roots: names in ``streams/`` or ``images/`` that stay.
            free_bytes: stop when so many bytes were freed.
            grace: keep what is younger.
            prune_referrers: remove signatures and the like of images that are gone.
            keep_broken: go on where something cannot be followed.
            image_only: keep the EROFS image alone of a deployment whose manifest is not known.
            no_sysroot: collect by refs alone.
            trust_clock: believe a clock that was set back or far forward; else the result says its ``doubt``.
            reason: for the log.
            by: for the log.
            timeout: how long a lock is waited for, each time.
            progress: told now and then how many of how many directories were looked at.

        Raises:
            BrokenRoots: something that a ref leads to cannot be followed; nothing, or nothing more, was collected.
            UnresolvedDeployment, PlaceUnread, NoDeployments, RefusedError (sysroot-unseen): likewise.
            LockTimeout, SystemFailure: what was deleted by then is gone; the next run goes on.
        """
        repo = self._repo.writable()
        options = _options(
            self._repo, roots, free_bytes, grace, prune_referrers, keep_broken, image_only, no_sysroot, trust_clock
        )
        view = self._deployments.view if self._deployments.are_seen and not no_sysroot else None
        note, wait = self._repo.note(reason, by), seconds(timeout, "timeout")
        return gc.collect(repo, options, view, note=note, timeout=wait, progress=progress)


def _options(
    repo: ReadRepo,
    roots: Sequence[str],
    free_bytes: int | None,
    grace: timedelta,
    prune_referrers: bool,
    keep_broken: bool,
    image_only: bool,
    no_sysroot: bool,
    trust_clock: bool,
) -> gc.GcOptions:
    return gc.GcOptions(
        roots=tuple(roots),
        free_bytes=positive(free_bytes, "free_bytes"),
        grace=seconds(grace, "grace"),
        prune_referrers=prune_referrers,
        keep_broken=keep_broken,
        image_only=image_only,
        no_sysroot=no_sysroot,
        trust_clock=trust_clock,
        keep_log=files.kept_log(repo),
    )
