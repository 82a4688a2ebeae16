"""Manifests, indexes and configs of a source: bounded, and checked against the digests that name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags.apps import blobs
from cfs_tags.formats import oci

if TYPE_CHECKING:
    from cfs_tags.apps.sources import Source
    from cfs_tags.formats.oci import Descriptor, Manifest

__all__ = ["read_config", "read_document"]


def read_document(source: Source, descriptor: Descriptor) -> bytes:
    """A manifest or index of a source, checked.

    Raises:
        FormatError: it is too long.
        DigestMismatch, SourceNotFound: it is not what it should be, or not there.
    """
    return _read(source, descriptor, oci.MAX_MANIFEST, f"manifest {descriptor.digest}")


def read_config(source: Source, manifest: Manifest) -> bytes:
    """The config of a manifest of a source, checked.  Raises as :func:`read_document`."""
    return _read(source, manifest.config, oci.MAX_CONFIG, f"config {manifest.config.digest}")


def _read(source: Source, descriptor: Descriptor, limit: int, what: str) -> bytes:
    blobs.hasher(descriptor.digest)  # a digest of another kind is no name of anything in a source
    reader = source.open(descriptor.digest)
    try:
        return blobs.read_whole(reader, descriptor, limit, what)
    finally:
        reader.close()
