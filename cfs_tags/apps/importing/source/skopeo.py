"""Every other transport: skopeo fetches what is needed."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import suppress

from cfs_tags.apps.blobs import Reader, read_document
from cfs_tags.apps.importing.source.base import Source
from cfs_tags.apps.importing.source.layout import DirSource, Folder
from cfs_tags.apps.manifests import descriptor_of, is_docker, to_oci
from cfs_tags.apps.workdir import Machine, WorkDirectory, run
from cfs_tags.errors import CfsTagsError, SourceFailed, SourceNotFound, SystemFailure
from cfs_tags.formats import oci
from cfs_tags.repo import fsops
from cfs_tags.values import Digest

_MAX_ENTRIES = 50
"""Images of an index that are looked at."""


class SkopeoSource(Source):
    """Anything else: skopeo copies an image into a temporary ``dir:`` when its first blob is needed.

    With ``offers`` false a registry is not asked for the image of that name, but for what is wanted by its digest.
    """

    def __init__(self, text: str, transport: str, rest: str, machine: Machine, *, offers: bool = True) -> None:
        self._program = machine.need_skopeo(f"for images from {transport}:")
        super().__init__(text)
        self._place = WorkDirectory(machine)
        self._copies: dict[str, DirSource] = {}
        self._documents: dict[Digest, bytes] = {}
        self._expected: set[Digest] | None = None
        self._parts: list[Folder] = []
        self._fetched: set[Digest] = set()
        self._docker: dict[Digest, bytes] | None = None
        self._attempts = 0
        self._registry = transport == "docker"
        self._repository = text
        if self._registry:
            self.name, self._repository = _docker_name(rest)
        self._offers = offers or not self._registry
        if not self._offers:
            return
        try:
            # a registry is asked for the document alone, so that nothing is downloaded that is here already
            data = run(self._program, "inspect", "--raw", text) if self._registry else self._copy(text).top
            top = descriptor_of(data)
            self._documents[top.digest] = data
            self.offered = (top,)
        except BaseException:
            self.close()
            raise

    def _copy(self, source: str) -> DirSource:
        if source not in self._copies:
            self._attempts += 1
            path = os.path.join(self._place.path, str(self._attempts))
            self._run("copy", "--quiet", source, f"dir:{path}")
            self._copies[source] = DirSource(self.text, path)
        return self._copies[source]

    def document(self, digest: Digest) -> bytes:
        """A manifest or index of a registry, without its blobs."""
        if digest not in self._documents:
            if not self._registry:
                return super().document(digest)
            try:
                raw = self._run("inspect", "--raw", f"{self._repository}@{digest}")
            except SourceNotFound:
                if self._docker_digest(digest) is None or self._docker is None:
                    raise
                raw = to_oci(oci.parse_manifest(self._docker[digest]))
            self._documents[digest] = read_document(io.BytesIO(raw), digest)
        return self._documents[digest]

    def open(self, digest: Digest) -> Reader:
        """The bytes of a blob; what it belongs to is fetched where it is not here yet."""
        if digest in self._documents:
            return io.BytesIO(self._documents[digest])
        for copied in self._copies.values():
            try:
                return copied.open(digest)
            except SourceNotFound:
                continue
        for document in list(self._documents):
            if self._registry and digest in self._documents[document].decode("utf-8", "replace"):
                parsed = oci.parse_manifest_or_index(self._documents[document])
                if isinstance(parsed, oci.Index):
                    return io.BytesIO(self.document(digest))
                try:
                    return self._open_of(f"{self._repository}@{document}", parsed, digest)
                except SourceNotFound:
                    other = self._docker_digest(document)
                    if other is None:
                        raise
                    return self._open_of(f"{self._repository}@{other}", parsed, digest)
        raise self._no_blob(digest)

    def _open_of(self, where: str, manifest: oci.Manifest, digest: Digest) -> Reader:
        if digest == manifest.config.digest:
            return io.BytesIO(self._run("inspect", "--raw", "--config", where))
        layers = {layer.digest for layer in manifest.layers}
        if self._expected is None or layers <= self._expected:
            return self._copy(where).open(digest)
        return self._part(digest) or self._copy_some(where, manifest, digest)

    def _docker_digest(self, digest: Digest) -> Digest | None:
        """What the registry calls the manifest that was made of one of Docker's, if the image that was named has it."""
        if self._docker is None:
            self._docker = {}
            pending = [self.text]
            for place in pending:
                with suppress(CfsTagsError):
                    raw = self._run("inspect", "--raw", place)
                    document = oci.parse_manifest_or_index(raw)
                    if not isinstance(document, oci.Index):
                        if is_docker(document):
                            self._docker[Digest.of(to_oci(document))] = raw
                    elif place == self.text:
                        pending += [f"{self._repository}@{entry.digest}" for entry in document.manifests[:_MAX_ENTRIES]]
        raw_manifest = self._docker.get(digest)
        return Digest.of(raw_manifest) if raw_manifest is not None else None

    def know(self, digest: Digest, raw: bytes) -> None:
        """A manifest that is known already: where its blobs are asked for, it is asked for by its digest."""
        self._documents[digest] = raw

    def _run(self, *words: str) -> bytes:
        """Run skopeo.  Where it is one of several sources, what it fails at may be had from another."""
        try:
            return run(self._program, *words)
        except CfsTagsError as error:
            said = error.facts().get("said")
            if self._offers or said is None:
                raise
            if "unknown" in said or "not found" in said:
                raise SourceNotFound(source=self.text, reason=said) from error
            raise SourceFailed(source=self.text, reason=said) from error

    def expect(self, layers: Sequence[Digest]) -> None:
        """Be told which layers alone are to be fetched."""
        self._expected = set(layers)

    def _part(self, digest: Digest) -> Reader | None:
        found = (place.open(f"{digest.algorithm}/{digest.hex}") for place in self._parts)
        return next((reader for reader in found if reader is not None), None)

    def _copy_some(self, where: str, manifest: oci.Manifest, digest: Digest) -> Reader:
        """Fetch a layer, and the others that are expected.

        skopeo copies whole images, but no blob that the layout that it copies to has: files without content stand for the
        layers that are not wanted (containers/image 5, ``oci/layout/oci_dest.go``: it looks at the name alone).
        """
        wanted = {digest, *(self._expected or ())} - self._fetched
        self._attempts += 1
        place = f"some-{self._attempts}"
        path = os.path.join(self._place.path, place)
        others = {layer.digest: layer.size for layer in manifest.layers if layer.digest not in wanted}
        names = [f"{place}/blobs/{other.algorithm}/{other.hex}" for other in others]
        try:
            fsops.make_directory(self._place.fd, place)
            fsops.make_directory(self._place.fd, f"{place}/blobs")
            for name, (other, size) in zip(names, others.items(), strict=True):
                fsops.make_directory(self._place.fd, f"{place}/blobs/{other.algorithm}")
                fsops.create_file(self._place.fd, name, b"")
                fsops.truncate(self._place.fd, name, size)
            words = ("--quiet", "--dest-oci-accept-uncompressed-layers", "--dest-shared-blob-dir", f"{path}/blobs")
            self._run("copy", *words, where, f"oci:{path}/layout:some")
            for name in names:
                fsops.remove(self._place.fd, name)
        except OSError as error:
            raise SystemFailure.of(error, "use", path) from error
        self._parts.append(Folder(f"{path}/blobs"))
        self._fetched |= wanted & {layer.digest for layer in manifest.layers}
        found = self._part(digest)
        if found is None:
            raise self._no_blob(digest)
        return found

    def size(self, digest: Digest) -> int | None:
        """Bytes of a blob; of a registry None, because that would fetch it."""
        return None if self._registry else super().size(digest)

    def close(self) -> None:
        """Remove what was fetched."""
        for copied in self._copies.values():
            copied.close()
        for part in self._parts:
            part.close()
        self._place.close()


def _docker_name(rest: str) -> tuple[str, str]:
    """What a ``docker://`` reference is called as a tag, and its repository for references by digest."""
    name = rest.removeprefix("//")
    plain, _, _ = name.partition("@")
    place, slash, last = plain.rpartition("/")
    return name, f"docker://{place}{slash}{last.partition(':')[0]}"
