"""Which manifest a deployment was made from: by its ref, and for those that have none by what else there is.

Order of the sources: the deployment ref; ``manifest_digest`` in the origin; a manifest whose config names the
deployment's EROFS image, plain or for booting; ``.imginfo``.  No network, and no origin where there is a ref.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, SystemFailure
from cfs_tags.formats import oci
from cfs_tags.formats.boot import paths
from cfs_tags.formats.boot.origin import MAX_IMGINFO, ImgInfo, Origin, parse_imginfo
from cfs_tags.repo import images, layout, refs
from cfs_tags.repo.directory import Directory
from cfs_tags.values import ContentId, DeploymentId, Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.images import StoredImage
    from cfs_tags.repo.store import ReadRepo


class RefState(NamedTuple):
    """The deployment ref: its three links as they are, and what is wrong with each (``manifest``, ``config``, ``image``).

    ``failure``: the error of the system when one of them was read; None if all were read.
    """

    manifest: str | None
    config: str | None
    image: str | None
    problems: Mapping[str, str]
    failure: SystemFailure | None = None

    @property
    def status(self) -> str:
        """``complete``, ``image-only``, ``partial``, ``broken`` or ``none``."""
        if self.problems:
            return "broken"
        have = (self.manifest is not None, self.config is not None, self.image is not None)
        if all(have):
            return "complete"
        if not any(have):
            return "none"
        return "image-only" if have == (False, False, True) else "partial"


class Lookup(NamedTuple):
    """Which manifest a deployment was made from.

    ``source`` is ``ref``, ``origin``, ``image`` (a config names its EROFS image), ``imginfo`` or ``none``.  ``digest`` is
    None where there is none, or where ``candidates`` have different configs (``ambiguous``); candidates are in the order
    of preference.  ``notes`` say which sources were tried and why they did not do.  ``unread``: there is no answer, and the
    system would not read something that may have it: what it said, first.
    """

    id: DeploymentId
    digest: Digest | None
    source: str
    candidates: tuple[Digest, ...] = ()
    ambiguous: bool = False
    notes: tuple[str, ...] = ()
    imginfo: ImgInfo | None = None
    unread: SystemFailure | None = None


def ref_state(repo: ReadRepo, name: DeploymentId) -> RefState:
    """The three links of a deployment ref, and what is wrong with them.  A link is looked behind once, not followed."""
    links: dict[str, str | None] = {}
    problems: dict[str, str] = {}
    failure = None
    for part, path in ref_paths(name).items():
        try:
            link = links[part] = repo.read_link(path)
            if link is not None:
                target = layout.ref_target(path, link)
                there = repo.image_object(target) if part == "image" else repo.stream_object(target)
                if there is None:
                    problems[part] = f"{path} leads to {target}, which is gone"
        except CfsTagsError as error:
            links.setdefault(part, "")
            problems[part] = error.message
            failure = error if isinstance(error, SystemFailure) else failure
    return RefState(links["manifest"], links["config"], links["image"], problems, failure)


def ref_paths(name: DeploymentId) -> dict[str, str]:
    """Where the parts of a deployment ref stand: ``manifest``, ``config``, ``image``."""
    return {
        "manifest": f"{layout.DEPLOYMENTS}/{name}",
        "config": f"{layout.CONFIGS}/{name}",
        "image": f"{layout.DEPLOYMENT_IMAGES}/{name}",
    }


def referred(repo: ReadRepo) -> list[DeploymentId]:
    """Deployments that have a ref, a part of one, or app images that are bound to them, by id."""
    found: list[str] = []
    for top in (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES):
        found.extend(repo.names(top) or ())
    found.extend(name for name in repo.names(layout.BOUND) or () if repo.names(f"{layout.BOUND}/{name}"))
    shape = re.compile(f"[0-9a-f]{{{repo.algorithm.hex_length}}}", re.ASCII)
    return sorted({DeploymentId.trusted(name) for name in found if shape.fullmatch(name)})


def known(repo: ReadRepo) -> frozenset[DeploymentId]:
    """Deployments that have something in the repository: a ref, or an image that can be mounted."""
    shape = re.compile(f"[0-9a-f]{{{repo.algorithm.hex_length}}}", re.ASCII)
    mountable = (DeploymentId.trusted(name) for name in repo.names(layout.IMAGES) or () if shape.fullmatch(name))
    return frozenset((*referred(repo), *mountable))


class Index:
    """All manifests of a repository by what their configs name.  Built at the first question, and only then.

    Attributes:
        unread: the errors of those that the system would not read.
    """

    def __init__(self, repo: ReadRepo) -> None:
        self.unread: list[SystemFailure] = []
        self._repo = repo
        self._images: dict[str, set[Digest]] | None = None
        self._configs: dict[Digest, list[Digest]] = {}
        self._config_of: dict[Digest, Digest] = {}
        self._tags: dict[Digest, list[str]] | None = None

    def of_image(self, name: str) -> list[Digest]:
        """Manifests whose config names an EROFS image, plain or for booting.

        Of several manifests with one config all are meant: the config stream that a manifest names may be an older
        writing, from before that image was made.
        """
        configs = self._build().get(name, set())
        return sorted(digest for config in configs for digest in self._configs[config])

    def of_config(self, digest: Digest) -> list[Digest]:
        """Manifests with a config."""
        self._build()
        return self._configs.get(digest, [])

    def config_of(self, digest: Digest) -> Digest | None:
        """The config of an indexed manifest."""
        return self._config_of.get(digest)

    def tags_of(self, digest: Digest) -> list[str]:
        """Shared tags of a manifest, by name."""
        if self._tags is None:
            tags: dict[Digest, list[str]] = {}
            start = len(layout.SHARED_TAGS) + 1
            for path, link in refs.walk(self._repo, layout.SHARED_TAGS):
                target = digest_of_link(link)
                if target is not None:
                    tags.setdefault(target, []).append(layout.decode_name(path[start:]))
            self._tags = {target: sorted(names) for target, names in tags.items()}
        return self._tags.get(digest, [])

    def _build(self) -> dict[str, set[Digest]]:
        if self._images is None:
            self._images = {}
            for name in sorted(self._repo.names(layout.STREAMS) or ()):
                digest = ContentId.trusted(name).manifest_digest
                if digest is None:
                    continue
                try:
                    image = images.load(self._repo, digest)
                except SystemFailure as error:
                    self.unread.append(error)
                    continue
                except CfsTagsError:
                    continue  # it cannot be the answer; fsck reports it
                config = image.manifest.config.digest
                self._configs.setdefault(config, []).append(digest)
                self._config_of[digest] = config
                for erofs in image.erofs.values():
                    self._images.setdefault(erofs, set()).add(config)
        return self._images


def look_up(repo: ReadRepo, view: SysrootView, name: DeploymentId, index: Index | None = None) -> Lookup:
    """The manifest of a deployment, from the first source that has it: ref, origin, EROFS image, ``.imginfo``.

    Args:
        repo: where.
        view: the sysroot; its origins and ``.imginfo`` files are looked at only where there is no ref.
        name: which deployment.
        index: shared by several look-ups; None makes one if it is needed.
    """
    state = ref_state(repo, name)
    digest = digest_of_link(state.manifest)
    unread = [] if state.failure is None else [state.failure]
    if digest is not None and _has_manifest(repo, digest, unread):
        return Lookup(name, digest, "ref")
    notes = [] if digest is None else [f"its ref leads to {digest}, which is gone"]
    origin = view.origins.get(name)
    digest = _of_origin(repo, origin, notes, unread)
    if digest is not None:
        return Lookup(name, digest, "origin", notes=tuple(notes))
    index = index if index is not None else Index(repo)
    imginfo = _imginfo(view, name, notes, unread)
    image_name = origin.image.name if isinstance(origin, Origin) and origin.image is not None else None
    for source, found in (
        ("image", index.of_image(name)),
        ("imginfo", index.of_config(imginfo.config_digest) if imginfo is not None else []),
    ):
        if not found:
            if source == "image":
                notes.append("no config in the repository names its EROFS image")
            elif imginfo is not None:
                notes.append(f"no manifest has the config {imginfo.config_digest} that .imginfo names")
            continue
        ranked = sorted(found, key=lambda candidate: _rank(index, candidate, image_name))
        configs = {index.config_of(candidate) for candidate in ranked}
        if len(configs) > 1 and imginfo is not None and imginfo.config_digest in configs:
            ranked = [candidate for candidate in ranked if index.config_of(candidate) == imginfo.config_digest]
            configs = {imginfo.config_digest}
            notes.append("several configs name its EROFS image; .imginfo says which")
        if len(configs) > 1:
            return Lookup(name, None, source, tuple(ranked), True, tuple(notes), imginfo)
        return Lookup(name, ranked[0], source, tuple(ranked), False, tuple(notes), imginfo)
    unread += index.unread
    notes += [error.message for error in unread if error.message not in notes]
    return Lookup(name, None, "none", notes=tuple(notes), imginfo=imginfo, unread=next(iter(unread), None))


def _of_origin(
    repo: ReadRepo, origin: Origin | CfsTagsError | None, notes: list[str], unread: list[SystemFailure]
) -> Digest | None:
    """The manifest that an origin file names, where it is here; else a note says why there is none."""
    if isinstance(origin, CfsTagsError):
        notes.append(origin.message)
        unread += [origin] if isinstance(origin, SystemFailure) else []
    elif origin is None:
        notes.append("there is no origin file")
    elif origin.manifest_digest is None:
        notes.append("the origin names no manifest")
    elif _has_manifest(repo, origin.manifest_digest, unread):
        return origin.manifest_digest
    else:
        notes.append(f"the origin names {origin.manifest_digest}, which is gone")
    return None


def _rank(index: Index, digest: Digest, image_name: str | None) -> tuple[int, str]:
    """bootc's own tag first, then the tag equal to the origin's image, other tags by name, untagged ones by digest."""
    tags = index.tags_of(digest)
    if any(tag.startswith(paths.BOOTC_TAG_PREFIX) for tag in tags):
        return 0, digest
    if image_name is not None and any(tag in (image_name, f"docker://{image_name}") for tag in tags):
        return 1, digest
    return (2, tags[0]) if tags else (3, digest)


def _imginfo(view: SysrootView, name: DeploymentId, notes: list[str], unread: list[SystemFailure]) -> ImgInfo | None:
    if "state" not in view.seen.get(name, ()):
        return None
    home = f"{paths.STATE_DEPLOY}/{name}"
    path = f"{home}/{paths.imginfo_name(name)}"
    shown = os.path.join(view.sysroot.root, path)
    try:
        with Directory(view.sysroot.root) as top:
            # a link in the place of the state directory is not followed
            data = top.read_file(path, MAX_IMGINFO) if top.is_directory(home) else None
        return parse_imginfo(data) if data is not None else None
    except FormatError as error:
        error.path = error.path or shown
        notes.append(error.message)
    except (OSError, SystemFailure) as error:
        unread.append(error if isinstance(error, SystemFailure) else SystemFailure.of(error, "read", shown))
        notes.append(unread[-1].message)
    return None


def _has_manifest(repo: ReadRepo, digest: Digest, unread: list[SystemFailure]) -> bool:
    try:
        return repo.stream_object(ContentId.manifest(digest)) is not None
    except SystemFailure as error:
        unread.append(error)
    except CfsTagsError:
        pass  # it cannot be the answer; fsck reports it
    return False


def version_of(image: StoredImage) -> str | None:
    """The version that an image says it is: by annotation, else by label."""
    key = f"{oci.ANNOTATIONS}version"
    labels = image.config.labels if image.config is not None else {}
    return image.manifest.annotations.get(key) or labels.get(key)


def digest_of_link(link: str | None) -> Digest | None:
    """The manifest that a ref's link leads to; None for no link, or another target."""
    return ContentId.trusted(link.rpartition("/")[2]).manifest_digest if link is not None else None
