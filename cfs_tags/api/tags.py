"""The tags of a repository, as :attr:`cfs_tags.Repository.tags` gives them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from fnmatch import translate
from typing import TYPE_CHECKING

from cfs_tags.api.arguments import WAIT, Home, Owner, checked, invalid, seconds, until
from cfs_tags.api.deployments import Deployments
from cfs_tags.api.handle import Handle
from cfs_tags.errors import InvalidDigest, TargetNotFound
from cfs_tags.policy import files
from cfs_tags.repo import refs
from cfs_tags.repo.store import ReadRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import Command
from cfs_tags.tags import edit, history, names, rows
from cfs_tags.tags.instructions import Instruction
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from cfs_tags.api.holds import Hold

_HOUR = timedelta(hours=1)


class Tags:
    """The tags of a repository.

    A name is a tag, ``@sha256:`` with six or more digits, ``@deployment/<id>``, ``@booted``, ``@staged``, ``@rollback``,
    ``@trash/<name>``, ``NAME@{N}`` or ``NAME@{TIME}``.  What changes something takes ``reason`` and ``by`` for the log,
    ``timeout`` (how long it waits for locks) and ``dry_run``: then nothing is changed, and what would be done is returned.

    All methods raise :class:`cfs_tags.errors.CfsTagsError`: of an argument of a wrong type or value UsageError
    (``invalid-argument``), of a repository that was opened for reading RefusedError (``read-only-repository``), before
    anything is done.
    """

    def __init__(self, repo: Handle, deployments: Deployments) -> None:
        self._repo = repo
        self._deployments = deployments

    # -- looking -------------------------------------------------------------------------------------------------------

    @checked
    def list(
        self,
        pattern: str | Sequence[str] | None = None,
        *,
        points_at: str | None = None,
        owners: Sequence[Owner] = ("app", "bootc", "deployment", "pin"),
    ) -> list[rows.Tag]:
        """Tags, pins and deployment refs, by name.  One that is broken has a ``problem``.

        Args:
            pattern: only names that it fits, or that one of several fits: ``*`` stands for any text, ``?`` for a character.
            points_at: only what names the same as this name.
            owners: only of these owners.
        """
        found = rows.list_tags(self._repo, owners=owners)
        if pattern is not None:
            patterns = (pattern,) if isinstance(pattern, str) else pattern
            fits = re.compile("|".join([translate(one) for one in patterns])).match
            found = [tag for tag in found if patterns and fits(tag.name)]
        if points_at is not None:
            digest = self.named(points_at)
            found = [tag for tag in found if tag.digest == digest]
        return found

    @checked
    def get(self, name: str) -> rows.Tag | None:
        """The tag of exactly that name; None where there is none."""
        return rows.find(self._repo, name)

    @checked
    def resolve(self, name: str) -> Digest:
        """The digest of the manifest that a name stands for.

        Raises:
            NotFoundError: it stands for nothing, or not any more.
            UsageError: the start of a digest fits several.
        """
        return names.resolve(self._repo, self._deployments.meant(name))

    @checked
    def named(self, name: str) -> Digest:
        """As :meth:`resolve`; a digest in full is also that of a manifest that is gone: a tag may well name one."""
        meant = self._deployments.meant(name)
        try:
            return names.resolve(self._repo, meant)
        except TargetNotFound:
            with suppress(InvalidDigest):
                return Digest.parse(meant.removeprefix("@"))
            raise

    @checked
    def log(self, name: str) -> Sequence[history.LogLine]:
        """What became of a tag, newest first.

        Raises:
            TagNotFound: there is no such tag, and never was.
        """
        return history.log(self._repo, name)

    def trash(self) -> Sequence[rows.Tag]:
        """Deleted tags that are kept for a while."""
        return rows.trash(self._repo)

    # -- changing ------------------------------------------------------------------------------------------------------

    @checked
    def create(
        self,
        name: str,
        target: str,
        *,
        force: bool = False,
        expected: str | None = None,
        home: Home | None = None,
        expires: timedelta | datetime | None = None,
        owners: Sequence[Owner] = (),
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> edit.TagResult:
        """Make a tag, or move one.  The same again is ``unchanged``.

        Args:
            name: of the tag.
            target: what it names.
            force: move a tag that names something else.
            expected: only if it names this digest now; ``absent``: only if there is none.
            home: who sees it; None: it is shared unless bootc could choke on it.
            expires: make a lease, which ends after that time, or then.
            owners: owners besides ``app`` whose tags may be moved.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            RefusedError: ``tag-exists``, ``owner-refused``; IncompleteTarget, ExpectationFailed.
            NotFoundError: the target stands for nothing.
            LockTimeout: the locks were not to be had.
        """
        verb = "set" if force else "create"
        end = until(self._repo, expires, "expires")
        made = Instruction(verb, name, self._deployments.meant(target), expected, home, end)
        return self._followed((made,), owners, reason, by, timeout, dry_run)[0]

    @checked
    def hold(
        self,
        name: str,
        *,
        length: timedelta = _HOUR,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> Hold:
        """Keep what a name stands for while something is done with it: by a lease, which ends by itself if this is killed.

        Args:
            name: any name.
            length: after that time the lease ends unless :meth:`cfs_tags.api.holds.Hold.renew` was called.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Returns:
            a context manager: at the end of the block the lease goes.

        Raises:
            NotFoundError: the name stands for nothing.
            IncompleteTarget: something of it is missing.
        """
        from cfs_tags.api.holds import Hold

        note, wait, left = self._repo.note(reason, by), seconds(timeout, "timeout"), seconds(length, "length")
        if left < 1:
            raise invalid("length", length, "must be a second or more")
        writable = None if dry_run else self._repo.writable()
        return Hold(self._repo, writable, self.resolve(name), left, note, wait)

    @checked
    def delete(
        self,
        *names: str,
        keep_for: timedelta | datetime | None = None,
        owners: Sequence[Owner] = (),
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> tuple[edit.TagResult, ...]:
        """Remove tags, all or none.

        Args:
            names: of the tags.
            keep_for: move them to the trash, where what they name is kept that long, or until then; no time at all for not
                at all; None: as the policy says, and without one not at all.
            owners: owners besides ``app`` whose tags may be removed.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            TagNotFound, RefusedError: nothing was changed.
        """
        if keep_for is None:
            kept = files.kept_by_delete(self._repo)
            end = rows.expiry_here(self._repo, kept) if kept else None
        else:
            end = None if keep_for == timedelta(0) else until(self._repo, keep_for, "keep_for")
        instructions = tuple(Instruction("delete", name, expires=end) for name in names)
        return self._followed(instructions, owners, reason, by, timeout, dry_run)

    @checked
    def rename(
        self,
        old: str,
        new: str,
        *,
        force: bool = False,
        owners: Sequence[Owner] = (),
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> edit.TagResult:
        """Give a tag another name; ``force`` replaces a tag that has it.

        Raises:
            NotFoundError, RefusedError, UsageError: nothing was changed.
        """
        command = edit.asked("rename", old, new, force)
        return self._carried_out(
            lambda repo: edit.plan_rename(repo, old, new, owners=owners, force=force), command, reason, by, timeout, dry_run
        )[0]

    @checked
    def restore(
        self,
        name: str,
        *,
        owners: Sequence[Owner] = (),
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> edit.TagResult:
        """Bring back a deleted tag, or an earlier value: the one before, or one of the log with ``NAME@{N}`` and
        ``NAME@{TIME}``.

        Raises:
            NotFoundError: there is no such entry, or the tag was absent then.
            RefusedError: the content has been collected since.
        """
        command = edit.asked("restore", name, once=True)
        return self._carried_out(
            lambda repo: edit.plan_restore(repo, name, owners=owners), command, reason, by, timeout, dry_run
        )[0]

    @checked
    def empty_trash(
        self,
        *patterns: str,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> tuple[edit.TagResult, ...]:
        """Take tags out of the trash for good.

        Args:
            patterns: of names: those that fit one; all where there is none.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            TagNotFound: a pattern fits none; nothing was changed.
        """
        command = edit.asked("trash empty", patterns)
        return self._carried_out(lambda repo: edit.plan_empty(repo, patterns), command, reason, by, timeout, dry_run)

    @checked
    def update(
        self,
        instructions: Iterable[Instruction],
        *,
        owners: Sequence[Owner] = (),
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> tuple[edit.TagResult, ...]:
        """Make, move and delete many tags: all or nothing.

        Args:
            instructions: at most one for each name.
            owners: owners besides ``app`` whose tags may be changed.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            RefusedError, NotFoundError, UsageError: the first that cannot be carried out; nothing was changed.
        """
        meant = self._deployments.meant
        wanted = tuple(one if one.target is None else one._replace(target=meant(one.target)) for one in instructions)
        return self._followed(wanted, owners, reason, by, timeout, dry_run)

    def _followed(
        self,
        instructions: tuple[Instruction, ...],
        owners: Sequence[Owner],
        reason: str | None,
        by: str | None,
        timeout: timedelta,
        dry_run: bool,
    ) -> tuple[edit.TagResult, ...]:
        command = edit.asked_instructions(instructions)
        return self._carried_out(
            lambda repo: edit.plan(repo, instructions, owners=owners), command, reason, by, timeout, dry_run
        )

    def _carried_out(
        self,
        plan: Callable[[ReadRepo], edit.TagPlan],
        command: Command[edit.TagPlan],
        reason: str | None,
        by: str | None,
        timeout: timedelta,
        dry_run: bool,
    ) -> tuple[edit.TagResult, ...]:
        note, wait = self._repo.note(reason, by), seconds(timeout, "timeout")
        if dry_run:
            return refs.read_at_once(self._repo, lambda: plan(self._repo)).results
        repo = self._repo.writable()
        return run.transact(repo, lambda: plan(repo), note, wait, command=command).results
