"""The deployments of a sysroot as rows: state, image, ref, health.

A deployment that is half there is one row with what is wrong with it and what to do, never a failed listing.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, TargetNotFound, UsageError
from cfs_tags.formats.boot.order import deployment_states
from cfs_tags.formats.boot.origin import MAX_ORIGIN, Origin, parse_image_reference, parse_origin
from cfs_tags.formats.boot.paths import BOOTC_TAG_PREFIX
from cfs_tags.host import bound
from cfs_tags.host.lookup import RefState, digest_of_link, ref_state, referred, version_of
from cfs_tags.host.sightings import BOOTING, Entry, Finding
from cfs_tags.repo import images, layout, refs
from cfs_tags.tags import pins
from cfs_tags.tags.pins import Pin, Record
from cfs_tags.tags.rows import list_tags
from cfs_tags.values import DeploymentId, Digest, ObjectId, instant_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.tags.rows import Tag


STATES = ("booted", "staged", "rollback")
"""States that at most one deployment has, so that they name it."""
_MEND = "import the same image: that brings it back; a pull by cfsctl or bootc does not"


class Pinned(NamedTuple):
    """A pin of a deployment, and what was written down of it."""

    pin: Pin
    record: Record


class Deployment(NamedTuple):
    """One row: a deployment, as far as it is there.

    ``state`` is ``booted``, ``staged``, ``rollback``, ``other``; of a deployment that no place has ``kept`` where it is pinned,
    and ``gone`` where only a ref is left.
    ``manifest`` is what the ref or the origin says, unchecked, or where neither says any what a tag of bootc's names; ``image``
    is what the origin says, or where it cannot be read what is left of it, or a tag of the manifest.  ``health`` is empty when
    all is well; ``bound`` are the app images that are kept with it; ``pins`` those that keep it.
    """

    id: DeploymentId
    state: str
    image: str | None
    manifest: Digest | None
    version: str | None
    created: str | None
    ref: str
    places: tuple[str, ...]
    entries: tuple[Entry, ...]
    health: tuple[Finding, ...]
    bound: tuple[str, ...] = ()
    pins: tuple[Pinned, ...] = ()

    @property
    def built(self) -> datetime | None:
        """When its image was made, where that is said so that it can be read."""
        return instant_of(self.created)


@refs.at_once
def list_deployments(repo: ReadRepo, view: SysrootView) -> list[Deployment]:
    """Every deployment that some place or some ref has, in the order booted, staged, rollback, other, kept, gone.

    Reads one manifest for each deployment, however many the repository has.
    """
    active = [entry for entry in view.entries if not entry.staged and entry.kind != "uki" and entry.deployment is not None]
    menu = [entry.deployment for entry in active if entry.deployment is not None]
    states = deployment_states(
        menu,
        [entry.deployment for entry in view.entries if entry.staged and entry.deployment is not None],
        booted=view.booted,
        staged=view.staged,
        loader=view.loader,
        uki=any(entry.kind == "grub" for entry in active),
        without_origin=[name for name in view.seen if view.origins.get(name) is None],
    )
    rows = []
    known = _Known(repo)
    for name in {**dict.fromkeys(menu), **view.seen, **dict.fromkeys(known.pins), **dict.fromkeys(referred(repo))}:
        unseen = "kept" if name in known.pins else "gone"
        rows.append(_row(repo, view, name, states.get(name, "other" if name in view.seen else unseen), known))
    rank = {state: number for number, state in enumerate((*STATES, "other", "kept", "gone"))}
    positions = {name: number for number, name in enumerate(dict.fromkeys(menu))}
    rows.sort(key=lambda row: (rank[row.state], positions.get(row.id, len(positions)), row.id))
    return rows


def select(rows: Sequence[Deployment], text: str) -> Deployment:
    """The row that a user means: ``booted``, ``staged``, ``rollback``, an id, its prefix, or a boot entry.

    That is the path of its file, or without any ``/`` its name among the active entries.

    ``@deployment/`` may stand before an id, and ``@`` before a state, as where tags are named.

    Raises:
        TargetNotFound: none.
        UsageError: a prefix fits several.
        UsageError: no such form.
    """
    text = text.removeprefix("@deployment/")
    if text.removeprefix("@") in STATES:
        text = text.removeprefix("@")
    if text in STATES:
        found = [row for row in rows if row.state == text]
    elif "/" in text or text.endswith((".conf", ".efi")):
        place = os.path.realpath(text)
        found = [row for row in rows if any(os.path.realpath(entry.path) == place for entry in row.entries)]
        if not found and "/" not in text:
            found = [row for row in rows if any(_is_active(entry, text) for entry in row.entries)]
    elif re.fullmatch(r"[0-9a-f]+", text, re.ASCII):
        found = [row for row in rows if row.id.startswith(text)]
    else:
        raise UsageError(
            "invalid-argument",
            argument="deployment",
            value=text,
            reason="is none of booted, staged, rollback, an id, a boot entry",
        )
    if not found:
        raise TargetNotFound(kind="deployment", name=text)
    if len(found) > 1:
        raise UsageError("ambiguous-name", name=text, candidates=tuple(row.id for row in found))
    return found[0]


def _no_entry(view: SysrootView) -> Finding:
    unread = [place for place in view.unread if place.name in BOOTING]
    if unread:  # a boot directory that was not found is no sign that nothing boots it
        names = ", ".join(place.name for place in unread)
        return Finding(
            "boot-entry-unknown", f"no boot entry that was read names it, and not all were ({names})", "look there first"
        )
    return Finding("no-boot-entry", "no boot entry names it", "bootc removes it at its next collection")


def _is_active(entry: Entry, name: str) -> bool:
    return not entry.staged and os.path.basename(entry.path) == name


def _row(
    repo: ReadRepo,
    view: SysrootView,
    name: DeploymentId,
    state: str,
    known: _Known,
) -> Deployment:
    health: list[Finding] = []
    places = view.seen.get(name, frozenset())
    origin = view.origins.get(name)
    ref = ref_state(repo, name)
    manifest = digest_of_link(ref.manifest)
    if isinstance(origin, Origin):
        manifest = manifest or origin.manifest_digest
    pinned = known.pins.get(name, ())
    manifest = manifest or next((pin.manifest for pin in pinned), None) or known.manifest_of(name)
    image = _image_of(repo, view, name, manifest, known)
    if name in view.seen:
        health.extend(_origin_health(name, places, origin, ref.status))
        if not places & BOOTING:
            health.append(_no_entry(view))
        if "state" not in places:
            health.append(
                Finding("no-state", "it has no state directory", "another system's entry, or left by an interrupted clean-up")
            )
    health.extend(_image_health(repo, name, state))
    health.extend(_ref_health(ref, state, view))
    facts = _facts(repo, manifest, health, known.missing) if manifest is not None else (None, None)
    entries = tuple(entry for entry in view.entries if entry.deployment == name)
    health.extend(
        Finding("boot-entry-ambiguous", f"{entry.path}: {entry.problem}", "leave one composefs= in its options")
        if entry.ambiguous
        else Finding("boot-entry-odd", f"{entry.path}: {entry.problem}", "mend it")
        for entry in entries
        if entry.problem is not None
    )
    return Deployment(
        name,
        state,
        image,
        manifest,
        facts[0],
        facts[1],
        ref.status,
        tuple(sorted(places)),
        entries,
        tuple(health),
        bound.bound_names(repo, name),
        tuple(Pinned(pin, pins.record_of(repo, pin)) for pin in pinned),
    )


def _image_of(repo: ReadRepo, view: SysrootView, name: DeploymentId, manifest: Digest | None, known: _Known) -> str | None:
    """The name of the image, as far as it is known."""
    origin = view.origins.get(name)
    reference = origin.reference if isinstance(origin, Origin) else view.salvaged.get(name)
    if reference is not None:
        image = parse_image_reference(reference)
        return image.name if image is not None else reference
    for pin in known.pins.get(name, ()):
        with suppress(CfsTagsError):
            kept = parse_origin(pins.kept_file(repo, pin, pins.ORIGIN, MAX_ORIGIN) or b"").image_name
            if kept is not None:
                return kept
    return known.tag_of(manifest) if manifest is not None and "state" in view.seen.get(name, ()) else None


class _Known:
    """What the rows of one listing share, read at the first question."""

    def __init__(self, repo: ReadRepo) -> None:
        self._repo = repo
        self.missing: dict[ObjectId, tuple[ObjectId, ...]] = {}
        self.pins = pins.of_deployments(repo)
        self._manifests: dict[str, set[Digest]] | None = None
        self._tags: list[Tag] | None = None

    def manifest_of(self, name: DeploymentId) -> Digest | None:
        """The only manifest under a tag of bootc's whose config names the EROFS image of a deployment."""
        if self._manifests is None:
            self._manifests = {}
            start = layout.encode_name(BOOTC_TAG_PREFIX)
            for file in self._repo.names(layout.SHARED_TAGS) or ():
                if not file.startswith(start):
                    continue
                with suppress(CfsTagsError):  # it cannot be the answer; its own row says what is wrong with it
                    digest = digest_of_link(self._repo.read_link(f"{layout.SHARED_TAGS}/{file}"))
                    if digest is not None:
                        for erofs in images.load(self._repo, digest).erofs.values():
                            self._manifests.setdefault(erofs, set()).add(digest)
        found = self._manifests.get(name, set())
        return next(iter(found)) if len(found) == 1 else None

    def tag_of(self, digest: Digest) -> str | None:
        """The first tag of a manifest, by name, that is not bootc's own."""
        if self._tags is None:
            self._tags = list_tags(self._repo, owners=("app",))
        return next((tag.name for tag in self._tags if tag.digest == digest), None)


def _origin_health(
    name: DeploymentId, places: frozenset[str], origin: Origin | CfsTagsError | None, status: str
) -> Iterator[Finding]:
    keep = "" if status == "complete" else "; a migration keeps it"
    if origin is None:
        if "state" in places:
            yield Finding("origin-missing", "its origin file is missing", f"bootc does not see it and collects it{keep}")
    elif isinstance(origin, CfsTagsError):
        yield Finding("origin-unreadable", origin.message, f"bootc's status and collection fail{keep}")
        return
    if isinstance(origin, Origin):
        for problem in origin.problems:
            yield Finding("origin-odd", problem, "bootc may fail on it: correct the file")
    if isinstance(origin, Origin) and origin.manifest_digest is None:
        yield Finding(
            "origin-without-digest",
            "its origin names no manifest",
            "a migration that writes origin files adds it" if status == "complete" else "a migration finds it",
        )


def _image_health(repo: ReadRepo, name: DeploymentId, state: str) -> Iterator[Finding]:
    try:
        object_id = repo.image_object(name)
        gone = object_id is None or not repo.has_object(object_id)
    except CfsTagsError as error:
        yield Finding("image-unreadable", error.message, "deploy the image again")
        return
    if gone and state not in ("kept", "gone"):
        yield Finding("image-gone", "its EROFS image is not in the repository", "it cannot boot: deploy the image again")


def _ref_health(ref: RefState, state: str, view: SysrootView) -> Iterator[Finding]:
    if state == "gone" and view.unread:
        names = ", ".join(dict.fromkeys(place.name for place in view.unread))
        yield Finding("deployment-gone", f"no place that was read has it, and not all were ({names})", "look there first")
    elif state == "gone":
        yield Finding("deployment-gone", "no place has this deployment any more", "retire its ref")
    for problem in ref.problems.values():
        yield Finding("ref-broken", problem, "a check says what is missing")
    if not ref.problems and state not in ("kept", "gone"):
        if ref.status == "none":
            yield Finding("no-ref", "it has no deployment ref", "a migration makes it")
        elif ref.status == "partial":
            yield Finding("ref-partial", "a part of its deployment ref is missing", "a migration completes its ref")


def _facts(
    repo: ReadRepo, digest: Digest, health: list[Finding], known: dict[ObjectId, tuple[ObjectId, ...]]
) -> tuple[str | None, str | None]:
    """Version and creation time; what is wrong with the manifest goes to ``health``."""
    try:
        image = images.load(repo, digest)
        for missing in images.missing_content(repo, digest, known):
            health.append(Finding("content-missing", images.describe(repo, missing), _MEND))
    except TargetNotFound:
        health.append(Finding("manifest-gone", f"manifest {digest} is not in the repository", "a look-up may find another"))
        return None, None
    except CfsTagsError as error:
        health.append(Finding("manifest-damaged", error.message, "a check says what is missing"))
        return None, None
    return version_of(image), image.config.created if image.config is not None else None
