"""Indexes that are kept beside a tag: the bytes of an image index, under a ref with the tag's name, go where the tag goes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cfs_tags.errors import BadRefLink, DamagedError, UnsupportedError
from cfs_tags.repo import layout, reflog, refs
from cfs_tags.repo.transaction.change import RefChange
from cfs_tags.tags.rows import find, index_of_ref, trash
from cfs_tags.values import MAX_NAME_BYTES, ContentId, Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cfs_tags.formats.oci import Index
    from cfs_tags.repo.store import ReadRepo


def kept_index(repo: ReadRepo, content_id: ContentId) -> Index | None:
    """The index whose bytes are kept under a name in ``streams/``; None where there is none, or it cannot be read."""
    from cfs_tags.formats import oci

    try:
        found = repo.stream_object(content_id)
        if found is None:
            return None
        return oci.parse_index(repo.sole_content(repo.stream(found, content_id), content_id))
    except (DamagedError, UnsupportedError):
        return None


def kept_indexes(repo: ReadRepo) -> Iterator[tuple[str, str, str | None]]:
    """Of each index that is kept: the tag that it is kept with, path and link of its ref."""
    for path, link in refs.walk(repo, layout.INDEXES):
        yield index_of_ref(path) or "", path, link


def orphaned_indexes(repo: ReadRepo, gone: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Path and link of kept indexes that are left alone: there is neither a tag of their name nor one in the trash.

    Args:
        repo: where.
        gone: paths of leases and trash that do not count.
    """
    kept = None
    for name, path, link in kept_indexes(repo):
        tag = find(repo, name)
        if link is None or (tag is not None and tag.path not in gone):
            continue
        if kept is None:
            kept = {one.name for one in trash(repo) if one.path not in gone}
        if f"@trash/{name}" not in kept:
            yield path, link


def read_index(repo: ReadRepo, path: str) -> str | None:
    """What the ref of a kept index says; None where there is none, and for names that no file can have."""
    return repo.read_link(path) if len(os.fsencode(path.rpartition("/")[2])) <= MAX_NAME_BYTES else None


def lists(repo: ReadRepo, path: str, link: str, digest: Digest) -> bool:
    """Whether the index behind a ref lists a manifest."""
    try:
        index = kept_index(repo, layout.ref_target(path, link))
    except BadRefLink:
        return False
    return index is not None and any(entry.digest == digest for entry in index.manifests)


def renamed(repo: ReadRepo, old: str, new: str, digest: Digest) -> Iterator[RefChange]:
    """The index that is kept with a tag takes its new name, too."""
    before, after = (f"{layout.INDEXES}/{layout.encode_name(name)}" for name in (old, new))
    link, replaced = read_index(repo, before), read_index(repo, after)
    if link is not None:
        if link != replaced:
            yield RefChange(after, replaced, link, "rename")
        yield RefChange(before, link, None, "rename")
    elif replaced is not None and not lists(repo, after, replaced, digest):
        yield RefChange(after, replaced, None, "rename")


def restored(repo: ReadRepo, name: str, digest: Digest) -> Iterator[RefChange]:
    """The index that was kept with a tag, where that is still there and lists what the tag names again."""
    path = f"{layout.INDEXES}/{layout.encode_name(name)}"
    last = reflog.last_value(repo, path)
    if last is None or last.new is not None or last.old is None or read_index(repo, path) is not None:
        return
    if lists(repo, path, last.old, digest):
        yield RefChange(path, None, last.old, "restore")
