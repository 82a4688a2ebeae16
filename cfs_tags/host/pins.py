"""Making and removing pins, and what is kept beside their refs (``tags/pins.py`` has the form of both).

What is beside is made before the refs and removed after them, with the refs lock held; what an interruption leaves there is
removed by the next of these commands, or the next collection.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import (
    CfsTagsError,
    FormatError,
    IncompleteTarget,
    RefusedError,
    SystemFailure,
)
from cfs_tags.formats import erofstree
from cfs_tags.formats.boot import grub, paths
from cfs_tags.formats.boot.origin import MAX_ORIGIN
from cfs_tags.host.refs import name_configs
from cfs_tags.repo import fsops, images, layout, reflog, verity
from cfs_tags.repo.directory import Directory, HostDirectory
from cfs_tags.repo.images import BOOT_KEY, EROFS_KEY
from cfs_tags.repo.incoming import put_in_place
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Command, Note, RefChange
from cfs_tags.tags import names, pins
from cfs_tags.tags.pins import Pin
from cfs_tags.values import ContentId, DeploymentId, Digest, ObjectId, TagName

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.images import StoredImage
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.repo.transaction.change import Row

_REFUSED = (errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP)
"""With which the system refuses a hard link where it would let the rest be done."""


class PinResult(NamedTuple):
    """What became, or would become, of a pin.

    ``done`` is ``pinned``, ``moved`` (its end is another), ``unchanged`` or ``unpinned``; ``expires`` is when it ends.
    """

    name: str
    done: str
    manifest: str | None
    deployment: str | None
    expires: str | None


class PinPlan(NamedTuple):
    """Changes that make or remove pins, and what they mean.

    ``settled`` are the directories of refs that are as they should be.
    """

    changes: tuple[RefChange, ...]
    results: tuple[PinResult, ...]
    settled: tuple[str, ...] = ()


# -- making ------------------------------------------------------------------------------------------------------------


def usual_name(deployment: DeploymentId | None, digest: Digest) -> str:
    """What a pin of a deployment or of a manifest is called where no name is given."""
    return (deployment or digest.hex)[:12]


def plan_pin(repo: ReadRepo, digest: Digest, deployment: DeploymentId | None, name: str, expires: str | None) -> PinPlan:
    """Plan a pin.

    Args:
        repo: where.
        digest: of the manifest.
        deployment: whose; None pins an image, with the EROFS image for booting that was made of it, where there is one.
        name: of the pin.
        expires: when it ends (``YYYYMMDDThhmmssZ``); None for never.

    Raises:
        UsageError (invalid-tag-name): no pin may have that name.
        RefusedError (pin-exists): there is a pin of that name, which keeps something else.
        IncompleteTarget: something is missing that would be needed to bring it back.
        DamagedError: something is damaged.
    """
    name = TagName.parse(name)
    missing = images.missing_lines(repo, digest)
    if missing:
        raise IncompleteTarget(target=digest, missing=missing)
    image = images.load(repo, digest)
    if deployment is None:
        deployment = _boot_image(repo, image)
    else:
        linked = repo.image_object(deployment)
        if linked is None or not repo.has_object(linked):
            raise IncompleteTarget(target=f"deployment {deployment}", missing=(f"EROFS image images/{deployment} is gone",))
    known = [pin for pin in pins.list_pins(repo, exact=True) if pin.name == name]
    current = next((pin for pin in known if not pin.has_ended), None)
    if current is not None and (current.manifest != digest or (current.deployment or deployment) != deployment):
        kept = current.deployment or current.manifest or "something else"
        raise RefusedError("pin-exists", name=name, found=kept, wanted=deployment or digest)
    wanted = {"manifest": ContentId.manifest(digest), "config": ContentId.config(image.manifest.config.digest)}
    links = {pins.path_of(part, expires, name): target for part, target in wanted.items()}
    if deployment is not None:
        links[pins.path_of("image", expires, name)] = ContentId.trusted(deployment)
    changes = []
    for path, target in links.items():
        link = layout.ref_link(path, target)
        found = repo.read_link(path)
        if found != link:
            changes.append(RefChange(path, found, link, "pin"))
    # the new ones first: at no instant is the content without a ref
    for pin in known:
        action = "expire" if pin.has_ended else "pin"
        changes += [RefChange(path, link, None, action) for path, link in pin.links.items() if path not in links]
    done = "pinned" if current is None else "moved" if changes else "unchanged"
    settled = tuple(sorted({path.rpartition("/")[0] for path in links}))
    return PinPlan(tuple(changes), (PinResult(name, done, digest, deployment, expires),), settled)


def pin(
    repo: WriteRepo,
    view: SysrootView | None,
    digest: Digest,
    deployment: DeploymentId | None,
    name: str,
    expires: str | None,
    *,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> PinPlan:
    """Make a pin, all its refs or none: :func:`plan_pin`, carried out.

    Args:
        repo: where.
        view: the sysroot, whose origin and boot entries are kept beside; None where there is none.
        digest: as there.
        deployment: as there.
        name: as there.
        expires: as there.
        note: for the log; the reason is shown with the pin, too.
        timeout: seconds to wait for the locks.

    Raises:
        SystemFailure: the system refused; nothing was pinned.
    """

    def prepare(plan: PinPlan) -> None:
        name_configs(repo, plan.changes)
        made = plan.results[0]
        tidy(repo, made.name if made.done == "pinned" else None)
        try:
            _keep_beside(repo, view, made, note)
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(repo.path, pins.home_of(made.name))) from error

    command = _asked("pin", name, digest, deployment or "", expires and "later")
    return run.transact(
        repo, lambda: plan_pin(repo, digest, deployment, name, expires), note, timeout, command=command, prepare=prepare
    )


def _asked(*parts: str | None) -> Command[PinPlan]:
    """What is asked for, so that it is known when it is asked for again after an interruption."""
    return Command(repr(parts), False, lambda made: made.results, _again)


def _again(changes: Sequence[RefChange], rows: Sequence[Row]) -> PinPlan | None:
    try:
        return PinPlan(tuple(changes), tuple(PinResult(*row) for row in rows))  # type: ignore[arg-type]
    except TypeError:
        return None


def _boot_image(repo: ReadRepo, image: StoredImage) -> DeploymentId | None:
    """The EROFS image for booting that was made of an image, and may be mounted."""
    for key in sorted(image.erofs):
        target = image.erofs[key]
        if key.startswith(BOOT_KEY) and repo.image_object(target) == target:
            return DeploymentId.trusted(target)
    return None


# -- what is kept beside -----------------------------------------------------------------------------------------------


def _keep_beside(repo: WriteRepo, view: SysrootView | None, made: PinResult, note: Note) -> None:
    home = pins.home_of(made.name)
    objects = f"{home}/{pins.OBJECTS}"
    repo.make_directories(objects)
    if made.deployment is not None and made.manifest is not None:
        _link_objects(repo, made, Digest.trusted(made.manifest), objects)
    is_new = not repo.is_file(f"{home}/{pins.RECORD}")
    before = pins.Record()
    with suppress(FormatError):
        before = pins.read_record(repo, home)
    files: dict[str, bytes] = {}
    if view is not None and made.deployment:
        files, unread = _files_of_host(view, DeploymentId.trusted(made.deployment))
        if unread:
            repo.recovered.append(CfsTagsError("host-files-not-kept", name=made.name, count=len(unread), reason=unread[0]))
        if (unread or view.unread) and not {*before.entries} <= files.keys():
            files = {}  # what is kept already is more
    entries = [path for path in files if path != pins.ORIGIN]
    if pins.ORIGIN in files:
        _write(repo, f"{home}/{pins.ORIGIN}", files[pins.ORIGIN])
    for number, path in enumerate(entries):
        _write(repo, f"{home}/{pins.ENTRY}{number}", files[path])
    if is_new or entries or note.reason is not None:
        record = {
            "name": made.name,
            "made": before.made or reflog.timestamp(),
            "reason": note.reason if note.reason is not None else before.reason,
            "by": note.by if before.by is None or note.reason is not None else before.by,
            "entries": entries or before.entries,
        }
        _write(repo, f"{home}/{pins.RECORD}", json.dumps(record).encode("ascii"))
    for path in (objects, home, layout.PINNED):
        fsops.sync(repo.fd, path)


def _write(repo: WriteRepo, path: str, data: bytes) -> None:
    fsops.replace_file(repo.fd, path, data, f"{path}.new")


def _link_objects(repo: WriteRepo, made: PinResult, digest: Digest, home: str) -> None:
    """Give the objects of files in /boot a second name."""
    refused: list[OSError] = []
    for one in _boot_objects(repo, digest):
        try:
            fsops.add_name(repo.fd, layout.object_path(one), f"{home}/{one}")
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            refused.append(error)
    if refused:
        reason = os.strerror(refused[0].errno or 0)
        repo.recovered.append(CfsTagsError("boot-objects-not-kept", name=made.name, count=len(refused), reason=reason))


def _boot_objects(repo: ReadRepo, digest: Digest) -> set[ObjectId]:
    """The objects of files in /boot of the EROFS images of a manifest: those for booting have none."""
    found: set[ObjectId] = set()
    for key, target in images.load(repo, digest).erofs.items():
        if key.startswith(EROFS_KEY) and not key.startswith(BOOT_KEY):
            with repo.map(target, key) as data:
                found.update(one for _, one in erofstree.stored_files(data, "boot"))
    return found


def _files_of_host(view: SysrootView, deployment: DeploymentId) -> tuple[dict[str, bytes], list[str]]:
    """The origin and the files of the boot entries of a deployment by their paths, and why others could not be read."""
    files, unread = {}, []
    home = f"{paths.STATE_DEPLOY}/{deployment}/{paths.origin_name(deployment)}"
    places: dict[str, tuple[type[Directory], str, str, int]] = {pins.ORIGIN: (Directory, view.sysroot.root, home, MAX_ORIGIN)}
    for entry in view.entries:
        if entry.deployment == deployment and entry.kind != "uki":  # a program is no text
            places[entry.path] = (HostDirectory, *os.path.split(entry.path), grub.MAX_GRUB_CONFIG)
    for path, (kind, top, name, limit) in places.items():
        try:
            with kind(top) as opened:
                text = opened.read_file(name, limit)
        except OSError as error:
            unread.append(SystemFailure.of(error, "open", top).message)
        except CfsTagsError as error:
            unread.append(error.message)
        else:
            if text is not None:
                files[path] = text
    return files, unread


def put_back(repo: WriteRepo, pin: Pin) -> tuple[ObjectId, ...]:
    """Give objects that are gone their name again from what is kept beside a pin; which ones.

    Raises:
        SystemFailure: the system refused.
    """
    done = []
    try:
        for one in lacking(repo, pin):
            parent = layout.object_path(one).rpartition("/")[0]
            repo.make_directories(parent)
            again = partial(fsops.add_name, repo.fd, f"{pin.home}/{pins.OBJECTS}/{one}")
            if not again(layout.object_path(one)):  # it was cut, or is no file
                put_in_place(repo, layout.object_path(one), again)
            fsops.sync(repo.fd, parent)
            done.append(one)
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, layout.OBJECTS)) from error
    return tuple(done)


def lacking(repo: ReadRepo, pin: Pin) -> tuple[ObjectId, ...]:
    """The objects that are gone, or were cut to no bytes, and that a pin still has, whole."""
    home = f"{pin.home}/{pins.OBJECTS}"
    found = []
    listed: Sequence[str] = ()
    with suppress(FormatError):  # something else stands there, and the refs keep what they keep
        listed = repo.names(home) or ()
    kept = []
    for name in listed:
        with suppress(CfsTagsError):
            kept.append(ObjectId.parse(name, repo.algorithm))
    for one in images.absent_objects(repo, kept):
        with suppress(CfsTagsError):  # what is beside it, or in its place, is no file
            if not repo.is_directory(layout.object_path(one)) and _measured(repo, f"{home}/{one}") == one:
                found.append(one)
    return tuple(found)


def keep_anew(repo: WriteRepo, objects: Collection[str]) -> None:
    """Have pins keep these objects as they are now, where they keep them beside: what was damaged has been replaced.

    Raises:
        SystemFailure: the system refused.
    """
    for pin in pins.list_pins(repo) if objects else ():
        home = f"{pin.home}/{pins.OBJECTS}"
        for one in sorted(set(repo.names(home) or ()).intersection(objects)):
            try:
                _keep(repo, layout.object_path(ObjectId.trusted(one)), f"{home}/{one}")
            except OSError as error:
                raise SystemFailure.of(error, "write", os.path.join(repo.path, home, one)) from error


def _keep(repo: WriteRepo, path: str, beside: str) -> None:
    put_in_place(repo, beside, lambda spare: fsops.add_name(repo.fd, path, spare))


def _measured(repo: ReadRepo, path: str) -> ObjectId | None:
    fd = repo.open_file(path)
    if fd is None:
        return None
    try:
        with repo.reading(path):
            return verity.measured(fd, repo.algorithm)
    finally:
        os.close(fd)


def tidy(repo: WriteRepo, new: str | None = None) -> None:
    """Remove what is kept beside refs that are no more; the refs lock is held.

    Args:
        repo: where.
        new: the name of a pin that is to be made: what is kept under it is that of an older one.
    """
    try:
        kept = repo.names(layout.PINNED)
    except FormatError:  # somebody's file of that name; fsck names it
        return
    if not kept:
        return
    homes = {pin.home for pin in pins.list_pins(repo) if pin.name != new}
    for name in kept:
        path = f"{layout.PINNED}/{name}"
        if path not in homes:
            with suppress(OSError, CfsTagsError):  # the next one finds it again
                _remove(repo, path)


def _remove(repo: WriteRepo, path: str) -> None:
    """Remove what is at a path, whatever it is, with all that is below."""
    found = {path: repo.is_directory(path)}
    open_ones = [path] if found[path] else []
    while open_ones:
        place = open_ones.pop()
        for one in (f"{place}/{name}" for name in repo.names(place) or ()):
            found[one] = repo.is_directory(one)
            if found[one]:
                open_ones.append(one)
    for one, is_directory in reversed(found.items()):  # what is below a directory was found after it
        (fsops.remove_directory if is_directory else fsops.remove)(repo.fd, one)


# -- removing ----------------------------------------------------------------------------------------------------------


def plan_unpin(repo: ReadRepo, texts: Sequence[str]) -> PinPlan:
    """Plan the removal of pins.

    Args:
        repo: where.
        texts: a name of a pin, or a deployment that one pin keeps: its id, the start of one, ``@deployment/`` before it.

    Raises:
        NotFoundError (pin-not-found): there is none.
        UsageError (ambiguous-name): a deployment has several.
    """
    known = [pin for pin in pins.list_pins(repo, exact=True) if not pin.has_ended]
    chosen: dict[str, Pin] = {}
    for text in texts:
        one = meant(known, text)
        chosen[one.name] = one
    changes = [RefChange(path, link, None, "unpin") for pin in chosen.values() for path, link in pin.links.items()]
    results = [PinResult(pin.name, "unpinned", pin.manifest, pin.deployment, pin.expires) for pin in chosen.values()]
    return PinPlan(tuple(changes), tuple(results))


def meant(known: Sequence[Pin], text: str) -> Pin:
    """The pin of a name, or of a deployment that has just one.  Raises as :func:`plan_unpin`."""
    name = text.removeprefix("@pin/")
    for pin in known:
        if pin.name == name:
            return pin
    digits = text.removeprefix("@deployment/")
    found = [pin.name for pin in known if digits and pin.deployment is not None and pin.deployment.startswith(digits)]
    if not found:
        raise pins.not_found(text, known)
    only = names.only(found, text, "pin")
    return next(pin for pin in known if pin.name == only)


def unpin(repo: WriteRepo, texts: Sequence[str], *, note: Note = NO_NOTE, timeout: float = DEFAULT_TIMEOUT) -> PinPlan:
    """Remove pins, all or none: :func:`plan_unpin`, carried out; then what was kept beside them."""

    def tidied() -> PinPlan:
        tidy(repo)
        return PinPlan((), ())

    made = run.transact(repo, lambda: plan_unpin(repo, texts), note, timeout, command=_asked("unpin", *texts))
    run.transact(repo, tidied, note, timeout)
    return made
