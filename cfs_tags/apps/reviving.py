"""Bringing a deployment back that bootc has deleted: its image is exported to a layout, and bootc deploys that.

bootc makes the same EROFS image of it, with the same id, because config and layers are the same bytes.  First it is looked
whether everything is there; objects of files in /boot that are gone come back from what a pin keeps beside (``host/pins.py``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps.exporting.export import Destination, plan_export, run_export
from cfs_tags.apps.workdir import Machine, run
from cfs_tags.errors import FormatError, RefusedError, SystemFailure
from cfs_tags.formats.boot.origin import MAX_ORIGIN, Origin, parse_origin
from cfs_tags.formats.boot.paths import STATE_DEPLOY
from cfs_tags.host import pins as keeping
from cfs_tags.host.lookup import version_of
from cfs_tags.repo import fsops, images
from cfs_tags.repo.directory import HostDirectory
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.owners import refuse_strangers
from cfs_tags.repo.transaction.change import NO_NOTE, Note
from cfs_tags.repo.transaction.run import record
from cfs_tags.tags import pins
from cfs_tags.values import DeploymentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfs_tags.apps.exporting.export import Exported
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.reflog import Fact
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.tags.pins import Pin

_BOOTC = "bootc"
_HOME = "/var/lib/cfs-tags/revive"
"""Where root's layouts are, unless another directory is named.  bootc takes updates from there until it is told otherwise: in a
directory where everybody may write, somebody else's layout could stand there once this one is gone, as by systemd-tmpfiles."""


class Revival(NamedTuple):
    """What bringing a deployment back comes to.

    Attributes:
        deployment: its id, which it will have again; None for an image of which no EROFS image for booting is known.
        manifest: what it was made from.
        version: as the image says.
        image: where the image came from, as bootc takes it, with the transport where that is no registry; None where no
            origin says it.
        pins: those that keep it, by name.
        put_back: objects that are gone and come back from what a pin keeps beside.
        missing: what else is missing, one line each: sources have to bring it back.
        layout: the directory that the image is exported to.
        name: of the image there.
        etc: the directory with the /etc that it had, where that is still there.
    """

    deployment: DeploymentId | None
    manifest: Digest
    version: str | None
    image: tuple[str, str] | None
    pins: tuple[str, ...]
    put_back: tuple[ObjectId, ...]
    missing: tuple[str, ...]
    layout: str
    name: str
    etc: str | None

    @property
    def switch(self) -> tuple[str, ...]:
        """The words with which bootc deploys the layout."""
        return (_BOOTC, "switch", "--transport", "oci", f"{self.layout}:{self.name}")

    @property
    def switch_back(self) -> tuple[str, ...] | None:
        """The words with which bootc takes its updates from where the image came from; None where that is not known.  After
        that nothing needs the layout."""
        if self.image is None:
            return None
        transport, name = self.image
        return (_BOOTC, "switch", *(() if transport == "docker" else ("--transport", transport)), name)


class Revived(NamedTuple):
    """What was done: the plan, what was exported, and whether bootc has deployed it; of what was only planned, the plan."""

    plan: Revival
    exported: Exported | None = None
    deployed: bool = False


def plan_revival(
    repo: ReadRepo,
    view: SysrootView | None,
    deployment: DeploymentId | None,
    digest: Digest,
    layout: str,
    *,
    force: bool = False,
    mended: bool = False,
) -> Revival:
    """Look whether a deployment can be brought back, and how.  Writes nothing.

    Args:
        repo: where.
        view: the sysroot; None where there is none.
        deployment: which; None for an image.
        digest: its manifest.
        layout: the directory for the export.
        force: also one that is still deployed.
        mended: what is missing is brought back before.

    Raises:
        RefusedError (still-deployed): some place has it.
        RefusedError (not-revivable): something of it is missing, and no pin has it.
        TargetNotFound: the manifest is gone.
        DamagedError: something is damaged.
    """
    places = view.seen.get(deployment, frozenset()) if view is not None and deployment is not None else frozenset()
    if places and not force:
        raise RefusedError("still-deployed", deployment=deployment, places=tuple(sorted(places)))
    known = [pin for pin in pins.list_pins(repo) if pin.manifest == digest or (deployment and pin.deployment == deployment)]
    put_back = sorted({one for pin in known for one in keeping.lacking(repo, pin)})
    origin = _origin(repo, view, deployment, known)
    source = str(origin.image) if origin is not None and origin.image is not None else None
    missing = _missing(repo, digest, put_back)
    if missing and not mended:
        raise RefusedError("not-revivable", target=deployment or digest, missing=missing, source=source)
    image = images.load(repo, digest)
    if deployment is None:
        deployment = next((pin.deployment for pin in known if pin.deployment is not None), None)
    return Revival(
        deployment,
        digest,
        version_of(image),
        (origin.image.transport, origin.image.name) if origin is not None and origin.image is not None else None,
        tuple(pin.name for pin in known),
        tuple(put_back),
        missing,
        layout,
        keeping.usual_name(deployment, digest),
        f"{view.sysroot.root}/{STATE_DEPLOY}/{deployment}/etc" if view is not None and "state" in places else None,
    )


def _missing(repo: ReadRepo, digest: Digest, put_back: Sequence[ObjectId]) -> tuple[str, ...]:
    """What is missing of an image and does not come back, one line each."""
    lines = list(images.missing_parts(repo, digest))
    if not lines:
        for part in images.missing_content(repo, digest):
            objects = tuple(one for one in part.objects if one not in put_back)
            if objects:
                lines.append(images.describe(repo, part._replace(objects=objects)))
    return tuple(lines)


def _origin(repo: ReadRepo, view: SysrootView | None, deployment: DeploymentId | None, known: Sequence[Pin]) -> Origin | None:
    """The origin that it has, or had when it was pinned."""
    found = view.origins.get(deployment) if view is not None and deployment is not None else None
    if isinstance(found, Origin):
        return found
    for pin in known:
        try:
            data = pins.kept_file(repo, pin, pins.ORIGIN, MAX_ORIGIN)
            if data is not None:
                return parse_origin(data)
        except FormatError:
            continue
    return None


def revive(
    repo: WriteRepo,
    plan: Callable[[], Revival],
    machine: Machine,
    bootc: str | None,
    *,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
) -> Revived:
    """Bring a deployment back: :func:`plan_revival`, carried out.

    Args:
        repo: where.
        plan: makes the plan.
        machine: for the export.
        bootc: the path of that program; None exports alone.
        note: for the log.
        timeout: seconds to wait for the lock.
        progress: is called with the bytes of layers that were exported, and of all.

    Raises:
        CfsTagsError (program-failed): bootc; the layout stays.
        RefusedError, DamagedError, SystemFailure: as :func:`plan_revival` and
            :func:`cfs_tags.apps.exporting.export.run_export`.
    """
    with repo.locked("shared", timeout):
        wanted = plan()
        _own_directory(wanted.layout)
        for pin in pins.list_pins(repo):
            if pin.name in wanted.pins:
                keeping.put_back(repo, pin)
        where = Destination(f"oci:{wanted.layout}:{wanted.name}", "oci", wanted.layout, wanted.name)
        exported = run_export(repo, lambda: plan_export(repo, f"@{wanted.manifest}", where), machine, timeout, progress)
    if bootc is not None:
        run(bootc, *wanted.switch[1:])
    facts: dict[str, Fact] = {"deployment": wanted.deployment, "manifest": wanted.manifest, "layout": wanted.layout}
    facts |= {"objects": len(wanted.put_back), "deployed": int(bootc is not None)}
    record(repo, "revive", facts, note, timeout)
    return Revived(wanted, exported, bootc is not None)


def usual_layout(name: str, temporary: str) -> str:
    """The directory for the layout where none is named; ``temporary`` is where those of other users than root are."""
    return f"{_HOME}/{name}" if os.geteuid() == 0 else f"{temporary}/cfs-tag-revive-{name}"


def _own_directory(path: str) -> None:
    """Make the directory for the layout, and its usual home.  One that is there in a place where everybody may write must be
    ours: root deploys what is in it.

    Raises:
        RefusedError (foreign-owner, open-to-others): others can change what is in it.
        SystemFailure: the system refused.
    """
    homes = (os.path.dirname(_HOME), _HOME) if path.startswith(f"{_HOME}/") else ()
    try:
        for one in (*homes, path):
            with HostDirectory(os.path.dirname(one)) as above:
                fsops.make_directory(above.fd, os.path.basename(one))
        found = os.lstat(path)
    except OSError as error:
        raise SystemFailure.of(error, "write", path) from error
    refuse_strangers(found, path)


def need_running(view: SysrootView | None) -> None:
    """Look whether bootc deploys to the host that is meant.

    Raises:
        RefusedError (not-running): the host is not the system that runs.
    """
    if view is None or view.sysroot.mounts is None:
        raise RefusedError("not-running", path=view.sysroot.root if view is not None else "a repository without its host")
