"""What becomes of the hosts if an image goes from the registry, or if all are to have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps import platforms
from cfs_tags.errors import FormatError, TargetNotFound
from cfs_tags.formats import oci
from cfs_tags.formats.oci import Manifest

if TYPE_CHECKING:
    from cfs_tags.fleet.hosts import Host
    from cfs_tags.fleet.view import Fleet
    from cfs_tags.remote.client import Client, Found
    from cfs_tags.values import Digest

_DIGITS = 16


class Row(NamedTuple):
    """A host and an image.

    Attributes:
        name: of the host.
        manifest: the image for its platform; None where there is none.
        slots: what the host uses it for.
        loses_rollback: whether the host could not go back, if the image went.
        bytes: of manifest, config and layers that the host would fetch.
        layers: how many layers the image has, and how many of them the host has.
    """

    name: str
    manifest: Digest | None
    slots: tuple[str, ...]
    loses_rollback: bool
    bytes: int
    layers: tuple[int, int]


class Answer(NamedTuple):
    """An image, by the digest that was asked for, and every host; those that say nothing that can be read are left out."""

    digest: Digest
    rows: tuple[Row, ...]


class _Image(NamedTuple):
    digest: Digest
    size: int
    manifest: Manifest


def what_if(client: Client, fleet: Fleet, reference: str) -> Answer:
    """Who uses an image, and what each host would fetch to have it.

    A host fetches manifest and config of an image that it does not use, and layers that it has in none of its images.

    Args:
        client: of the registry.
        fleet: its hosts.
        reference: a tag or digest.

    Raises:
        TargetNotFound: the registry does not have it.
        FormatError: it is no image.
        CfsTagsError: the registry does not say.
    """
    top = _get(client, reference)
    parsed = oci.parse_manifest_or_index(top.data)
    images = {}
    if isinstance(parsed, oci.Index):
        entries = {platforms.shown(entry.platform): entry for entry in platforms.with_platform(parsed.manifests)}
        for platform in entries.keys() & {row.host.platform for row in fleet.rows if row.host is not None}:
            found = _get(client, entries[platform].digest)
            images[platform] = _Image(found.digest, len(found.data), oci.parse_manifest(found.data))
        if not entries:
            raise FormatError(structure=f"index {top.digest}", offset=0, wanted="images for platforms", found="none")
    single = None if isinstance(parsed, oci.Index) else _Image(top.digest, len(top.data), parsed)
    extra = len(top.data) if isinstance(parsed, oci.Index) else 0
    rows = [
        _row(row.host, row.name, single or images.get(row.host.platform), extra) for row in fleet.rows if row.host is not None
    ]
    return Answer(top.digest, tuple(rows))


def _get(client: Client, reference: str) -> Found:
    found = client.get(reference)
    if found is None:
        raise TargetNotFound(kind="manifest", name=reference, where="the registry")
    return found


def _row(host: Host, name: str, image: _Image | None, extra: int) -> Row:
    if image is None:
        return Row(name, None, (), False, 0, (0, 0))
    slots = tuple(use.slot for use in host.uses if image.digest in (use.manifest, use.kept_as))
    layers = {layer.digest: layer.size for layer in image.manifest.layers}
    have = set(host.layers)
    missing = {digest: size for digest, size in layers.items() if digest.hex[:_DIGITS] not in have}
    fetched = 0 if slots else extra + image.size + image.manifest.config.size + sum(missing.values())
    return Row(name, image.digest, slots, "rollback" in slots, fetched, (len(layers), len(layers) - len(missing)))
