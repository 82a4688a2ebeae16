"""Retention by rules, as :attr:`cfs_tags.Repository.policy` has it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from cfs_tags.api.arguments import WAIT, checked, seconds
from cfs_tags.api.handle import Handle
from cfs_tags.policy import files, plan
from cfs_tags.policy.plan import Row
from cfs_tags.policy.rules import Policy
from cfs_tags.repo import clock, refs
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit


class Retention:
    """Which tags stay, by rules that an administrator writes.

    The rules are in ``cfs-tags/policy.toml`` of the repository, then in ``/etc/cfs-tags/policy.toml``; ``file`` names another
    policy in place of both.  Arguments and errors are as with :class:`cfs_tags.api.tags.Tags`.
    """

    def __init__(self, repo: Handle) -> None:
        self._repo = repo

    @checked
    def check(self, file: str | os.PathLike[str] | None = None, *, allow_empty_group: bool = False) -> list[Row]:
        """What becomes of each tag, and why; those without ``reasons`` would be deleted.

        Args:
            file: a policy in place of the repository's and the system's.
            allow_empty_group: a rule may delete all the tags that it counts together.

        Raises:
            UsageError (invalid-policy): it cannot be read.
            RefusedError (empty-group): it would leave nothing of a group.
        """
        return plan.plan(self._repo, self._read(file), datetime.now(UTC), allow_empty_group=allow_empty_group)

    @checked
    def apply(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        allow_empty_group: bool = False,
        trust_clock: bool = False,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> tuple[edit.TagResult, ...]:
        """Delete the tags that no rule keeps, into the trash.

        Args:
            file: a policy in place of the repository's and the system's.
            allow_empty_group: a rule may delete all the tags that it counts together.
            trust_clock: believe a clock that was set back or far forward.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            UsageError, RefusedError: as :meth:`check`; nothing was deleted.
            RefusedError (clock-ahead, clock-set-back): there is something to delete, and the clock is not believed.
        """
        note, wait = self._repo.note(reason, by), seconds(timeout, "timeout")

        def planned() -> edit.TagPlan:
            policy = self._read(file)
            return plan.plan_drops(self._repo, policy, allow_empty_group=allow_empty_group, trust_clock=trust_clock)

        if dry_run:
            return refs.read_at_once(self._repo, planned).results
        repo = self._repo.writable()
        if trust_clock:
            clock.believe(repo)
        named = None if file is None else os.fspath(file)
        command = edit.asked("policy apply", named, allow_empty_group, once=True)
        return run.transact(repo, planned, note, wait, command=command).results

    def _read(self, file: str | os.PathLike[str] | None) -> Policy:
        return (files.read(self._repo) or Policy()) if file is None else files.read_alone(os.fspath(file))
