"""The deployments of a host, as :attr:`cfs_tags.Repository.deployments` gives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from cfs_tags.api.arguments import WAIT, checked, invalid, seconds
from cfs_tags.errors import (
    NoDeployments,
    NotFoundError,
    PlaceUnread,
    RefusedError,
    UnresolvedDeployment,
    UsageError,
)
from cfs_tags.formats.boot.paths import STATE_DEPLOY
from cfs_tags.values import DeploymentId

if TYPE_CHECKING:
    from cfs_tags.api.handle import Handle
    from cfs_tags.apps.reviving import Revival, Revived
    from cfs_tags.host import refs
    from cfs_tags.host.bound import BindPlan
    from cfs_tags.host.good import GoodBoot
    from cfs_tags.host.lookup import Lookup
    from cfs_tags.host.rows import Deployment
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.migrate import MigratePlan, UndoPlan
    from cfs_tags.repo.transaction.change import RefChange

_STATES = ("@booted", "@staged", "@rollback")
_DAY = timedelta(days=1)


class Deployments:
    """The deployments of a host.

    One is named by its id, the start of one, ``@deployment/<id>``, ``@booted``, ``@staged`` or ``@rollback``.  Arguments and
    errors are as with :class:`cfs_tags.api.tags.Tags`; in a repository that is no host's all methods raise NotFoundError
    (``sysroot-not-found``).
    """

    def __init__(self, repo: Handle) -> None:
        self._repo = repo
        self._places = repo.places

    @property
    def are_seen(self) -> bool:
        """Whether there is a host, or at least a directory that was said to be its root."""
        return self._places.sysroot is not None or self._repo.sysroot is not None

    # -- looking -------------------------------------------------------------------------------------------------------

    def view(self) -> SysrootView:
        """All places of the host, read now.

        Raises:
            NotFoundError: the repository is no host's, and no sysroot was named.
            UsageError: ``booted`` is neither an id nor the start of one, or the start of several.
        """
        from cfs_tags.formats.boot.cmdline import COMPOSEFS
        from cfs_tags.host.lookup import known
        from cfs_tags.host.sysroot import Sysroot, SysrootView

        root, boot, esp, run, booted = self._places
        root = root or self._repo.sysroot
        if root is None:
            raise NotFoundError("sysroot-not-found", path=self._repo.path)
        without = {part for part, value in (("boot", boot), ("esp", esp), ("run", run), ("kernel", booted)) if value == "none"}
        cmdline = None if booted in (None, "none") else f"{COMPOSEFS}={self._whole_id(root, str(booted))}"
        boot, esp, run = (None if place == "none" else place for place in (boot, esp, run))
        sysroot = Sysroot.find(os.path.normpath(root), boot=boot, esp=esp, run=run, cmdline=cmdline, without=without)
        return SysrootView.read(sysroot, self._repo.algorithm, known(self._repo))

    def list(self) -> list[Deployment]:
        """Every deployment: state, image, ref and health."""
        from cfs_tags.host.rows import list_deployments

        return list_deployments(self._repo, self.view())

    @checked
    def get(self, deployment: str) -> Deployment:
        """One deployment.

        Raises:
            TargetNotFound: there is none of that name.
            UsageError: the start of an id fits several.
        """
        from cfs_tags.host.rows import select

        return select(self.list(), deployment)

    @checked
    def look_up(self, deployment: str) -> Lookup:
        """Which manifest a deployment was made from, and how that is known."""
        from cfs_tags.host.lookup import look_up

        return look_up(self._repo, self.view(), self.get(deployment).id)

    @checked
    def meant(self, name: str) -> str:
        """A name as tags are named: of ``@booted``, ``@staged`` and ``@rollback`` the ref of the deployment, or where it has
        none yet the digest that a look-up finds; a name of bootc's that a listing has shortened in full.

        Raises:
            NotFoundError: no deployment is in that state.
            UsageError (ambiguous-name): several names of bootc's begin so.
        """
        from cfs_tags.tags.names import in_full

        return self.in_state(name)[1] if name in _STATES else in_full(self._repo, name)

    @checked
    def in_state(self, state: str) -> tuple[DeploymentId, str]:
        """The deployment in a state: its id, and the name of its manifest.  Raises as :meth:`meant`."""
        from cfs_tags.host.lookup import look_up
        from cfs_tags.host.rows import list_deployments, select

        view = self.view()
        row = select(list_deployments(self._repo, view), state)
        digest = look_up(self._repo, view, row.id).digest if row.ref == "none" else None
        return row.id, f"@deployment/{row.id}" if digest is None else f"@{digest}"

    def good_boots(self) -> tuple[GoodBoot, ...]:
        """Deployments that were booted successfully, the one that was so last at the end.

        Raises:
            FormatError: the record is damaged.
        """
        from cfs_tags.host import good

        return good.good_boots(self._repo)

    def planned_changes(self) -> tuple[tuple[RefChange, ...], tuple[str, ...]]:
        """The changes of refs that a collection would make first, and why it would stop, where it would."""
        from cfs_tags import gc

        repo, view = self._repo, None
        problems: tuple[str, ...] = ()
        if self.are_seen:
            view = self.view()
        elif repo.is_bootc:
            problems = (RefusedError("sysroot-unseen", path=repo.path).message,)
        for image_only in (False, True):
            try:
                return gc.plan_refs(repo, view, image_only=image_only).changes, problems
            except (NoDeployments, PlaceUnread, UnresolvedDeployment) as error:
                problems = problems or (error.message,)
        return gc.plan_refs(repo, None).changes, problems

    # -- changing ------------------------------------------------------------------------------------------------------

    @checked
    def create(
        self,
        deployment: str,
        manifest: str | None = None,
        *,
        force: bool = False,
        bind: bool = False,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> refs.DeploymentPlan:
        """Make the ref of a deployment, as an updater wants it.

        Args:
            deployment: its whole id; of one that is there also the start of it, or its state.
            manifest: any name of its manifest; None looks it up.
            force: make it also where the manifest was made into other images, and move a ref that names another manifest.
            bind: make the refs of its bound app images, too.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            UnresolvedDeployment: no manifest was given, and none is found, or several.
            RefusedError: ``deployment-mismatch``; ExpectationFailed, IncompleteTarget.
        """
        from cfs_tags.host import refs
        from cfs_tags.tags.names import resolve

        repo, wait, note = self._repo, seconds(timeout, "timeout"), self._repo.note(reason, by)
        writable = None if dry_run else repo.writable()
        text = deployment.removeprefix("@deployment/")
        if f"@{text.removeprefix('@')}" in _STATES or (len(text) < repo.algorithm.hex_length and self.are_seen):
            name = self.get(text).id
        else:
            name = DeploymentId.parse(text, repo.algorithm)
        digest = resolve(repo, self.meant(manifest)) if manifest is not None else None
        view = self.view() if digest is None else None
        if writable is None:
            return refs.plan_create(repo, view, name, digest, force=force, bind=bind)
        return refs.create(writable, name, digest, view=view, force=force, bind=bind, note=note, timeout=wait)

    @checked
    def adopt(
        self, *, reason: str | None = None, by: str | None = None, timeout: timedelta = WAIT, dry_run: bool = False
    ) -> refs.DeploymentPlan:
        """Give every deployment its ref that has none, and whose manifest is known for sure and whole."""
        from cfs_tags.host import refs

        wait = seconds(timeout, "timeout")
        if dry_run:
            return refs.plan_adoption(self._repo, self.view())
        return refs.adopt(self._repo.writable(), self.view(), note=self._repo.note(reason, by), timeout=wait)

    @checked
    def record_good_boot(
        self,
        deployment: str = "booted",
        *,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> GoodBoot:
        """Write down that a deployment was booted successfully: it counts as known-good for policies of retention.

        Args:
            deployment: which.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            TargetNotFound: there is no such deployment.
        """
        from cfs_tags.host import good

        wait, note = seconds(timeout, "timeout"), self._repo.note(reason, by)
        repo = None if dry_run else self._repo.writable()
        view, name = self.view(), self.get(deployment).id
        if repo is None:
            return good.plan(self._repo, view, name).newest
        return good.record(repo, view, name, note=note, timeout=wait).newest

    @checked
    def retire(
        self,
        *deployments: str,
        grace: timedelta = _DAY,
        trust_clock: bool = False,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> refs.RetirePlan:
        """Remove the refs of deployments that are gone.  Call :meth:`adopt` first.

        Args:
            deployments: these alone.
            grace: keep a ref that long for a deployment that was never seen.
            trust_clock: believe a clock that was set back or far forward.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.
        """
        from cfs_tags.host import refs
        from cfs_tags.repo import clock

        repo, wait, age = self._repo, seconds(timeout, "timeout"), seconds(grace, "grace")
        only = [refs.referred_by(repo, self.meant(one)) for one in deployments]
        if dry_run:
            now = clock.read(repo, trusted=trust_clock).earliest
            return refs.plan_retire(repo, self.view(), only, grace=age, now=now)
        if trust_clock:
            clock.believe(repo.writable())
        return refs.retire(repo.writable(), self.view, only, grace=age, note=repo.note(reason, by), timeout=wait)

    @checked
    def bind(
        self,
        deployment: str | None = None,
        *,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> tuple[BindPlan, ...]:
        """Keep the app images that a deployment is bound to as long as the deployment; of all deployments for None."""
        from cfs_tags.host import bound

        repo, wait = self._repo, seconds(timeout, "timeout")
        if deployment is not None:
            ids = [self.get(deployment).id]
        else:
            ids = [row.id for row in self.list() if row.state != "gone" and repo.image_object(row.id) is not None]
        if dry_run:
            return tuple(bound.plan_bind(repo, name) for name in ids)
        note = repo.note(reason, by)
        return tuple(bound.bind(repo.writable(), name, note=note, timeout=wait) for name in ids)

    @checked
    def migrate(
        self,
        *,
        manifests: Mapping[str, str] | None = None,
        write_origin: bool = False,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> MigratePlan:
        """Give every deployment of a host its ref, with a proof that nothing is lost.

        Args:
            manifests: ids or the start of one, with digests: for deployments whose manifest is not known.
            write_origin: add the missing ``manifest_digest`` to origin files.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.

        Raises:
            RefusedError: content would be lost; nothing was changed.
        """
        from cfs_tags import migrate as migrating

        wait, view = seconds(timeout, "timeout"), self.view()
        for prefix in manifests or ():
            if not prefix or len(prefix) > self._repo.algorithm.hex_length:
                raise invalid("manifests", prefix, "is neither an id nor the start of one")
        given = migrating.manifests_by(view, manifests or {})
        if dry_run:
            return migrating.plan(self._repo, view, manifests=given, write_origin=write_origin)
        note = self._repo.note(reason, by)
        repo = self._repo.writable()
        return migrating.migrate(repo, view, manifests=given, write_origin=write_origin, note=note, timeout=wait)

    @checked
    def undo_migration(
        self,
        *,
        force: bool = False,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> UndoPlan:
        """Take back what the last migration wrote; ``force`` leaves a tag ``migrated/<id>`` where content would become garbage.

        Raises:
            NotFoundError: there is no record of a migration.
            RefusedError (would-lose-content): content would become garbage.
        """
        from cfs_tags import migrate as migrating

        wait, view = seconds(timeout, "timeout"), self.view()
        if dry_run:
            return migrating.plan_undo(self._repo, view, force=force)
        note = self._repo.note(reason, by)
        return migrating.undo(self._repo.writable(), view, force=force, note=note, timeout=wait)

    @checked
    def revive(
        self,
        deployment: str,
        *,
        to: str | None = None,
        bootc: str | None = None,
        force: bool = False,
        sources: Sequence[str] = (),
        skopeo: str | None = None,
        cfsctl: str | None = None,
        temporary: str = "/var/tmp",
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Revived:
        """Bring a deployment back that bootc has deleted and refs keep: export its image, and have bootc deploy it.

        Args:
            deployment: as with :meth:`cfs_tags.api.pins.Pins.target`, or the name of a pin.
            to: a directory for the layout; None: one that is named after the deployment, for root in
                ``/var/lib/cfs-tags/revive``, else in ``temporary``.  bootc takes updates from it until it is told otherwise.
            bootc: the path of that program; None exports alone.
            force: also one that is still deployed.
            sources: where what is missing is fetched from first, as for
                :meth:`cfs_tags.api.repository.Repository.repair_from`.
            skopeo: the path of that program.
            cfsctl: the path of that program.
            temporary: a directory for temporary files.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing: the result has the plan alone.
            progress: told now and then how many bytes of how many are exported.

        Raises:
            RefusedError: ``still-deployed``, ``not-revivable`` (something is missing), ``not-running`` (bootc deploys to the
                running system alone).
            NotFoundError, UnresolvedDeployment: it stands for nothing, or its manifest is not known.
            RefusedError: ``foreign-owner``, ``open-to-others``: the directory for the layout is there, and others can change
                what bootc would deploy.
            CfsTagsError (program-failed): bootc; the layout stays.
        """
        from cfs_tags.api.pins import Pins
        from cfs_tags.apps import reviving
        from cfs_tags.apps.workdir import Machine
        from cfs_tags.host.pins import usual_name

        repo, wait, note = self._repo, seconds(timeout, "timeout"), self._repo.note(reason, by)
        writable = None if dry_run else repo.writable()
        one, digest = Pins(repo, self).target(deployment, pinned=True)
        view = self.view() if self.are_seen else None
        layout = os.path.abspath(to or reviving.usual_layout(usual_name(one, digest), temporary))
        if ":" in layout:
            raise invalid("to", layout, "has a colon, at which bootc takes the path to end")

        def plan(*, mended: bool = False) -> Revival:
            return reviving.plan_revival(repo, view, one, digest, layout, force=force, mended=mended)

        if writable is None:
            return reviving.Revived(plan(mended=bool(sources)))
        if bootc is not None:
            reviving.need_running(view)
        machine = Machine(temporary, skopeo, cfsctl)
        if sources and plan(mended=True).missing:
            from cfs_tags.apps.importing.choose import DEFAULT_LIMIT
            from cfs_tags.apps.importing.source import open_source
            from cfs_tags.apps.mending import repair_from

            with ExitStack() as stack:
                opened = [open_source(text, machine, DEFAULT_LIMIT, offers=False) for text in sources]
                for source in opened:
                    stack.callback(source.close)
                repair_from(writable, opened, machine, note=note, timeout=wait)
        return reviving.revive(writable, plan, machine, bootc, note=note, timeout=wait, progress=progress)

    def _whole_id(self, root: str, text: str) -> str:
        """The id that is meant, whole or by the start of one that has a state directory."""
        digits = self._repo.algorithm.hex_length
        if not text or len(text) > digits or not set(text) <= set("0123456789abcdef"):
            raise invalid("booted", text, f"is no deployment id: those have {digits} digits of 0-9 and a-f")
        if len(text) == digits:
            return text
        found: list[str] = []
        with suppress(OSError):
            found = sorted(
                name for name in os.listdir(f"{root}/{STATE_DEPLOY}") if name.startswith(text) and len(name) == digits
            )
        if not found:
            reason = f"is the start of no deployment that is there; whole ids have {digits} digits"
            raise invalid("booted", text, reason)
        if len(found) > 1:
            raise UsageError("ambiguous-name", name=text, candidates=tuple(found))
        return found[0]
