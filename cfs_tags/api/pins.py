"""The pins of a repository, as :attr:`cfs_tags.Repository.pins` gives them."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.api.arguments import WAIT, checked, seconds
from cfs_tags.api.arguments import until as instant
from cfs_tags.errors import TagNotFound, TargetNotFound, UnresolvedDeployment
from cfs_tags.tags import names, pins, rows
from cfs_tags.values import DeploymentId, Digest

if TYPE_CHECKING:
    from cfs_tags.api.handle import Handle, Host
    from cfs_tags.host.pins import PinPlan

_STATES = ("booted", "staged", "rollback")


class PinRow(NamedTuple):
    """A pin, and what was written down of it."""

    pin: pins.Pin
    record: pins.Record


class Pins:
    """Deployments and images that are kept whatever becomes of tags, boot entries and state directories.

    Arguments and errors are as with :class:`cfs_tags.api.tags.Tags`.
    """

    def __init__(self, repo: Handle, deployments: Host) -> None:
        self._repo = repo
        self._deployments = deployments

    # -- looking -------------------------------------------------------------------------------------------------------

    def list(self) -> list[PinRow]:
        """All pins, by name; those that have ended and are still there, too."""
        return [PinRow(pin, pins.record_of(self._repo, pin)) for pin in pins.list_pins(self._repo)]

    @checked
    def get(self, name: str) -> PinRow:
        """The pin of a name, or the one that keeps a deployment.

        Raises:
            NotFoundError (pin-not-found): there is none, or its time is over.
            UsageError (ambiguous-name): several keep the deployment.
        """
        from cfs_tags.host.pins import meant

        known = [pin for pin in pins.list_pins(self._repo) if not pin.has_ended]
        found = meant(known, self._text(name))
        return PinRow(found, pins.record_of(self._repo, found))

    @checked
    def target(self, name: str, *, pinned: bool = False) -> tuple[DeploymentId | None, Digest]:
        """The deployment and the manifest that a name stands for: a deployment as with
        :class:`cfs_tags.api.deployments.Deployments`, or any name of a tag; a tag of just that name comes first.

        Args:
            name: as said; digits stand for a deployment before they stand for an image.
            pinned: whether a name of a pin comes first of all.

        Raises:
            NotFoundError: it stands for nothing.
            UnresolvedDeployment: it is not known what the deployment was made from.
        """
        repo = self._repo
        if name.startswith("@pin/") or (pinned and pins.find(repo, name) is not None):
            pin = self.get(name).pin
            return pin.deployment, pins.manifest_of(repo, pin.name)
        special = name.removeprefix("@") in _STATES or name.startswith("@deployment/")
        if not special and (not re.fullmatch("[0-9a-f]+", name, re.ASCII) or rows.find(repo, name) is not None):
            return None, names.resolve(repo, name)
        try:
            return self._deployment(name)
        except TargetNotFound:
            if not special:
                with suppress(TagNotFound):
                    return None, names.resolve(repo, name)
            raise

    def _deployment(self, text: str) -> tuple[DeploymentId, Digest]:
        from cfs_tags.host import refs
        from cfs_tags.host.lookup import digest_of_link, look_up, ref_state
        from cfs_tags.host.rows import list_deployments, select

        repo = self._repo
        if not self._deployments.are_seen:
            one = refs.referred_by(repo, text)
            digest = digest_of_link(ref_state(repo, one).manifest)
            notes: tuple[str, ...] = ()
        else:
            view = self._deployments.view()
            row = select(list_deployments(repo, view), text)
            found = look_up(repo, view, row.id)
            one, digest, notes = row.id, found.digest, found.notes
            if digest is None:
                digest = next((pinned.pin.manifest for pinned in row.pins), None)
        if digest is None:
            raise UnresolvedDeployment(deployment=one, notes=notes)
        return one, digest

    # -- changing ------------------------------------------------------------------------------------------------------

    @checked
    def pin(
        self,
        target: str,
        *,
        name: str | None = None,
        until: timedelta | datetime | None = None,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> PinPlan:
        """Keep a deployment, or the image of a tag.

        Args:
            target: as with :meth:`target`.
            name: of the pin; None: the tag, or the first twelve digits of the deployment or digest.
            until: how long, or until when; None: until it is unpinned.
            reason: for the log, and shown with the pin.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            RefusedError (pin-exists): there is a pin of that name, which keeps something else.
            IncompleteTarget: something is missing that would be needed to bring it back.
            NotFoundError, UnresolvedDeployment: as :meth:`target`.
        """
        from cfs_tags.host import pins as host

        repo = self._repo
        wait, note, end = seconds(timeout, "timeout"), repo.note(reason, by), instant(repo, until, "until")
        writable = None if dry_run else repo.writable()
        deployment, digest = self.target(target)
        if name is None:
            is_tag = deployment is None and not target.startswith("@") and rows.find(repo, target) is not None
            name = target if is_tag else host.usual_name(deployment, digest)
        if writable is None:
            return host.plan_pin(repo, digest, deployment, name, end)
        view = self._deployments.view() if deployment is not None and self._deployments.are_seen else None
        return host.pin(writable, view, digest, deployment, name, end, note=note, timeout=wait)

    @checked
    def unpin(
        self,
        *names: str,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> PinPlan:
        """Remove pins, all or none; what nothing else keeps, the next collection takes.

        Args:
            names: of pins, or deployments that one pin keeps.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            NotFoundError (pin-not-found), UsageError (ambiguous-name): nothing was changed.
        """
        from cfs_tags.host import pins as host

        wait, texts = seconds(timeout, "timeout"), [self._text(name) for name in names]
        if dry_run:
            return host.plan_unpin(self._repo, texts)
        return host.unpin(self._repo.writable(), texts, note=self._repo.note(reason, by), timeout=wait)

    def _text(self, name: str) -> str:
        """A name with states of deployments as their ids."""
        state = f"@{name.removeprefix('@')}"
        if state.removeprefix("@") not in _STATES or any(pin.name == name for pin in pins.list_pins(self._repo)):
            return name
        return f"@deployment/{self._deployments.in_state(state)[0]}"
