"""What a collector's scan finds in an EROFS image, as a set."""

from __future__ import annotations

from mmap import mmap

from cfs_tags.formats import erofs
from cfs_tags.values import Algorithm, ObjectId

__all__ = ["scanned_refs"]


def scanned_refs(data: bytes | mmap, algorithm: Algorithm) -> set[ObjectId]:
    """The digests that the scan finds, each once."""
    found = erofs.scan_object_refs(data, algorithm)
    assert len(found) % algorithm.size == 0
    return {ObjectId.of_bytes(found[at : at + algorithm.size]) for at in range(0, len(found), algorithm.size)}
