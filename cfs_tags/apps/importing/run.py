"""Carrying out the plan of an import: content, then links, then refs."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps.importing import mountable
from cfs_tags.apps.importing.layer import LayerStore
from cfs_tags.apps.importing.link import Linker
from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.repo import fsops, incoming, layout, reflog
from cfs_tags.repo.lock import DEFAULT_TIMEOUT, Mode
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.tags import edit
from cfs_tags.tags.instructions import Instruction
from cfs_tags.values import ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cfs_tags.apps.importing.plan import Import
    from cfs_tags.apps.importing.source.base import Source
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.tags.edit import TagPlan

_RECORDED_NAMES = 20
"""Names that the record of an import has at most."""


class Imported(NamedTuple):
    """What became of an import.

    Attributes:
        plan: what was wanted.
        tags: what became of the tags; of what was only planned nothing, here and below.
        objects: how many were written; what was there already is not among them.
        object_bytes: bytes of those.
        fetched: bytes of layers that were read, by where they came from.
    """

    plan: Import
    tags: TagPlan = edit.TagPlan((), ())
    objects: int = 0
    object_bytes: int = 0
    fetched: Mapping[str, int] = MappingProxyType({})


def run_import(
    repo: WriteRepo,
    source: Source,
    plan: Callable[[], Import],
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
    *,
    progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
    prepare: Callable[[Import], None] | None = None,
    left: list[CfsTagsError] | None = None,
) -> Imported:
    """Plan an import with the repository locked, and carry it out.

    Args:
        repo: where to.
        source: where from.
        plan: makes the plan.
        note: for the reflog; source and digest are added.
        timeout: seconds to wait for locks.
        progress: is called with the bytes of layers that were read, and of all.
        processes: 1 or 2; None: 2 where there is enough to do and a processor for it.
        prepare: called when the content is there and has no tag yet.
        left: a warning about content that an import leaves when it is stopped is added to this.

    Raises:
        DamagedError: a blob has another digest or size than it should; nothing is named.
        CfsTagsError: what ``plan`` raises.
        LockTimeout, SystemFailure: the system refused, or another process holds a lock; nothing is named.
    """

    moves: list[run.Moves] = []

    def carry_out(mode: Mode) -> Imported:
        with repo.locked(mode, timeout):
            wanted = plan()
            store = ObjectStore(repo)
            layers = LayerStore(repo, source, store, wanted, progress, processes)
            with source.sharing([name for name, _ in wanted.names]), _saying_what_is_left(repo, store, layers, left):
                store_content(repo, store, layers, wanted)
                if prepare is not None:
                    prepare(wanted)
                told = note._replace(reason=_reason(note.reason, wanted))
                alone = mode == "exclusive"
                tags = partial(_tag_plan, repo, wanted, layers.stored)
                made = run.transact(repo, tags, told, timeout, exclusive=alone, held=moves)
        written, written_bytes = store.written + layers.written, store.written_bytes + layers.written_bytes
        return Imported(wanted, made, written, written_bytes, layers.fetched)

    try:
        done = carry_out("shared")
    except fsops.ExchangeUnsupported:
        # a tag can only be moved here with the repository lock exclusive, which cannot be had on top of the shared one; the
        # content is there by now, and what a collector took in between is added again
        done = carry_out("exclusive")
    finally:
        run.tell(repo, moves)
    if done.objects or done.tags.changes:
        wanted = done.plan
        facts: dict[str, reflog.Fact] = {"source": wanted.source, "digest": wanted.source_digest}
        facts["names"] = [name for name, _ in wanted.names[:_RECORDED_NAMES]]
        run.record(repo, "import", {**facts, "objects": done.objects, "bytes": done.object_bytes}, note, timeout)
    return done


@contextmanager
def _saying_what_is_left(
    repo: WriteRepo, store: ObjectStore, layers: LayerStore, left: list[CfsTagsError] | None
) -> Iterator[None]:
    try:
        yield
    except fsops.ExchangeUnsupported:
        raise
    except BaseException as error:
        objects = store.written + layers.written
        if left is not None and objects:
            left.append(CfsTagsError("content-left", objects=objects, bytes=store.written_bytes + layers.written_bytes))
        if isinstance(error, SystemFailure) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SystemFailure(
                operation="store the image in", path=repo.path, reason=error.reason, errno=error.errno
            ) from error
        raise


def _reason(given: str | None, wanted: Import) -> str:
    text = f"import {wanted.source}{f' {wanted.source_digest}' if wanted.source_digest is not None else ''}"
    return f"{given} ({text})" if given else text


def store_content(repo: WriteRepo, store: ObjectStore, layers: LayerStore, wanted: Import) -> None:
    """Carry out everything of a plan but the refs.  The caller holds the repository lock."""
    linker = Linker(repo, store)
    images = [image for image in wanted.images if not image.complete]
    indexes = [*wanted.kept_indexes, *([wanted.kept_index] if wanted.kept_index is not None else [])]
    if not images and not indexes:
        if incoming.is_busy(repo):
            # what is all there may have been added just now by another import that has not synced it, or was killed before
            fsops.sync_filesystem(repo.fd)
        return
    with incoming.Incoming(repo):
        if images:
            with layers:
                for image in images:
                    layers.store(image)
            linker.link(images, layers.stored)
        for raw, digest, _ in indexes:
            linker.keep_index(raw, digest)


def _tag_plan(repo: ReadRepo, wanted: Import, stored: Mapping[ContentId, ObjectId]) -> TagPlan:
    """The changes to refs of an import, once its content is there.  Raises as :func:`cfs_tags.tags.edit.plan`."""
    options = wanted.options
    verb = "set" if options.force else "create"
    instructions = [Instruction(verb, name, f"@{digest}", home=options.home) for name, digest in wanted.names]
    found = (layer.have for image in wanted.images for layer in image.layers if layer.have is not None)
    made = edit.plan(repo, instructions, owners=options.owners, whole=(*found, *stored.values()))
    changes = list(made.changes)
    for subject, artifact in wanted.referrers:
        path = f"{layout.REFERRERS}/{subject}/{artifact}"
        changes += _named(repo, path, ContentId.manifest(artifact), "create")
    if wanted.kept_index is not None:
        _, digest, name = wanted.kept_index
        path = f"{layout.INDEXES}/{layout.encode_name(name)}"
        changes = [change for change in changes if change.path != path]  # of one that was kept before
        changes += _named(repo, path, ContentId.blob(digest), "create")
    changes += mountable.left_overs(repo)
    settled = {*made.settled, *(f"{layout.REFERRERS}/{subject}" for subject, _ in wanted.referrers)}
    if wanted.kept_index is not None:
        settled.add(layout.INDEXES)
    return made._replace(changes=tuple(changes), settled=tuple(sorted(settled)))


def _named(repo: ReadRepo, path: str, content_id: ContentId, action: str) -> list[RefChange]:
    link = layout.ref_link(path, content_id)
    old = repo.read_link(path)
    return [] if old == link else [RefChange(path, old, link, action)]
