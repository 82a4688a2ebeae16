"""Names for what was stored: the streams of configs and manifests, and links for all of them in ``streams/``."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from cfs_tags.apps.importing.present import is_linked, is_usable
from cfs_tags.errors import DamagedError, SystemFailure, UnsupportedError
from cfs_tags.formats import layout, splitstream, splitwriter
from cfs_tags.repo import contents, fsops
from cfs_tags.values import ContentId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cfs_tags.apps.importing.values import PlannedImage, PlannedLayer
    from cfs_tags.repo.objects import ObjectStore
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.values import Digest, ObjectId

__all__ = ["Linker"]


class Linker:
    """Gives streams their names.  What it names is on disk before."""

    def __init__(self, repo: WriteRepo, store: ObjectStore) -> None:
        self._repo = repo
        self._store = store

    def link(self, images: Sequence[PlannedImage], stored: Mapping[ContentId, ObjectId]) -> None:
        """Make the streams of configs and manifests, and give all streams their names, layers first.

        Args:
            images: whose streams.
            stored: the stream of each of their layers.

        Raises:
            SystemFailure: the system refused.
        """
        while not self._link(images, stored):
            pass

    def keep_index(self, raw: bytes, digest: Digest) -> None:
        """Store the bytes of an index, and give them their name.  Raises as :meth:`link`."""
        content_id = ContentId.blob(digest)
        found = self._repo.stream_object(content_id)
        if found is not None and is_usable(self._repo, found, is_tar=False):
            return
        writer = splitwriter.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_BLOB)
        writer.add_external(self._store.add(raw), len(raw))
        stream = self._store.add(writer.finish())
        self._sync()
        try:
            self._name(content_id, stream, found)
            fsops.sync(self._repo.fd, layout.STREAMS)
        except OSError as error:
            raise self._failure(error, layout.STREAMS) from error

    def _link(self, images: Sequence[PlannedImage], stored: Mapping[ContentId, ObjectId]) -> bool:
        """False where somebody else gave one of these names to another object meanwhile: what refers to it has to be made
        again."""
        streams: dict[ContentId, tuple[ObjectId, ObjectId | None]] = {}  # what it shall lead to, and what it leads to now
        for image in images:
            layers = [(layer.key, self._layer_stream(layer, stored, streams)) for layer in image.layers]
            config = self._config(image, layers, streams)
            manifest = splitwriter.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_MANIFEST)
            manifest.add_named_ref(f"config:{image.manifest.config.digest}", config)
            for key, stream in layers:
                manifest.add_named_ref(key, stream)
            manifest.add_external(self._store.add(image.raw), len(image.raw))
            content_id = ContentId.manifest(image.digest)
            streams[content_id] = self._store.add(manifest.finish()), self._repo.stream_object(content_id)
        self._sync()
        self._repo.make_directories(layout.STREAMS)
        try:
            done = all(self._name(content_id, *stream) for content_id, stream in streams.items())
            for stream, _ in streams.values() if done else ():
                self._spare(stream)
            fsops.sync(self._repo.fd, layout.STREAMS)
        except OSError as error:
            raise self._failure(error, layout.STREAMS) from error
        return done

    def _layer_stream(
        self,
        layer: PlannedLayer,
        stored: Mapping[ContentId, ObjectId],
        streams: dict[ContentId, tuple[ObjectId, ObjectId | None]],
    ) -> ObjectId:
        content_id = layer.content_id
        if content_id not in streams:
            made = stored[content_id]
            found = self._repo.stream_object(content_id)
            if found is not None and found != made and is_usable(self._repo, found, layer.is_tar):
                made = found
            streams[content_id] = made, found
        return streams[content_id][0]

    def _config(
        self,
        image: PlannedImage,
        layers: list[tuple[Digest, ObjectId]],
        streams: dict[ContentId, tuple[ObjectId, ObjectId | None]],
    ) -> ObjectId:
        """The config's stream: the one that is there, if its layers are; it may have EROFS images that a new one would lack."""
        content_id = ContentId.config(image.manifest.config.digest)
        if content_id in streams:
            return streams[content_id][0]
        old = None
        found = self._repo.stream_object(content_id)
        if found is not None:
            try:
                old = self._repo.stream(found, content_id)
                whole = self._repo.has_object(splitstream.sole_object(old))
            except (DamagedError, UnsupportedError):
                old, whole = None, False
            if old is not None and whole:
                # that of an artifact is "{}" mostly, and many have it: it has the layers of the first of them
                named = [(layer, old.named_refs.get(layer.key)) for layer in image.layers if image.manifest.is_container]
                if all(target is not None and self._has_layer(layer, target, layers) for layer, target in named):
                    layers[:] = [(layer.key, target) for layer, target in named if target is not None] or layers
                    streams[content_id] = found, found
                    return found
        writer = splitwriter.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_CONFIG)
        for key, stream in layers:
            writer.add_named_ref(key, stream)
        for name, target in (old.named_refs if old is not None else {}).items():
            if name.startswith(contents.EROFS_KEY) and self._repo.has_object(target):
                writer.add_named_ref(name, target)
        raw = image.raw_config if image.raw_config is not None else b""
        writer.add_external(self._store.add(raw), len(raw))
        made = self._store.add(writer.finish())
        streams[content_id] = made, found
        return made

    def _has_layer(self, layer: PlannedLayer, target: ObjectId, layers: list[tuple[Digest, ObjectId]]) -> bool:
        if (layer.key, target) in layers:
            return True
        return is_linked(self._repo, target, layer.content_id) and is_usable(self._repo, target, layer.is_tar)

    def _name(self, content_id: ContentId, stream: ObjectId, old: ObjectId | None) -> bool:
        """Have a link in ``streams/`` lead to an object; False where it is not as it was any more."""
        path = f"{layout.STREAMS}/{content_id}"
        link = layout.object_link(stream)
        found = self._repo.stream_object(content_id)
        if found == stream:
            return True
        if found != old:
            return False
        if found is None:
            try:
                fsops.make_link(self._repo.fd, path, link)
            except FileExistsError:
                return False
            return True
        if content_id.manifest_digest is None and self._repo.has_object(found):
            self._keep(found)
        self._repo.make_directories(f"{layout.STATE}/tmp")
        spare = f"{layout.STATE}/tmp/stream-{os.urandom(8).hex()}"
        fsops.make_link(self._repo.fd, spare, link)
        fsops.rename(self._repo.fd, spare, path)
        return True

    def _keep(self, stream: ObjectId) -> None:
        """Give an object a link of its own before it loses the one that it has: manifests and configs name it by digest, and
        what is behind an object without a link is not safe from the collectors of cfsctl and bootc.  They take the link
        away when nothing names the object any more."""
        try:
            fsops.make_link(self._repo.fd, f"{layout.STREAMS}/{ContentId.kept(stream)}", layout.object_link(stream))
        except FileExistsError:
            return
        fsops.sync(self._repo.fd, layout.STREAMS)

    def _spare(self, stream: ObjectId) -> None:
        """Take such a link away from an object that has a name again: collectors know one link of an object, and would take
        the other for dead."""
        with suppress(FileNotFoundError):
            fsops.remove(self._repo.fd, f"{layout.STREAMS}/{ContentId.kept(stream)}")

    def _sync(self) -> None:
        try:
            fsops.sync_filesystem(self._repo.fd)
        except OSError as error:
            raise SystemFailure.of(error, "write", self._repo.path) from error

    def _failure(self, error: OSError, path: str) -> SystemFailure:
        return SystemFailure.of(error, "write", os.path.join(self._repo.path, path))
