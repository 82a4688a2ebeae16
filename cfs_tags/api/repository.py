"""A repository as programs use it: what the commands have, with Python's own durations and instants."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, overload

from cfs_tags.api.arguments import WAIT, Home, Owner, checked, positive, seconds
from cfs_tags.api.handle import STATE, Handle, Places
from cfs_tags.repo.store import WriteRepo

if TYPE_CHECKING:
    from cfs_tags.api.collection import Collection
    from cfs_tags.api.deployments import Deployments
    from cfs_tags.api.pins import Pins
    from cfs_tags.api.policy import Retention
    from cfs_tags.api.tags import Tags
    from cfs_tags.apps.exporting.export import Exported
    from cfs_tags.apps.importing.run import Imported
    from cfs_tags.apps.mending import Mended
    from cfs_tags.df import Usage
    from cfs_tags.diff import Difference
    from cfs_tags.fleet.publish import Published
    from cfs_tags.fsck.check import Report
    from cfs_tags.fsck.repair import Repaired
    from cfs_tags.maintain import Maintained
    from cfs_tags.repo.images import StoredImage
    from cfs_tags.why import Why

Compression = Literal["none", "gzip", "zstd"]
Progress = Callable[[int, int], None]


class Repository(Handle):
    """A repository: a context manager, or to be closed.

    What is opened without ``write`` cannot be changed: what would change it raises RefusedError (``read-only-repository``).
    All methods raise :class:`cfs_tags.errors.CfsTagsError` alone, of an argument of a wrong type or value UsageError
    (``invalid-argument``).
    """

    @overload
    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        write: Literal[False] = False,
        fd: int = -1,
        sysroot: str | None = None,
        boot: str | None = None,
        esp: str | None = None,
        run: str | None = None,
        booted: str | None = None,
    ) -> Repository: ...
    @overload
    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        write: Literal[True],
        fd: int = -1,
        sysroot: str | None = None,
        boot: str | None = None,
        esp: str | None = None,
        run: str | None = None,
        booted: str | None = None,
    ) -> WriteRepository: ...
    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        write: bool = False,
        fd: int = -1,
        sysroot: str | None = None,
        boot: str | None = None,
        esp: str | None = None,
        run: str | None = None,
        booted: str | None = None,
    ) -> Repository:
        """Open a repository.  Takes no lock and writes nothing.

        Args:
            path: of the repository directory.
            write: whether it is to be changed.
            fd: a descriptor of that directory, where the caller has it open; it is closed with the repository.
            sysroot: the physical root of the host; None: the directory above, where ``state/deploy`` is there.
            boot: the boot directory; ``none``: there is none; None: where it is by rule.
            esp: where the EFI system partition is mounted; likewise.
            run: the system's ``/run``; likewise.
            booted: the booted deployment of another system, by its id or the start of one; likewise.

        Raises:
            RepositoryNotFound: there is none at ``path``.
            RefusedError: this process is root's, and the repository another user's (code ``foreign-owner``); ``write``, and
                others can write a directory of it (``open-to-others``, see ``owners.py``), or it may only be read
                (``read-only-repository``): an unknown read-only-compatible feature, or a file system that is mounted
                read-only.
            UnsupportedError: it was made by or for a newer program.
            FormatError: ``meta.json`` makes no sense.
            SystemFailure: the system refused, for example for lack of permission.
        """
        # at the end of this module, where the classes are known
        return _opened(path, write=write, fd=fd, sysroot=sysroot, boot=boot, esp=esp, run=run, booted=booted)

    # -- parts ---------------------------------------------------------------------------------------------------------

    @property
    def tags(self) -> Tags:
        """Its tags, and changing them."""
        from cfs_tags.api.tags import Tags

        return Tags(self, self.deployments)

    @property
    def deployments(self) -> Deployments:
        """The deployments of its host, and their refs."""
        from cfs_tags.api.deployments import Deployments

        return Deployments(self)

    @property
    def pins(self) -> Pins:
        """Deployments and images that are kept, and keeping them."""
        from cfs_tags.api.pins import Pins

        return Pins(self, self.deployments)

    @property
    def gc(self) -> Collection:
        """Collecting garbage."""
        from cfs_tags.api.collection import Collection

        return Collection(self, self.deployments)

    @property
    def policy(self) -> Retention:
        """Which tags stay by rules, and deleting the others."""
        from cfs_tags.api.policy import Retention

        return Retention(self)

    # -- looking -------------------------------------------------------------------------------------------------------

    @checked
    def image(self, name: str) -> StoredImage:
        """The image of a name: manifest, config, layers and EROFS images.

        Raises:
            NotFoundError: the name stands for nothing.
            DamagedError: a part of it is missing or damaged.
        """
        from cfs_tags.repo.images import load

        return load(self, self.tags.resolve(name))

    @checked
    def raw(self, name: str, part: Literal["manifest", "config"]) -> bytes:
        """The bytes of the manifest or config of a name, checked against their digest.  Raises as :meth:`image`."""
        from cfs_tags.repo import images

        return (images.raw_manifest if part == "manifest" else images.raw_config)(self, self.tags.resolve(name))

    @checked
    def df(self, *, without: Sequence[str] = (), timeout: timedelta = WAIT) -> Usage:
        """Who takes how much: by tag, deployment and owner.

        Args:
            without: names whose deletion together is asked about, or digests, with six or more digits, of images that one tag
                alone names.
            timeout: how long the lock is waited for.
        """
        from cfs_tags.df import measure
        from cfs_tags.tags.names import tag_of

        with self.locked("shared", seconds(timeout, "timeout")):
            changes, unresolved = self.deployments.planned_changes()
            usage = measure(self, [tag_of(self, self.deployments.meant(name)) for name in without], changes)
        return usage._replace(problems=(*unresolved, *usage.problems))

    @checked
    def why(self, target: str, path: str | None = None, *, timeout: timedelta = WAIT) -> Why:
        """Why something is kept: every chain from a ref to it.

        Args:
            target: the id of an object or six of its digits, a name in ``streams/``, a digest, any name of a tag.
            path: of a file in the image that ``target`` names: then its content is meant.
            timeout: how long the lock is waited for.
        """
        from cfs_tags.why import explain

        with self.locked("shared", seconds(timeout, "timeout")):
            changes, unresolved = self.deployments.planned_changes()
            answer = explain(self, self.deployments.meant(target), path, changes)
        return answer._replace(problems=(*unresolved, *answer.problems))

    @checked
    def diff(self, old: str, new: str, below: Sequence[str] = (), *, timeout: timedelta = WAIT) -> Difference:
        """How two images or deployments differ: layers, config, packages and files.

        Args:
            old: any name.
            new: any name.
            below: paths; only files there are compared.
            timeout: how long the lock is waited for.
        """
        from cfs_tags.diff import diff

        with self.locked("shared", seconds(timeout, "timeout")):
            return diff(self, self.deployments.meant(old), self.deployments.meant(new), below)

    @checked
    def fsck(self, *, content: bool = False, timeout: timedelta = WAIT, progress: Progress | None = None) -> Report:
        """Check refs, links, streams, images and digests.

        Args:
            content: read every byte, too.
            timeout: how long the lock is waited for.
            progress: told now and then how much of how much is done.
        """
        from cfs_tags.fsck.check import fsck

        return fsck(self, content=content, progress=progress, timeout=seconds(timeout, "timeout"))

    @checked
    def export_image(
        self,
        name: str,
        destination: str,
        *,
        compression: Compression = "none",
        skopeo: str | None = None,
        temporary: str = "/var/tmp",
        timeout: timedelta = WAIT,
        progress: Progress | None = None,
    ) -> Exported:
        """Take an image out of the repository.

        Args:
            name: any name.
            destination: ``oci:DIR[:NAME]`` or ``oci-archive:FILE[:NAME]``; with skopeo whatever that knows.
            compression: of the layers.
            skopeo: the path of that program.
            temporary: a directory for temporary files.
            timeout: how long the lock is waited for.
            progress: told now and then how many bytes of how many are written.
        """
        from cfs_tags.apps.exporting.export import parse_destination, plan_export, run_export
        from cfs_tags.apps.workdir import Machine

        where, meant = parse_destination(destination), self.deployments.meant(name)
        wait = seconds(timeout, "timeout")
        machine = Machine(temporary, skopeo)
        return run_export(self, lambda: plan_export(self, meant, where, compression), machine, wait, progress)

    @checked
    def metrics(self, *, space: bool = True, timeout: timedelta = WAIT) -> str:
        """Figures in the text format of Prometheus: refs, space, deployments, the last collection and check.

        Args:
            space: look at every object, for figures about space; under the shared lock.
            timeout: how long the lock is waited for.

        Raises:
            CfsTagsError (missing-extra): the package prometheus-client is not installed.
        """
        from cfs_tags import metrics
        from cfs_tags.df import measure

        usage, wait = None, seconds(timeout, "timeout")
        view = self.deployments.view() if self.deployments.are_seen else None
        if space:
            with self.locked("shared", wait):
                usage = measure(self, (), self.deployments.planned_changes()[0])
        return metrics.text(self, view, usage).decode()

    # -- registries ----------------------------------------------------------------------------------------------------

    @checked
    def publish(
        self,
        place: str,
        *,
        name: str | None = None,
        refresh: timedelta = timedelta(days=1),
        restore: bool = False,
        credentials: Sequence[str] = (),
        plain: bool = False,
        state: str = STATE,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
    ) -> Published:
        """Tag what the host uses in its registry, and say there what runs here.  The repository is only read.

        Args:
            place: ``registry/repository``.
            name: of the host; None: a hash of its machine-id.
            refresh: after which time an unchanged host is published again.
            restore: upload images that the registry has lost.
            credentials: files as podman and Docker keep them, the first counts first.
            plain: HTTP without TLS.
            state: the directory where it is remembered what was published.
            timeout: how long locks are waited for.
            dry_run: compare, and change nothing: the result has the plan alone.
        """
        from cfs_tags.api import fleet
        from cfs_tags.remote.names import Access

        return fleet.publish(
            self,
            self.deployments,
            place,
            Access(credentials, plain=plain),
            name=name,
            refresh=refresh,
            restore=restore,
            state=state,
            timeout=timeout,
            dry_run=dry_run,
        )

    # -- changing ------------------------------------------------------------------------------------------------------

    @checked
    def repair(
        self,
        *,
        content: bool = False,
        owners: Sequence[Owner] = (),
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Repaired:
        """Check, and repair what can be repaired without losing anything.

        Args:
            content: read every byte, too.
            owners: owners besides ``app`` whose broken refs are taken out.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.
            progress: told now and then how much of how much is done.
        """
        from cfs_tags.fsck.repair import repair

        wait, note = seconds(timeout, "timeout"), self.note(reason, by)
        repo = self.writable()
        return repair(repo, content=content, owners=owners, dry_run=dry_run, note=note, progress=progress, timeout=wait)

    @checked
    def repair_from(
        self,
        sources: Sequence[str],
        *,
        content: bool = False,
        owners: Sequence[Owner] = (),
        largest_layer: int | None = None,
        skopeo: str | None = None,
        cfsctl: str | None = None,
        temporary: str = "/var/tmp",
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Repaired, Mended]:
        """Repair, and bring back what is missing behind refs from where it can be had.

        Args:
            sources: as for :meth:`import_image`, without the name of an image or with any: what is wanted is asked for by
                digest; ``http://HOST:PORT`` is another host's registry as this program serves it.
            content: read every byte, too.
            owners: owners besides ``app`` whose broken refs are taken out.
            largest_layer: bytes of the largest layer, uncompressed, that is taken.
            skopeo: the path of that program.
            cfsctl: the path of that program, which makes EROFS images again.
            temporary: a directory for temporary files.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing.
            progress: told now and then how much of how much is checked.
        """
        from contextlib import ExitStack

        from cfs_tags.apps.importing.choose import DEFAULT_LIMIT
        from cfs_tags.apps.importing.source import open_source
        from cfs_tags.apps.mending import repair_from
        from cfs_tags.apps.workdir import Machine

        limit = positive(largest_layer, "largest_layer") or DEFAULT_LIMIT
        wait, note = seconds(timeout, "timeout"), self.note(reason, by)
        repo, machine = self.writable(), Machine(temporary, skopeo, cfsctl)
        with ExitStack() as stack:
            opened = []
            for text in sources:
                opened.append(open_source(text, machine, limit, offers=False))
                stack.callback(opened[-1].close)
            return repair_from(
                repo,
                opened,
                machine,
                content=content,
                owners=owners,
                dry_run=dry_run,
                note=note,
                limit=limit,
                progress=progress,
                timeout=wait,
            )

    @checked
    def import_image(
        self,
        source: str,
        name: str | None = None,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        keep_index: bool = False,
        referrers: bool = True,
        force: bool = False,
        home: Home | None = None,
        owners: Sequence[Owner] = (),
        largest_layer: int | None = None,
        peers: Sequence[str] = (),
        skopeo: str | None = None,
        temporary: str = "/var/tmp",
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = WAIT,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Imported:
        """Bring an image into the repository, and give it a tag.

        Args:
            source: ``oci:DIR[:NAME]``, ``oci-archive:FILE``, ``docker-archive:FILE``; with skopeo whatever that knows.
            name: of the tag; None: what the source calls it.
            platform: which image of an index, such as ``linux/arm64``; None: the one for this machine.
            all_platforms: all images of an index.
            keep_index: keep the index, too.
            referrers: take signatures and the like with it.
            force: move a tag that names something else.
            home: who sees the tag; None: it is shared unless bootc could choke on it.
            owners: owners besides ``app`` whose tags may be moved.
            largest_layer: bytes of the largest layer, uncompressed, that is taken.
            peers: other hosts (``http://HOST:PORT``) that may have layers.
            skopeo: the path of that program.
            temporary: a directory for temporary files.
            reason: for the log.
            by: for the log.
            timeout: how long locks are waited for.
            dry_run: change nothing: the result has the plan alone.
            progress: told now and then how many bytes of how many are read.
        """
        from cfs_tags.apps import platforms
        from cfs_tags.apps.importing.choose import DEFAULT_LIMIT, Options
        from cfs_tags.apps.importing.plan import plan_import
        from cfs_tags.apps.importing.run import Imported, run_import
        from cfs_tags.apps.importing.source import open_source
        from cfs_tags.apps.importing.source.http import Server
        from cfs_tags.apps.importing.source.shared import Shared
        from cfs_tags.apps.workdir import Machine

        limit = positive(largest_layer, "largest_layer") or DEFAULT_LIMIT
        wanted = platforms.parse(platform) if platform is not None else None
        options = Options(wanted, all_platforms, keep_index, referrers, force, home, owners, limit)
        wait, note = seconds(timeout, "timeout"), self.note(reason, by)
        repo = self if dry_run else self.writable()
        hosts = [Server(address) for address in peers]
        opened = open_source(source, Machine(temporary, skopeo), limit)
        if hosts and isinstance(repo, WriteRepo):
            opened = Shared(opened, repo, hosts)
        try:
            if dry_run or not isinstance(repo, WriteRepo):
                return Imported(plan_import(repo, opened, name, options))
            return run_import(repo, opened, lambda: plan_import(repo, opened, name, options), note, wait, progress=progress)
        finally:
            opened.close()

    @checked
    def maintain(
        self,
        *,
        within: timedelta = timedelta(minutes=30),
        free_bytes: int | None = None,
        check_every: timedelta = timedelta(days=30),
        no_sysroot: bool = False,
        reason: str | None = None,
        by: str | None = None,
        timeout: timedelta = timedelta(minutes=5),
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Maintained:
        """Adopt deployments, apply the policy, collect, and check a part of the objects: what a timer does.

        A step that is refused is listed in ``failures``; the steps after it are done.

        Args:
            within: delete and check no more after that time.
            free_bytes: collect no more when so many bytes were freed.
            check_every: read each object once in that time: each run does what is due; no time at all: none is read.
            no_sysroot: look at no deployments.
            reason: for the log.
            by: for the log.
            timeout: how long a lock is waited for, each time.
            dry_run: change nothing; nothing is checked either.
            progress: told now and then how far the collection is.
        """
        from cfs_tags.maintain import Budget, maintain

        budget = Budget(seconds(within, "within"), positive(free_bytes, "free_bytes"), seconds(check_every, "check_every"))
        wait, note = seconds(timeout, "timeout"), self.note(reason, by)
        repo = self.writable()
        view = self.deployments.view if self.deployments.are_seen and not no_sysroot else None
        return maintain(repo, view, budget, note=note, timeout=wait, dry_run=dry_run, progress=progress)


class WriteRepository(Repository, WriteRepo):
    """A repository that may be changed."""

    def writable(self) -> WriteRepo:
        """This, to be changed."""
        return self


class _Opening:
    """The arguments of :meth:`Repository.open`, looked at as those of any method."""

    @checked
    def open(
        self,
        path: str | os.PathLike[str],
        *,
        write: bool,
        fd: int,
        sysroot: str | None,
        boot: str | None,
        esp: str | None,
        run: str | None,
        booted: str | None,
    ) -> Repository:
        repo = (WriteRepository if write else Repository)(os.fspath(path), fd)
        repo.places = Places(sysroot, boot, esp, run, booted)
        return repo


_opened = _Opening().open
