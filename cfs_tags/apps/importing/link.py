"""Names for what was stored: the streams of configs and manifests, and links for all of them in ``streams/``."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from cfs_tags.apps.importing.stored import has_image_link, is_linked, is_usable, old_config
from cfs_tags.errors import DamagedError, NotALink, SystemFailure, UnsupportedError
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.repo import fsops, images, layout
from cfs_tags.repo.incoming import put_in_place
from cfs_tags.values import ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cfs_tags.apps.importing.plan import PlannedImage, PlannedLayer
    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.object_store import ObjectStore
    from cfs_tags.repo.store import WriteRepo


class Linker:
    """Gives streams their names.  Their content is on disk before."""

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
        """False where another process gave one of these names to another object meanwhile: what refers to it has to be made
        again."""
        streams: dict[ContentId, tuple[ObjectId, ObjectId | None]] = {}  # the new target of each, and the one that it has now
        for image in images:
            layers = [(layer.key, self._layer_stream(layer, stored, streams)) for layer in image.layers]
            config = self._config(image, layers, streams)
            streams[ContentId.manifest(image.digest)] = self._manifest(image, config, layers)
        self._sync()
        self._repo.make_directories(layout.STREAMS)
        try:
            done = all(self._name(content_id, *stream) for content_id, stream in streams.items())
            for stream, _ in streams.values() if done else ():
                self._spare(stream)
            fsops.sync(self._repo.fd, layout.STREAMS)
        except OSError as error:
            raise self._failure(error, layout.STREAMS) from error
        for image in images if done else ():
            self._link_erofs(streams[ContentId.config(image.manifest.config.digest)][0])
        return done

    def _link_erofs(self, config: ObjectId) -> None:
        """Give the EROFS images that a config names the links by which they are mounted, where these are gone."""
        from cfs_tags.fsck.objects import measure_object

        made = False
        try:
            for name, target in self._repo.stream(config, "a config").named_refs.items():
                path = f"{layout.IMAGES}/{target}"
                if not name.startswith(images.EROFS_KEY) or has_image_link(self._repo, target):
                    continue
                if measure_object(self._repo, target) != target:
                    continue  # to be mounted, and to boot, it must be what its name says
                self._repo.make_directories(layout.IMAGES)
                with suppress(NotALink, FileExistsError):  # nothing that is no link is replaced
                    make = partial(fsops.make_link, self._repo.fd, target=layout.object_link(target))
                    if self._repo.read_link(path) is None:
                        make(path)
                    else:
                        put_in_place(self._repo, path, make)
                    made = True
            if made:
                fsops.sync(self._repo.fd, layout.IMAGES)
        except OSError as error:
            raise self._failure(error, layout.IMAGES) from error

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

    def _manifest(
        self, image: PlannedImage, config: ObjectId, layers: list[tuple[Digest, ObjectId]]
    ) -> tuple[ObjectId, ObjectId | None]:
        """The manifest's stream, and the one that is there: the same one if it says the same, even in other bytes."""
        named: dict[str, ObjectId] = {f"config:{image.manifest.config.digest}": config, **dict(layers)}
        found = self._repo.stream_object(ContentId.manifest(image.digest))
        if found is not None:
            with suppress(DamagedError, UnsupportedError):
                old = self._repo.stream(found, f"manifest {image.digest}")
                if old.named_refs == named and self._is_content_of(old, image.raw):
                    return found, found
        writer = splitwriter.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_MANIFEST)
        for name, stream in named.items():
            writer.add_named_ref(name, stream)
        writer.add_external(self._store.add(image.raw), len(image.raw))
        return self._store.add(writer.finish()), found

    def _config(
        self,
        image: PlannedImage,
        layers: list[tuple[Digest, ObjectId]],
        streams: dict[ContentId, tuple[ObjectId, ObjectId | None]],
    ) -> ObjectId:
        """The config's stream: the one that is there, if its layers and EROFS images are.

        A new one has those EROFS images of the old one that are there.  What it named and is gone would only keep cfsctl and
        bootc from making it again.
        """
        content_id = ContentId.config(image.manifest.config.digest)
        if content_id in streams:
            return streams[content_id][0]
        found = self._repo.stream_object(content_id)
        kept, old = old_config(self._repo, image.digest, image.manifest.config.digest) or (None, None)
        if old is not None and kept is not None and self._is_content_of(old, image.raw_config):
            # that of an artifact is "{}" mostly, and many have it: it has the layers of the first of them
            named = [(layer, old.named_refs.get(layer.key)) for layer in image.layers if image.manifest.is_container]
            erofs = [target for name, target in old.named_refs.items() if name.startswith(images.EROFS_KEY)]
            if all(map(self._has, erofs)) and all(
                target is not None and self._has_layer(layer, target, layers) for layer, target in named
            ):
                layers[:] = [(layer.key, target) for layer, target in named if target is not None] or layers
                streams[content_id] = kept, found
                return kept
        writer = splitwriter.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_CONFIG)
        for key, stream in layers:
            writer.add_named_ref(key, stream)
        for name, target in (old.named_refs if old is not None else {}).items():
            if name.startswith(images.EROFS_KEY) and self._has(target):
                writer.add_named_ref(name, target)
        raw = image.raw_config if image.raw_config is not None else b""
        writer.add_external(self._store.add(raw), len(raw))
        made = self._store.add(writer.finish())
        streams[content_id] = made, found
        return made

    def _is_content_of(self, stream: SplitStream, raw: bytes | None) -> bool:
        """Whether the object that a stream consists of is there in full."""
        try:
            return self._repo.sole_content(stream, "a stream") == raw
        except (DamagedError, UnsupportedError):
            return False

    def _has(self, object_id: ObjectId) -> bool:
        """Whether an object is there, and not cut to nothing."""
        return not any(images.absent_objects(self._repo, [object_id]))

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
        if content_id.manifest_digest is None and self._has(found):
            self._keep(found)
        put_in_place(self._repo, path, lambda spare: fsops.make_link(self._repo.fd, spare, link))
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
