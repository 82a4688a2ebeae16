"""Carrying out the plan of an import: content, then links, then refs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags import tagging
from cfs_tags.apps.importing.layers import LayerStore
from cfs_tags.apps.importing.linking import Linker
from cfs_tags.apps.importing.naming import tag_plan
from cfs_tags.apps.importing.values import Imported
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.objects import ObjectStore
from cfs_tags.repo.refs import NO_NOTE, Note

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.apps.importing.values import Import
    from cfs_tags.apps.sources import Source
    from cfs_tags.repo.store import WriteRepo

__all__ = ["execute"]


def execute(
    repo: WriteRepo,
    source: Source,
    plan: Callable[[], Import],
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
    *,
    progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
    prepare: Callable[[Import], None] | None = None,
) -> Imported:
    """Plan an import with the repository locked, and carry it out.

    Args:
        repo: where to.
        source: where from.
        plan: makes the plan.
        note: for the reflog; source and digest are added.
        timeout: seconds to wait for locks.
        progress: is told how many bytes of layers were read, and of how many.
        processes: 1 or 2; None: 2 where there is enough to do and a processor for it.
        prepare: called when the content is there and has no tag yet.

    Raises:
        DigestMismatch, FormatError: a blob is not what it should be; nothing is named.
        CfsTagsError: what ``plan`` raises.
        LockTimeout, SystemFailure: the system, or somebody else, was in the way; nothing is named.
    """
    with repo.locked("shared", timeout):
        wanted = plan()
        objects, object_bytes = _store(repo, source, wanted, progress, processes)
        if prepare is not None:
            prepare(wanted)
        reason = _reason(note.reason, wanted)
        made, outcome = tagging.apply(repo, lambda: tag_plan(repo, wanted), note._replace(reason=reason), timeout)
    return Imported(wanted, made, outcome, objects, object_bytes)


def _reason(given: str | None, wanted: Import) -> str:
    shown = next(image.source_digest for image in wanted.images if image.digest == wanted.names[0][1])
    if wanted.kept_index is not None:
        shown = wanted.kept_index[1]
    text = f"import {wanted.source} {shown}"
    return f"{given} ({text})" if given else text


def _store(
    repo: WriteRepo,
    source: Source,
    wanted: Import,
    progress: Callable[[int, int], None] | None,
    processes: int | None,
) -> tuple[int, int]:
    """Everything but the refs: how many objects were written, and their bytes."""
    store = ObjectStore(repo)
    layers = LayerStore(repo, source, store, wanted, progress, processes)
    linker = Linker(repo, store)
    images = [image for image in wanted.images if not image.complete]
    if images:
        with layers:
            for image in images:
                layers.store(image)
        linker.link(images, layers.stored)
    if wanted.kept_index is not None:
        linker.keep_index(*wanted.kept_index[:2])
    return store.written + layers.written, store.written_bytes + layers.written_bytes
