"""Bringing back what a repository has lost, from sources that have it.

Which images lack something is seen from the refs: every manifest that one leads to, there or not.  Its documents are read
here, where they are whole, else from the sources; of its layers those are fetched of which something is missing, once each,
however many images share them.  What comes is checked and stored as an import does it (``apps/importing``); no ref is changed.

An EROFS image comes from no source: cfsctl makes it again from the layers, with the same id, because it is made of nothing
else.  One with wrong bytes is replaced when the new one is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps.importing.choose import Options
from cfs_tags.apps.importing.layer import LayerStore
from cfs_tags.apps.importing.mountable import make_image, remake_images
from cfs_tags.apps.importing.plan import plan_mending
from cfs_tags.apps.importing.run import store_content
from cfs_tags.apps.importing.source.combined import Combined
from cfs_tags.apps.importing.stored import old_config
from cfs_tags.errors import BadRefLink, CfsTagsError, DamagedError, NotFoundError, SourceFailed, UnsupportedError
from cfs_tags.fsck import objects, repair
from cfs_tags.fsck.check import Progress
from cfs_tags.fsck.repair import Repaired
from cfs_tags.host import pins
from cfs_tags.repo import images, layout, reflog, refs
from cfs_tags.repo.images import BOOT_KEY, EROFS_KEY
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note

if TYPE_CHECKING:
    from cfs_tags.apps.importing.plan import Import, PlannedImage
    from cfs_tags.apps.importing.source.base import Source
    from cfs_tags.apps.workdir import Machine
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.values import Digest, ObjectId


_WRONG = ("wrong-object-digest", "unreadable", "no-verity", "wrong-verity-digest")
"""What is found of objects that are there, and are stored again like those that are gone."""


class NotMended(NamedTuple):
    """An image, or one of its EROFS images, that could not be brought back, and why."""

    digest: Digest
    reason: CfsTagsError


class Mended(NamedTuple):
    """What was brought back.

    Attributes:
        images: manifests of images that lacked something and are whole again; in a dry run those that would be read.
        left: what could not be brought back.
        layers: layers that were fetched, or would be, by digest, with the bytes that the manifest says they have.
        fetched: bytes of layers that were read, by where they came from.
        objects: how many were written.
        object_bytes: bytes of those.
        problems: what was wrong with a source where another was asked.
    """

    images: tuple[Digest, ...]
    left: tuple[NotMended, ...]
    layers: tuple[tuple[Digest, int], ...]
    fetched: dict[str, int]
    objects: int
    object_bytes: int
    problems: tuple[CfsTagsError, ...] = ()


def repair_from(
    repo: WriteRepo,
    sources: Sequence[Source],
    machine: Machine,
    *,
    content: bool = False,
    owners: Sequence[str] = (),
    dry_run: bool = False,
    note: Note = NO_NOTE,
    limit: int = Options().limit,
    progress: Progress | None = None,
    fetching: Callable[[int, int], None] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> tuple[Repaired, Mended]:
    """Repair with what is there, then bring back what is missing, then repair what is left.

    Links come first, so that nothing is fetched of which the name alone was lost; refs that lead to nothing come last, so that
    none is taken out that leads to something again.

    Args:
        repo: where.
        sources: in the order in which they are asked.
        machine: cfsctl makes EROFS images again, where it is installed.
        content: read every byte, too; objects with wrong bytes, and those that the system does not read or whose fs-verity
            is not right, are stored again like those that are gone.  As in
            :func:`cfs_tags.fsck.repair.repair`; likewise ``owners``, ``dry_run``, ``note``, ``progress``,
            ``timeout``.
        limit: bytes of the longest layer, uncompressed, that is taken.
        fetching: is called with the bytes of layers that were read, and of all.

    Raises:
        LockTimeout, LockConflict, SystemFailure: run again, it goes on where it was.
        CfsTagsError: as the sources.
    """
    first = repair.repair(
        repo, content=content, links_only=True, dry_run=dry_run, note=note, progress=progress, timeout=timeout
    )
    source = Combined(repo, sources)
    if dry_run:
        with repo.locked("shared", timeout):
            wanted, unavailable = plan_mending(repo, source, Options(limit=limit))
        planned = repair.plan(repo, first.report, owners=owners)
        left = tuple(NotMended(*one) for one in unavailable)
        mended = Mended(_digests(wanted), left, _layers(wanted), {}, 0, 0, tuple(source.problems))
        return first._replace(plan=planned._replace(refs=())), mended
    wrong = (one for one in first.findings if one.code in _WRONG and one.path.startswith(f"{layout.OBJECTS}/"))
    # what the system would not give once is not damaged
    repo.distrusted.update(names := objects.names_of(objects.check_whole(repo, objects.names_of(wrong))))
    try:
        mended = _mend(repo, source, machine, limit=limit, note=note, progress=fetching, timeout=timeout)
        with repo.locked("shared", timeout):
            pins.keep_anew(repo, [one for one in names if one not in repo.distrusted])
    finally:
        repo.distrusted.clear()
    # all content is read again: what was wrong with it is right now, or is said
    last = repair.repair(repo, content=content, owners=owners, note=note, timeout=timeout)
    plan = last.plan._replace(links=(*first.plan.links, *last.plan.links), recovers=first.plan.recovers or last.plan.recovers)
    findings = repair.of_both(first.findings, last.findings, content=True)  # both have read as much
    return Repaired(last.report, plan, tuple(findings)), mended


def _mend(
    repo: WriteRepo,
    source: Combined,
    machine: Machine,
    *,
    limit: int = Options().limit,
    note: Note = NO_NOTE,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Mended:
    """Bring back what images lack that refs lead to.  Arguments and errors as those of :func:`repair_from`."""
    with repo.locked("shared", timeout):
        wanted, unavailable = plan_mending(repo, source, Options(limit=limit))
        lost, deployments = _lost_images(repo, wanted), _deployments(repo)
        left = [NotMended(*one) for one in unavailable]
        store = ObjectStore(repo)
        layers = LayerStore(repo, source, store, wanted, progress, None)
        done, failed = _store_all(repo, store, layers, wanted)
        left += failed
        for image in done:
            left += _make_images(repo, image, lost[image.digest], deployments.get(image.digest, ()), machine)
    told = Mended(
        tuple(image.digest for image in done),
        tuple(left),
        _layers(wanted),
        layers.fetched,
        store.written + layers.written,
        store.written_bytes + layers.written_bytes,
        tuple(source.problems),
    )
    if told.objects or told.images:
        facts: dict[str, reflog.Fact] = {"source": source.text, "images": len(told.images), "left": len(told.left)}
        facts |= {"layers": len(told.layers), "objects": told.objects, "bytes": told.object_bytes}
        run.record(repo, "mend", facts, note, timeout)
    return told


def _store_all(
    repo: WriteRepo, store: ObjectStore, layers: LayerStore, wanted: Import
) -> tuple[list[PlannedImage], list[NotMended]]:
    """Store all images together; where a source does not have all, one after the other, so that one does not keep the others
    from being mended."""
    try:
        store_content(repo, store, layers, wanted)
        return list(wanted.images), []
    except (DamagedError, NotFoundError, SourceFailed, UnsupportedError) as error:
        if len(wanted.images) == 1:
            return [], [NotMended(wanted.images[0].digest, error)]
    done, failed = [], []
    for image in wanted.images:
        try:
            store_content(repo, store, layers, wanted._replace(images=(image,)))
            done.append(image)
        except (DamagedError, NotFoundError, SourceFailed, UnsupportedError) as error:
            failed.append(NotMended(image.digest, error))
    return done, failed


def _named_images(repo: ReadRepo, image: PlannedImage) -> dict[str, ObjectId]:
    """The EROFS images that a config names, by key."""
    found = old_config(repo, image.digest, image.manifest.config.digest)
    if found is None:
        return {}
    return {key: target for key, target in found[1].named_refs.items() if key.startswith(EROFS_KEY)}


def _lost_images(repo: ReadRepo, wanted: Import) -> dict[Digest, dict[str, ObjectId]]:
    """For each image the EROFS images that its config names and that are gone, by key."""
    found = {}
    for image in wanted.images:
        named = _named_images(repo, image)
        gone = set(images.absent_objects(repo, named.values()))
        found[image.digest] = {key: target for key, target in named.items() if target in gone}
    return found


def _deployments(repo: ReadRepo) -> dict[Digest, list[str]]:
    """The ids of the deployments that refs say each manifest is of."""
    found: dict[Digest, list[str]] = {}
    for entry in refs.walk(repo, layout.DEPLOYMENTS):
        with suppress(BadRefLink):
            digest = layout.ref_target(entry.path, entry.target or "").manifest_digest
            if digest is not None:
                found.setdefault(digest, []).append(entry.path.rpartition("/")[2])
    return found


def _make_images(
    repo: WriteRepo, image: PlannedImage, lost: dict[str, ObjectId], deployments: Sequence[str], machine: Machine
) -> list[NotMended]:
    """Have cfsctl make the EROFS images of an image again that are gone, or have wrong bytes."""
    there = set(_named_images(repo, image).values())
    wanted = [["--bootable", "--expected-digest", name] for name in deployments if name not in there]
    bootable = ["--bootable"] if any(key.startswith(BOOT_KEY) for key in lost) else []
    if bootable and not wanted:
        wanted.append(bootable)
    elif lost:
        wanted.append([])
    try:
        if repo.distrusted.intersection(lost.values()):
            remake_images(repo, image, machine, *bootable)
        for options in wanted:
            make_image(repo, image, machine, *options)
    except CfsTagsError as error:
        return [NotMended(image.digest, error)]
    return []


def _layers(wanted: Import) -> tuple[tuple[Digest, int], ...]:
    missing = [layer.descriptor for image in wanted.images for layer in image.missing]
    return tuple({layer.digest: layer.size for layer in missing}.items())


def _digests(wanted: Import) -> tuple[Digest, ...]:
    return tuple(image.digest for image in wanted.images)
