"""The marks of a collection: from which roots, and when they are no ground to delete anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cfs_tags.deploying import unnamed_configs
from cfs_tags.errors import BrokenRoots, CfsTagsError, FormatError
from cfs_tags.formats import layout
from cfs_tags.marking import Marker, Snapshot
from cfs_tags.repo.refs import RefChange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.gc.values import GcOptions
    from cfs_tags.inventory import Keys
    from cfs_tags.repo.store import ReadRepo

__all__ = ["is_live", "limit_of", "mark_all", "settle", "subject_lives"]


def mark_all(
    repo: ReadRepo,
    snapshot: Snapshot,
    options: GcOptions,
    stamp: int,
    more: Sequence[RefChange] = (),
    *,
    gone: Sequence[RefChange],
) -> tuple[Marker, list[RefChange]]:
    """Mark from all roots, and name the referrers that are none (only with ``prune_referrers``).

    ``more`` are refs that could not be made yet: roots all the same.  ``gone`` are the changes that came before the marks:
    what such a ref led to was here, whether the log says so already or not.
    """
    snapshot.name(unnamed_configs(repo, more))
    marker = Marker(repo, snapshot)
    marker.mark((change.path, change.new) for change in more if change.new is not None)
    named = Snapshot({}, {}, {})
    for name in options.roots:
        for links, mine in ((snapshot.streams, named.streams), (snapshot.images, named.images)):
            if name in links:
                mine[name] = links[name]
    marker.mark_links(named, needed=True)
    if options.grace:
        limit = limit_of(options, stamp)
        young = Snapshot({}, {}, {})
        for tree, links, mine in (
            (layout.STREAMS, snapshot.streams, young.streams),
            (layout.IMAGES, snapshot.images, young.images),
        ):
            mine.update({name: link for name, link in links.items() if _changed(repo, tree, name, link) >= limit})
        marker.mark_links(young)
    pruned = []
    if options.prune_referrers:
        pruned = [RefChange(path, link, None, "prune") for path, link in _prune(repo, snapshot, marker, gone)]
    else:
        marker.mark(snapshot.refs.items())
    settle(marker, options)
    return marker, pruned


def settle(marker: Marker, options: GcOptions) -> None:
    """Keep what something broken may have led to.

    Raises:
        BrokenRoots: nothing may be deleted.
    """
    _refuse_broken(marker, options)
    marker.keep_unnamed()
    _refuse_broken(marker, options)


def _refuse_broken(marker: Marker, options: GcOptions) -> None:
    """Stop where something is broken; with ``keep_broken`` only where nobody knows what it leads to, and so what is dead."""
    problems = [problem for problem in marker.found() if problem.unreadable or not options.keep_broken]
    if problems:
        raise BrokenRoots(problems=tuple((problem.message, problem.refs) for problem in problems))


def _prune(repo: ReadRepo, snapshot: Snapshot, marker: Marker, gone: Sequence[RefChange]) -> list[tuple[str, str]]:
    """Mark from all refs but the referrers whose subject was here and is dead: those are the answer, path and link.

    To a fixed point: a signature may itself be signed, and may name another image.
    """
    was_here = _was_here(repo, snapshot, gone)
    waiting: dict[str, str] = {}
    first: list[tuple[str, str]] = []
    for path, link in snapshot.refs.items():
        subject = _subject(path)
        if subject is None or subject not in was_here:
            first.append((path, link))
        else:
            waiting[path] = link
    marker.mark(first)
    while True:
        ready = [(path, link) for path, link in waiting.items() if subject_lives(repo, snapshot, marker, path)]
        if marker.found():  # what cannot be followed may have led to a subject
            ready = list(waiting.items())
        if not ready:
            return list(waiting.items())
        for path, _ in ready:
            del waiting[path]
        marker.mark(ready)


def _subject(path: str) -> str | None:
    """The digest that a referrer is about, by its path; None for other refs."""
    start = f"{layout.REFERRERS}/"
    subject, slash, _ = path[len(start) :].partition("/")
    return subject if path.startswith(start) and slash else None


def subject_lives(repo: ReadRepo, snapshot: Snapshot, marker: Marker, path: str) -> bool:
    """Whether what a referrer at this path is about stays."""
    link = snapshot.streams.get(f"oci-manifest-{_subject(path)}")
    return link is not None and is_live(repo, marker.live, link)


def _was_here(repo: ReadRepo, snapshot: Snapshot, gone: Sequence[RefChange]) -> set[str]:
    """Manifests that are or were in this repository: they still have their link, or a ref led to them once."""
    from cfs_tags.repo import reflog

    start = "oci-manifest-"
    names = set(snapshot.streams)
    links = [link for entry in reflog.all_entries(repo).entries for link in (entry.old, entry.new)]
    links += [link for change in gone for link in (change.old, change.new)]
    names.update(link.rpartition("/")[2] for link in links if link is not None)
    return {name[len(start) :] for name in names if name.startswith(start)}


def _changed(repo: ReadRepo, tree: str, name: str, link: str) -> int:
    """When a link was made or the object behind it was last changed, whichever is later, in nanoseconds since 1970.

    0 where there is no object: then there is nothing to keep.
    """
    try:
        path = layout.object_path(layout.object_of_link(link, repo.algorithm, f"{tree}/{name}"))
        changed = os.stat(path, dir_fd=repo.fd, follow_symlinks=False).st_ctime_ns
        return max(changed, os.stat(f"{tree}/{name}", dir_fd=repo.fd, follow_symlinks=False).st_ctime_ns)
    except (OSError, CfsTagsError):
        return 0


def is_live(repo: ReadRepo, live: Keys, link: str) -> bool:
    """Whether the object that a link in ``streams/`` or ``images/`` leads to stays."""
    try:
        return layout.object_of_link(link, repo.algorithm, "") in live
    except FormatError:
        return True  # it leads to no object: not ours to judge


def limit_of(options: GcOptions, stamp: int) -> int:
    """Objects that changed at this time (nanoseconds since 1970) or later stay."""
    return stamp - int(options.grace * 1e9)
