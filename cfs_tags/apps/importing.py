"""Importing images: planned as a value, then carried out.

A plan has read manifests and configs, and knows which layers the repository lacks.  Carrying it out stores objects, has
them on disk (one ``syncfs``), then links streams, then makes refs: an import that stops half-way leaves objects that
nothing names, and the next one finds them.  The repository lock is held shared throughout, so that no collector takes them
away.

Streams are those of ``cfsctl oci pull`` (composefs-rs 0.9.4, ``oci_layout.rs``, ``skopeo.rs``): content ids, named refs,
one external object for manifest and config.  Other than there, every digest and diff_id is checked, all members of a gzip
file are read, and the layers of an artifact are kept as the blobs that they are, so that its digests hold.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cfs_tags import tagging, tags
from cfs_tags.apps import blobs, docker, mounting, platforms, tarsplit, tarstream
from cfs_tags.errors import (
    DamagedError,
    DigestMismatch,
    FormatError,
    InvalidArgument,
    NotFoundError,
    OwnerRefused,
    PlatformNotFound,
    SystemFailure,
    TagExists,
    UnsupportedError,
)
from cfs_tags.formats import layout, oci, splitstream
from cfs_tags.repo import contents, fsops, refs
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.refs import NO_NOTE, Note, RefChange
from cfs_tags.tagging import Instruction, TagPlan
from cfs_tags.values import ContentId, Digest, ObjectId, TagName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cfs_tags.apps.blobs import Reader
    from cfs_tags.apps.helper import Helper
    from cfs_tags.apps.sources import Source
    from cfs_tags.formats.oci import Descriptor, ImageConfig, Manifest, Platform
    from cfs_tags.repo.objects import ObjectStore
    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = [
    "DEFAULT_LIMIT",
    "Import",
    "Imported",
    "Options",
    "PlannedImage",
    "PlannedLayer",
    "execute",
    "plan",
]

DEFAULT_LIMIT = 64 << 30
"""Bytes of the longest layer, uncompressed, that is taken where nothing else is said."""

_SECOND_PROCESS = 4 << 20
"""Bytes of layers to read from which on a second process pays for itself."""
_MAX_DEPTH = 4
_MAX_REFERRERS = 10_000
_MAX_ENTRIES = 1_000
"""Entries of the longest index of which an image is chosen."""
_ATTESTED = "vnd.docker.reference.digest"


class Options(NamedTuple):
    """What is wanted of an import.

    Attributes:
        platform: which image of an index; None: the one for this machine, and a single image whatever it is for.
        all_platforms: all images of an index.
        keep_index: keep the index, too.
        referrers: take signatures and the like that the source has for what is imported.
        force: move tags that name something else.
        home: ``shared`` or ``private``; None applies the rule.
        owners: owners besides ``app`` whose tags may be moved.
        limit: bytes of the longest layer, uncompressed, that is taken.
    """

    platform: Platform | None = None
    all_platforms: bool = False
    keep_index: bool = False
    referrers: bool = True
    force: bool = False
    home: str | None = None
    owners: Sequence[str] = ()
    limit: int = DEFAULT_LIMIT


class PlannedLayer(NamedTuple):
    """A layer.

    Attributes:
        descriptor: in the manifest.
        key: the diff_id; of what is no image's tar the digest.
        is_tar: whether it is an image's tar, which is cut; else it is a blob, kept as it is.
        have: the object of its stream, where that is there.
        proven: whether the descriptor is known to stand for what is there.
    """

    descriptor: Descriptor
    key: Digest
    is_tar: bool
    have: ObjectId | None
    proven: bool

    @property
    def content_id(self) -> ContentId:
        """Where it is kept: blobs apart, so that none is ever taken for the layer whose tar has the same bytes."""
        return ContentId.layer(self.key) if self.is_tar else ContentId.blob(self.key)


class PlannedImage(NamedTuple):
    """An image or artifact to import.

    Attributes:
        digest: of the manifest, as it will be kept.
        source_digest: as the source has it: another one where Docker's manifest becomes OCI's.
        raw: the manifest.
        manifest: the same, parsed.
        raw_config: the config; None where all is there.
        platform: what it is for; None for artifacts.
        layers: bottom first.
        complete: whether manifest, config, layers and their objects are all there.
    """

    digest: Digest
    source_digest: Digest
    raw: bytes
    manifest: Manifest
    raw_config: bytes | None
    platform: Platform | None
    layers: tuple[PlannedLayer, ...]
    complete: bool

    @property
    def missing(self) -> list[PlannedLayer]:
        """Layers that must be read."""
        return [] if self.complete else [layer for layer in self.layers if layer.have is None or not layer.proven]


class Import(NamedTuple):
    """What an import comes to.

    Attributes:
        source: as it was named.
        images: each once.
        names: tags and what they will name.
        referrers: subject and artifact, for each artifact that says it is about something.
        kept_index: bytes and digest of an index to keep, and the tag that it belongs to.
        options: what was wanted.
    """

    source: str
    images: tuple[PlannedImage, ...]
    names: tuple[tuple[str, Digest], ...]
    referrers: tuple[tuple[Digest, Digest], ...]
    kept_index: tuple[bytes, Digest, str] | None
    options: Options

    @property
    def bytes_to_read(self) -> int:
        """Of layers that the repository lacks or cannot be sure of, as the source has them."""
        missing = [layer for image in self.images for layer in image.missing]
        return sum({(layer.content_id, layer.descriptor.digest): layer.descriptor.size for layer in missing}.values())

    def tag_plan(self, repo: ReadRepo) -> TagPlan:
        """The changes to refs, once the content is there.  Raises as :func:`cfs_tags.tagging.plan`."""
        options = self.options
        verb = "set" if options.force else "create"
        instructions = [Instruction(verb, name, f"@{digest}", home=options.home) for name, digest in self.names]
        made = tagging.plan(repo, instructions, owners=options.owners)
        changes = list(made.changes)
        for subject, artifact in self.referrers:
            path = f"{layout.REFERRERS}/{subject}/{artifact}"
            changes += _named(repo, path, ContentId.manifest(artifact), "create")
        if self.kept_index is not None:
            _, digest, name = self.kept_index
            path = f"{layout.INDEXES}/{layout.encode_name(name)}"
            changes = [change for change in changes if change.path != path]  # of one that was kept before
            changes += _named(repo, path, ContentId.blob(digest), "create")
        changes += mounting.left_overs(repo)
        return made._replace(changes=tuple(changes))


class Imported(NamedTuple):
    """What became of an import.

    Attributes:
        plan: what was wanted.
        tags: what became of the tags.
        outcome: transactions of a crashed writer that were taken back before.
        objects: how many were written; what was there already is not among them.
        object_bytes: bytes of those.
    """

    plan: Import
    tags: TagPlan
    outcome: refs.Outcome
    objects: int
    object_bytes: int


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(repo: ReadRepo, source: Source, name: str | None, options: Options) -> Import:
    """Read manifests and configs of a source, and look what of them the repository lacks.  Writes nothing.

    Args:
        repo: where to.
        source: where from.
        name: of the tag; None for what the source calls it.
        options: what is wanted.

    Raises:
        InvalidArgument: there is no name.
        InvalidTagName, TagExists, OwnerRefused: the tag cannot be made.
        SourceNotFound, AmbiguousName, PlatformNotFound: the source does not have it.
        FormatError, DigestMismatch, UnsupportedError: documents of the source are not what they should be.
    """
    tag = name if name is not None else source.name
    if tag is None:
        raise InvalidArgument(
            argument="SOURCE", value=source.text, reason="does not say what the image is called: give it a NAME"
        )
    if tags.find(repo, tag) is None:
        tag = TagName.parse(tag)
    chosen = _Chooser(source, options).choose()
    index = (*chosen.document, tag) if options.keep_index and chosen.document is not None else None
    planner = _Planner(repo, source)
    named: dict[str, Digest] = {}
    for suffix, descriptor in chosen.images:
        image = planner.add(descriptor)
        named.setdefault(tag + suffix, image.digest)
    _refuse_names(repo, named, options)
    if options.referrers:
        planner.add_referrers(source.listed(), [] if index is None else [index[1]])
    if options.all_platforms:
        planner.add_attestations(chosen.attestations)
    return Import(source.text, tuple(planner.images.values()), tuple(named.items()), tuple(planner.referrers), index, options)


def _refuse_names(repo: ReadRepo, named: dict[str, Digest], options: Options) -> None:
    """Say at once what would be said in the end: nothing is read for a tag that cannot be made."""
    for name, digest in named.items():
        found = tags.find(repo, name)
        if found is None:
            TagName.parse(name)
        elif found.digest == digest:
            continue
        elif not options.force:
            raise TagExists(name=name, found=found.value, wanted=digest)
        owner = tags.owner_of(name)
        if owner != "app" and owner not in options.owners:
            raise OwnerRefused(name=name, owner=owner)


class _Chosen(NamedTuple):
    images: list[tuple[str, Descriptor]]  # what is added to the tag's name, and the manifest
    document: tuple[bytes, Digest] | None
    attestations: list[Descriptor]


class _Chooser:
    """Finds the manifests that are wanted."""

    def __init__(self, source: Source, options: Options) -> None:
        self._source = source
        self._options = options
        self._top: set[Digest] = set()
        self._platforms: dict[Digest, Platform | None] = {}

    def choose(self) -> _Chosen:
        offered = self._source.offered()
        wanted = self._options.platform
        index: tuple[bytes, Digest] | None = None
        manifests: Sequence[Descriptor] | None = None
        if len(offered) == 1:
            descriptor = offered[0]
            raw = read_document(self._source, descriptor)
            document = oci.parse_manifest_or_index(raw)
            if isinstance(document, oci.Index):
                self._top.add(descriptor.digest)
                index, manifests = (raw, descriptor.digest), document.manifests
        else:
            manifests = offered
        if manifests is None:
            if wanted is not None:
                self._refuse_other(offered[0], wanted)
            if self._options.keep_index or self._options.all_platforms:
                self._no_index()
            return _Chosen([("", offered[0])], None, [])
        if index is None and self._options.keep_index:
            self._no_index()
        known = self._with_platforms(manifests)
        target = self._source.text
        images: list[tuple[str, Descriptor]] = []
        attestations = [entry for entry in manifests if _ATTESTED in entry.annotations]
        if self._options.all_platforms:
            names = set()
            for entry in platforms.images_of(known):
                suffix = "-" + platforms.shown(entry.platform, "-")
                if suffix not in names:
                    names.add(suffix)
                    images.append((suffix, self._manifest(entry, None)))
            if not images:
                raise PlatformNotFound(target=target, wanted="any platform", platforms=())
            try:
                mine = platforms.choose(known, wanted or platforms.this_machine(), target)
            except PlatformNotFound:
                if wanted is not None:
                    raise
            else:
                images.insert(0, ("", self._manifest(mine, None)))
        else:
            platform = wanted or platforms.this_machine()
            images.append(("", self._manifest(platforms.choose(known, platform, target), platform)))
        return _Chosen(images, index, attestations)

    def _manifest(self, entry: Descriptor, platform: Platform | None) -> Descriptor:
        """An image, where an entry may be an index of its own."""
        depth = 0
        seen = set(self._top)  # of this way down: two entries may lead to the same index
        while True:
            document = oci.parse_manifest_or_index(read_document(self._source, entry))
            if not isinstance(document, oci.Index):
                return entry
            depth += 1
            if entry.digest in seen or depth > _MAX_DEPTH:
                wanted = f"an index that does not lead to itself, and at most {_MAX_DEPTH} of them"
                raise FormatError(structure="index", offset=0, wanted=wanted, found=entry.digest, path=self._source.text)
            seen.add(entry.digest)
            known = self._with_platforms(document.manifests)
            entry = platforms.choose(known, platform or entry.platform or platforms.this_machine(), entry.digest)

    def _with_platforms(self, manifests: Sequence[Descriptor]) -> list[Descriptor]:
        """The entries with their platforms; where the index does not say it, the configs do."""
        if len(manifests) > _MAX_ENTRIES:
            self._too_many(len(manifests))
        found = []
        for entry in manifests:
            known = entry
            if entry.platform is None and entry.artifact_type is None and _ATTESTED not in entry.annotations:
                known = entry._replace(platform=self._platform(entry))
            found.append(known)
        return found

    def _platform(self, entry: Descriptor) -> Platform | None:
        """What an image is for, by its config; each is read once, however often an index names it."""
        if entry.digest not in self._platforms:
            document = oci.parse_manifest_or_index(read_document(self._source, entry))
            found = None
            if isinstance(document, oci.Manifest) and (document.is_container or docker.is_docker(document)):
                found = platforms.of_config(oci.parse_config(read_config(self._source, document)))
            self._platforms[entry.digest] = found
        return self._platforms[entry.digest]

    def _too_many(self, count: int) -> NoReturn:
        wanted = f"at most {_MAX_ENTRIES} entries"
        raise FormatError(structure="index", offset=0, wanted=wanted, found=str(count), path=self._source.text)

    def _refuse_other(self, entry: Descriptor, wanted: Platform) -> None:
        found = self._with_platforms([entry._replace(platform=None)])[0].platform
        if found is None or not platforms.fits(wanted, found):
            has = (platforms.shown(found),)
            raise PlatformNotFound(target=self._source.text, wanted=platforms.shown(wanted), platforms=has)

    def _no_index(self) -> None:
        option = "--keep-index" if self._options.keep_index else "--all-platforms"
        raise InvalidArgument(argument=option, value=self._source.text, reason="is a single image, no index")


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


class _Planner:
    """Looks what of the manifests the repository has."""

    def __init__(self, repo: ReadRepo, source: Source) -> None:
        self._repo = repo
        self._source = source
        self._layers: dict[ContentId, ObjectId | None] = {}
        self._known = _Known(repo)
        self.images: dict[Digest, PlannedImage] = {}
        self.referrers: dict[tuple[Digest, Digest], None] = {}
        self._by_source: dict[Digest, PlannedImage] = {}

    def add(self, descriptor: Descriptor) -> PlannedImage:
        """Plan for a manifest."""
        known = self._by_source.get(descriptor.digest)
        if known is not None:
            return known
        raw = read_document(self._source, descriptor)
        manifest = oci.parse_manifest(raw)
        source_digest = digest = descriptor.digest
        if docker.is_docker(manifest):
            raw = docker.to_oci(manifest)
            manifest = oci.parse_manifest(raw)
            digest = _sha256(raw)
        if manifest.subject is not None:
            blobs.hasher(manifest.subject.digest)  # it becomes the name of a directory
        image = self._stored(digest, source_digest, raw, manifest) or self._new(digest, source_digest, raw, manifest)
        if manifest.subject is not None:
            self.referrers[manifest.subject.digest, digest] = None
        self.images[digest] = self._by_source[source_digest] = image
        return image

    def add_referrers(self, listed: Sequence[Descriptor], kept: Sequence[Digest]) -> None:
        """Plan for the artifacts among ``listed`` that are about something that is imported, or about an index that is
        kept; and those about them."""
        about: dict[Digest, list[Descriptor]] = {}
        for entry in list({entry.digest: entry for entry in listed}.values())[:_MAX_REFERRERS]:
            if entry.digest in self._by_source:
                continue
            try:
                document = oci.parse_manifest_or_index(read_document(self._source, entry))
            except (DamagedError, NotFoundError, UnsupportedError):
                continue  # another image's business
            if isinstance(document, oci.Manifest) and document.subject is not None:
                about.setdefault(document.subject.digest, []).append(entry)
        pending = [*self._by_source, *kept]
        while pending:
            for entry in about.pop(pending.pop(), ()):
                self.add(entry)
                pending.append(entry.digest)

    def add_attestations(self, attestations: Sequence[Descriptor]) -> None:
        """Plan for what buildx says of images that are imported: kept like referrers, though it has no subject."""
        for entry in attestations:
            about = entry.annotations[_ATTESTED]
            image = next((image for source, image in self._by_source.items() if source == about), None)
            if image is not None:
                self.referrers[image.digest, self.add(entry).digest] = None

    def _stored(self, digest: Digest, source_digest: Digest, raw: bytes, manifest: Manifest) -> PlannedImage | None:
        """An image of which everything is there."""
        try:
            stored = contents.load(self._repo, digest)
            layers = [
                PlannedLayer(
                    one.descriptor, one.diff_id or one.descriptor.digest, _is_tar(manifest, one.descriptor), one.object, True
                )
                for one in stored.layers
            ]
            # without a link of its own the content of a stream is not safe from the collectors of cfsctl and bootc
            whole = (
                not contents.missing_parts(self._repo, digest)
                and is_linked(self._repo, stored.config_object, ContentId.config(manifest.config.digest))
                and all(
                    layer.have is not None
                    and is_usable(self._repo, layer.have, layer.is_tar)
                    and is_linked(self._repo, layer.have, ContentId.layer(layer.key), ContentId.blob(layer.key))
                    for layer in layers
                )
            )
        except (NotFoundError, DamagedError, UnsupportedError):
            return None
        if not whole:
            return None
        platform = platforms.of_config(stored.config) if stored.config is not None else None
        return PlannedImage(digest, source_digest, raw, manifest, None, platform, tuple(layers), True)

    def _new(self, digest: Digest, source_digest: Digest, raw: bytes, manifest: Manifest) -> PlannedImage:
        raw_config = read_config(self._source, manifest)
        platform = None
        keys: Sequence[Digest] = [layer.digest for layer in manifest.layers]
        if manifest.is_container:
            config = oci.parse_config(raw_config)
            platform = platforms.of_config(config)
            keys = config.diff_ids
            _refuse_config(config, manifest, digest)
        layers = [self._layer(manifest, *pair) for pair in zip(manifest.layers, keys, strict=True)]
        return PlannedImage(digest, source_digest, raw, manifest, raw_config, platform, tuple(layers), False)

    def _layer(self, manifest: Manifest, descriptor: Descriptor, key: Digest) -> PlannedLayer:
        blobs.hasher(descriptor.digest)
        blobs.hasher(key)
        layer = PlannedLayer(descriptor, key, _is_tar(manifest, descriptor), None, False)
        content_id = layer.content_id
        if content_id not in self._layers:
            found = self._repo.stream_object(content_id)
            usable = found is not None and is_usable(self._repo, found, layer.is_tar)
            self._layers[content_id] = found if usable else None
        have = self._layers[content_id]
        if have is None:
            return layer
        # a new manifest reaches what is there only where its blob is known to be that
        proven = self._known.stands_for(descriptor, key)
        if proven:
            size = self._source.size(descriptor.digest)
            if size is not None and size != descriptor.size:
                raise DigestMismatch(path=f"blob {descriptor.digest}", wanted=f"{descriptor.size} bytes", found=f"{size} bytes")
        return layer._replace(have=have, proven=proven)


class _Known:
    """Which compressed layers stand for which diff_ids, by the manifests that the repository has: those were checked."""

    def __init__(self, repo: ReadRepo) -> None:
        self._repo = repo
        self._naming: dict[str, list[Digest]] | None = None
        self._pairs: dict[Digest, set[tuple[Digest, int, Digest]]] = {}

    def stands_for(self, descriptor: Descriptor, key: Digest) -> bool:
        """Whether some manifest has the layer, with that digest and size, for that diff_id (in an artifact: digest)."""
        if self._naming is None:
            self._naming = self._read()
        wanted = descriptor.digest, descriptor.size, key
        return any(wanted in self._of(digest) for digest in self._naming.get(key, ()))

    def _read(self) -> dict[str, list[Digest]]:
        naming: dict[str, list[Digest]] = {}
        for name in self._repo.names(layout.STREAMS) or ():
            digest = ContentId(name).manifest_digest
            try:
                stream = self._repo.stream_object(ContentId(name)) if digest is not None else None
                if digest is not None and stream is not None:
                    for key in self._repo.stream(stream, name).named_refs:
                        naming.setdefault(key, []).append(digest)
            except (NotFoundError, DamagedError, UnsupportedError):
                continue
        return naming

    def _of(self, digest: Digest) -> set[tuple[Digest, int, Digest]]:
        if digest not in self._pairs:
            try:
                layers = contents.load(self._repo, digest).layers
            except (NotFoundError, DamagedError, UnsupportedError):
                layers = ()
            self._pairs[digest] = {
                (one.descriptor.digest, one.descriptor.size, one.diff_id or one.descriptor.digest) for one in layers
            }
        return self._pairs[digest]


def _is_tar(manifest: Manifest, layer: Descriptor) -> bool:
    return manifest.is_container and layer.is_tar


def is_linked(repo: ReadRepo, stream: ObjectId, *names: ContentId) -> bool:
    """Whether a link in ``streams/`` leads to that very object: one of ``names``, or the one that it got when it lost that."""
    return any(repo.stream_object(name) == stream for name in (*names, ContentId.kept(stream)))


_SOME = 4096


def is_usable(repo: ReadRepo, stream: ObjectId, is_tar: bool) -> bool:
    """Whether a layer's splitstream is one of a tar (else: of a blob), and it and all its objects are there."""
    wanted = splitstream.CONTENT_TYPE_LAYER if is_tar else splitstream.CONTENT_TYPE_BLOB
    root = repo.fd
    stat = os.stat
    try:
        with tarstream.opened(repo, stream) as found:
            if found.content_type != wanted:
                return False
            width = repo.algorithm.hex_length
            step = _SOME * repo.algorithm.size
            for begin in range(0, len(found.raw_object_refs), step):
                text = found.raw_object_refs[begin : begin + step].hex()
                for at in range(0, len(text), width):
                    stat(f"objects/{text[at : at + 2]}/{text[at + 2 : at + width]}", dir_fd=root, follow_symlinks=False)
    except (DamagedError, UnsupportedError, FileNotFoundError):
        return False
    except OSError as error:
        raise SystemFailure.of(error, "look at", os.path.join(repo.path, layout.OBJECTS)) from error
    return True


def _refuse_config(config: ImageConfig, manifest: Manifest, digest: Digest) -> None:
    if len(config.diff_ids) != len(manifest.layers):
        raise FormatError(
            structure=f"config of {digest}",
            offset=0,
            wanted=f"{len(manifest.layers)} diff_ids, one for each layer",
            found=str(len(config.diff_ids)),
        )
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if not layer.is_tar and layer.digest != diff_id:
            raise FormatError(
                structure=f"manifest {digest}",
                offset=0,
                wanted="layers that are tars, plain, gzip or zstd",
                found=layer.media_type,
            )


def _named(repo: ReadRepo, path: str, content_id: ContentId, action: str) -> list[RefChange]:
    link = layout.ref_link(path, content_id)
    old = repo.read_link(path)
    return [] if old == link else [RefChange(path, old, link, action)]


def _sha256(data: bytes) -> Digest:
    import hashlib

    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


# -- doing -------------------------------------------------------------------------------------------------------------


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
        writer = _Writer(repo, source, wanted, progress, processes)
        writer.store()
        if prepare is not None:
            prepare(wanted)
        reason = _reason(note.reason, wanted)
        made, outcome = tagging.apply(repo, lambda: wanted.tag_plan(repo), note._replace(reason=reason), timeout)
    return Imported(wanted, made, outcome, writer.objects, writer.object_bytes)


def _reason(given: str | None, wanted: Import) -> str:
    shown = next(image.source_digest for image in wanted.images if image.digest == wanted.names[0][1])
    if wanted.kept_index is not None:
        shown = wanted.kept_index[1]
    text = f"import {wanted.source} {shown}"
    return f"{given} ({text})" if given else text


class _Writer:
    """Puts content into the repository, and gives streams their names."""

    def __init__(
        self,
        repo: WriteRepo,
        source: Source,
        wanted: Import,
        progress: Callable[[int, int], None] | None,
        processes: int | None,
    ) -> None:
        from cfs_tags.repo.objects import ObjectStore

        self.objects = 0
        self.object_bytes = 0
        self._repo = repo
        self._source = source
        self._wanted = wanted
        self._store: ObjectStore = ObjectStore(repo)
        self._helper: Helper | None = None
        self._layers: dict[ContentId, ObjectId] = {}
        self._proven: set[tuple[ContentId, Digest]] = set()
        self._progress = progress
        self._total = wanted.bytes_to_read
        self._read = 0
        self._second = processes == 2 if processes is not None else self._pays()

    def _pays(self) -> bool:
        return self._total >= _SECOND_PROCESS and len(os.sched_getaffinity(0)) > 1

    def store(self) -> None:
        """Everything but the tags."""
        images = [image for image in self._wanted.images if not image.complete]
        if images:
            try:
                if self._second:
                    from cfs_tags.apps.helper import Helper

                    self._helper = Helper(self._repo)
                for image in images:
                    self._store_layers(image)
            finally:
                self._close()
            while not self._link(images):
                pass
        if self._wanted.kept_index is not None:
            self._store_index(*self._wanted.kept_index[:2])
        self.objects += self._store.written
        self.object_bytes += self._store.written_bytes

    def _close(self) -> None:
        if self._helper is not None:
            self._helper.close()
            self.objects += self._helper.written
            self.object_bytes += self._helper.written_bytes
            self._helper = None

    def _sync(self) -> None:
        try:
            fsops.sync_filesystem(self._repo.fd)
        except OSError as error:
            raise SystemFailure.of(error, "write", self._repo.path) from error

    # -- layers --------------------------------------------------------------------------------------------------------

    def _store_layers(self, image: PlannedImage) -> None:
        for layer in image.layers:
            content_id = layer.content_id
            have = self._layers.get(content_id) or layer.have or self._meanwhile(layer)
            if have is None:
                have = self._store_tar(layer) if layer.is_tar else self._store_blob(layer)
            elif not layer.proven and (content_id, layer.descriptor.digest) not in self._proven:
                self._prove(layer)
            self._proven.add((content_id, layer.descriptor.digest))
            self._layers[content_id] = have

    def _meanwhile(self, layer: PlannedLayer) -> ObjectId | None:
        """What somebody else stored since the plan was made."""
        found = self._repo.stream_object(layer.content_id)
        return found if found is not None and is_usable(self._repo, found, layer.is_tar) else None

    def _prove(self, layer: PlannedLayer) -> None:
        """Read a layer that is there already: that the blob is what it is said to be is known afterwards."""
        reader = self._source.open(layer.descriptor.digest)
        try:
            for _ in self._plain(layer, reader):
                pass
        finally:
            reader.close()

    def _plain(self, layer: PlannedLayer, reader: Reader) -> Iterator[bytes]:
        """The bytes that a layer stands for, checked."""
        descriptor, limit = layer.descriptor, self._wanted.options.limit
        what = f"layer {descriptor.digest}"
        chunks = blobs.checked(reader, descriptor.digest, descriptor.size, self._tell)
        if descriptor.digest == layer.key:
            return blobs.limited(chunks, limit, what)
        return blobs.decompressed(chunks, layer.key, limit, what)

    def _store_tar(self, layer: PlannedLayer) -> ObjectId:
        from cfs_tags.apps.layerbuild import LayerBuilder

        reader = self._source.open(layer.descriptor.digest)
        builder = LayerBuilder(self._repo, self._store, self._helper)
        plain = self._plain(layer, reader)
        try:
            try:
                tarsplit.split(plain, builder)
            except FormatError as error:
                if error.structure == "tar":
                    error.path = f"layer {layer.descriptor.digest}"
                    for _ in plain:  # of a blob that is not the right one that is to be said, not what is wrong with it
                        pass
                raise
            return builder.finish()
        finally:
            builder.close()
            reader.close()

    def _store_blob(self, layer: PlannedLayer) -> ObjectId:
        """A layer that is no tar: one object, as it is."""
        descriptor = layer.descriptor
        reader = self._source.open(descriptor.digest)
        writer = splitstream.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_BLOB)
        try:
            with self._store.writer() as file:
                for data in blobs.checked(reader, descriptor.digest, descriptor.size, self._tell):
                    file.write(data)
                writer.add_external(file.finish(), descriptor.size)
        finally:
            reader.close()
        return self._store.add(writer.finish())

    def _tell(self, count: int) -> None:
        self._read += count
        if self._progress is not None:
            self._progress(self._read, self._total)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _link(self, images: Sequence[PlannedImage]) -> bool:
        """Give streams their names, layers first.  False where somebody else gave one of these names to another object
        meanwhile: what refers to it has to be made again."""
        streams: dict[ContentId, tuple[ObjectId, ObjectId | None]] = {}  # what it shall lead to, and what it leads to now
        for image in images:
            layers = [(layer.key, self._layer_stream(layer, streams)) for layer in image.layers]
            config = self._config(image, layers, streams)
            manifest = splitstream.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_MANIFEST)
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

    def _layer_stream(self, layer: PlannedLayer, streams: dict[ContentId, tuple[ObjectId, ObjectId | None]]) -> ObjectId:
        content_id = layer.content_id
        if content_id not in streams:
            made = self._layers[content_id]
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
        writer = splitstream.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_CONFIG)
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

    def _store_index(self, raw: bytes, digest: Digest) -> None:
        content_id = ContentId.blob(digest)
        found = self._repo.stream_object(content_id)
        if found is not None and is_usable(self._repo, found, is_tar=False):
            return
        writer = splitstream.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_BLOB)
        writer.add_external(self._store.add(raw), len(raw))
        stream = self._store.add(writer.finish())
        self._sync()
        try:
            self._name(content_id, stream, found)
            fsops.sync(self._repo.fd, layout.STREAMS)
        except OSError as error:
            raise self._failure(error, layout.STREAMS) from error

    def _failure(self, error: OSError, path: str) -> SystemFailure:
        return SystemFailure.of(error, "write", os.path.join(self._repo.path, path))
