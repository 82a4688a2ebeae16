"""The deployments of a sysroot as rows: state, image, ref, health.

A deployment that is half there is one row with what is wrong with it and what to do, never a failed listing.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import binding
from cfs_tags.errors import AmbiguousName, CfsTagsError, FormatError, InvalidArgument, TargetNotFound
from cfs_tags.formats import bootc, bootorder
from cfs_tags.lookup import digest_of_link, ref_state, referred, version_of
from cfs_tags.repo import contents
from cfs_tags.sysroot import Entry, Finding
from cfs_tags.values import DeploymentId, Digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfs_tags.lookup import RefState
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.sysroot import SysrootView

__all__ = ["Deployment", "list_deployments", "select"]


_BOOTING = frozenset({"boot-entry", "staged-entry", "uki"})


class Deployment(NamedTuple):
    """One row: a deployment, as far as it is there.

    ``state`` is ``booted``, ``staged``, ``rollback``, ``other``, or ``gone`` for a ref whose deployment no place has.
    ``manifest`` is what the ref or the origin says, unchecked; ``health`` is empty when all is well; ``bound`` are the app
    images that are kept with it.
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


def list_deployments(repo: ReadRepo, view: SysrootView) -> list[Deployment]:
    """Every deployment that some place or some ref has, in the order booted, staged, rollback, other, gone.

    Takes no lock and reads one manifest for each deployment, however many the repository has.
    """
    active = [entry for entry in view.entries if not entry.staged and entry.kind != "uki" and entry.deployment is not None]
    menu = [entry.deployment for entry in active if entry.deployment is not None]
    states = bootorder.deployment_states(
        menu,
        [entry.deployment for entry in view.entries if entry.staged and entry.deployment is not None],
        booted=view.booted,
        staged=view.staged,
        loader=view.loader,
        uki=any(entry.kind == "grub" for entry in active),
        without_origin=[name for name in view.seen if view.origins.get(name) is None],
    )
    rows = []
    for name in {**dict.fromkeys(menu), **view.seen, **dict.fromkeys(referred(repo))}:
        rows.append(_row(repo, view, name, states.get(name, "other" if name in view.seen else "gone")))
    rank = {state: number for number, state in enumerate(("booted", "staged", "rollback", "other", "gone"))}
    positions = {name: number for number, name in enumerate(dict.fromkeys(menu))}
    rows.sort(key=lambda row: (rank[row.state], positions.get(row.id, len(positions)), row.id))
    return rows


def select(rows: Sequence[Deployment], text: str) -> Deployment:
    """The row that a user means: ``booted``, ``staged``, ``rollback``, an id, its prefix, or a boot entry.

    That is the path of its file, or without any ``/`` its name among the active entries.

    ``@deployment/`` may stand before an id, as where tags are named.

    Raises:
        TargetNotFound: none.
        AmbiguousName: a prefix fits several.
        InvalidArgument: no such form.
    """
    text = text.removeprefix("@deployment/")
    if text in ("booted", "staged", "rollback"):
        found = [row for row in rows if row.state == text]
    elif "/" in text or text.endswith((".conf", ".efi")):
        place = os.path.realpath(text)
        found = [row for row in rows if any(os.path.realpath(entry.path) == place for entry in row.entries)]
        if not found and "/" not in text:
            found = [row for row in rows if any(_is_active(entry, text) for entry in row.entries)]
    elif re.fullmatch(r"[0-9a-f]+", text, re.ASCII):
        found = [row for row in rows if row.id.startswith(text)]
    else:
        raise InvalidArgument(
            argument="deployment", value=text, reason="is none of booted, staged, rollback, an id, a boot entry"
        )
    if not found:
        raise TargetNotFound(kind="deployment", name=text)
    if len(found) > 1:
        raise AmbiguousName(name=text, candidates=tuple(row.id for row in found))
    return found[0]


def _no_entry(view: SysrootView) -> Finding:
    unread = [place for place in view.unread if place.name in _BOOTING]
    if unread:  # a boot directory that was not found is no sign that nothing boots it
        names = ", ".join(place.name for place in unread)
        return Finding(
            "boot-entry-unknown", f"no boot entry that was read names it, and not all were ({names})", "look there first"
        )
    return Finding("no-boot-entry", "no boot entry names it", "bootc removes it at its next collection; nothing boots it")


def _is_active(entry: Entry, name: str) -> bool:
    return not entry.staged and os.path.basename(entry.path) == name


def _row(repo: ReadRepo, view: SysrootView, name: DeploymentId, state: str) -> Deployment:
    health: list[Finding] = []
    places = view.seen.get(name, frozenset())
    origin = view.origins.get(name)
    ref = ref_state(repo, name)
    manifest = digest_of_link(ref.manifest)
    image = None
    if isinstance(origin, bootc.Origin):
        image = origin.image.name if origin.image is not None else origin.reference
        manifest = manifest or origin.manifest_digest
    if state != "gone":
        health.extend(_origin_health(name, places, origin, ref.status))
        if not places & _BOOTING:
            health.append(_no_entry(view))
        if "state" not in places:
            health.append(
                Finding("no-state", "it has no state directory", "another system's entry, or left by an interrupted clean-up")
            )
    health.extend(_image_health(repo, name, state))
    health.extend(_ref_health(ref, state))
    facts = _facts(repo, manifest, health) if manifest is not None else (None, None)
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
        binding.bound_names(repo, name),
    )


def _origin_health(
    name: DeploymentId, places: frozenset[str], origin: bootc.Origin | FormatError | None, status: str
) -> Iterator[Finding]:
    keep = "" if status == "complete" else "; 'cfs-tag migrate' keeps it"
    if origin is None:
        if "state" in places:
            yield Finding("origin-missing", "its origin file is missing", f"bootc does not see it and collects it{keep}")
    elif isinstance(origin, FormatError):
        yield Finding("origin-unreadable", origin.message, f"bootc's status and collection fail{keep}")
        return
    if isinstance(origin, bootc.Origin):
        for problem in origin.problems:
            yield Finding("origin-odd", problem, "bootc may fail on it: correct the file")
    if isinstance(origin, bootc.Origin) and origin.manifest_digest is None:
        yield Finding(
            "origin-without-digest",
            "its origin names no manifest",
            "'cfs-tag migrate --write-origin' adds it" if status == "complete" else "'cfs-tag migrate' finds it",
        )


def _image_health(repo: ReadRepo, name: DeploymentId, state: str) -> Iterator[Finding]:
    try:
        object_id = repo.image_object(name)
        gone = object_id is None or not repo.has_object(object_id)
    except CfsTagsError as error:
        yield Finding("image-unreadable", error.message, "deploy the image again")
        return
    if gone and state != "gone":
        yield Finding("image-gone", "its EROFS image is not in the repository", "it cannot boot: deploy the image again")


def _ref_health(ref: RefState, state: str) -> Iterator[Finding]:
    if state == "gone":
        yield Finding("deployment-gone", "no place has this deployment any more", "'cfs-tag retire' removes its ref")
    for problem in ref.problems.values():
        yield Finding("ref-broken", problem, "'cfs-tag fsck' says what is missing")
    if not ref.problems and state != "gone":
        if ref.status == "none":
            yield Finding("no-ref", "it has no deployment ref", "'cfs-tag migrate' makes it")
        elif ref.status == "partial":
            yield Finding("ref-partial", "a part of its deployment ref is missing", "'cfs-tag migrate' completes it")


def _facts(repo: ReadRepo, digest: Digest, health: list[Finding]) -> tuple[str | None, str | None]:
    """Version and creation time; what is wrong with the manifest goes to ``health``."""
    try:
        image = contents.load(repo, digest)
    except TargetNotFound:
        health.append(Finding("manifest-gone", f"manifest {digest} is not in the repository", "'cfs-tag lookup' finds another"))
        return None, None
    except CfsTagsError as error:
        health.append(Finding("manifest-damaged", error.message, "'cfs-tag fsck' says what is missing"))
        return None, None
    return version_of(image), image.config.created if image.config is not None else None
