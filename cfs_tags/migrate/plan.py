"""The plan of migrating a host, and the proof that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, RefusedError, SystemFailure, TargetNotFound
from cfs_tags.formats.boot.origin import Origin
from cfs_tags.graph import Closures, Rule
from cfs_tags.host.lookup import Index, look_up, ref_state
from cfs_tags.host.refs import plan_parts
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.migrate.record import OriginChange, origin_change
from cfs_tags.repo import images, layout
from cfs_tags.repo.store import ReadRepo
from cfs_tags.repo.transaction.change import RefChange
from cfs_tags.tags.names import only
from cfs_tags.values import ContentId, DeploymentId, Digest, ObjectId


class Proof(NamedTuple):
    """Numbers of objects, streams and images together: kept before, kept after, and lost (which must be none)."""

    before: int
    after: int
    lost: int


class Row(NamedTuple):
    """What migrating means for one deployment.

    ``done``: ``complete`` (nothing to do), ``migrate`` (the whole ref), ``image-only`` (its manifest is not known: still
    bootable after any collection), ``nothing`` (no EROFS image: there is nothing to keep), ``damaged`` (its ref is complete,
    what it leads to is not), ``not-here`` (a boot entry of another system).  ``source`` is where the manifest came from.
    ``unread``: its manifest is not known because the system would not read something.
    """

    id: DeploymentId
    done: str
    manifest: Digest | None
    source: str
    reason: str
    proof: Proof
    candidates: tuple[Digest, ...] = ()
    unread: bool = False


class MigratePlan(NamedTuple):
    """Changes to refs and origins, a row for each deployment, and the proof for all of them together."""

    changes: tuple[RefChange, ...]
    rows: tuple[Row, ...]
    origins: tuple[OriginChange, ...]
    proof: Proof

    @property
    def settled(self) -> tuple[str, ...]:
        """The directories of deployment refs: they are to be on disk also where nothing changes."""
        return (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES)

    @property
    def unresolved(self) -> bool:
        """Whether a deployment is left without any ref, or with one that does not keep it whole, or it is not known which."""
        return any(row.done in ("nothing", "damaged") or row.unread for row in self.rows)


class _Read(NamedTuple):
    """What is read once for all deployments: manifests by their images, closures, which content is missing, and the names
    that are kept before and after."""

    manifests: Index
    closures: Closures
    content: dict[ObjectId, tuple[ObjectId, ...]]
    before: set[str]
    after: set[str]

    def prove(self, before: list[str], after: list[str]) -> Proof:
        """For one deployment."""
        self.before.update(before)
        self.after.update(after)
        return _prove(self.closures, before, after)


def manifests_by(view: SysrootView, words: Mapping[str, str]) -> dict[DeploymentId, Digest]:
    """The user's word: manifests of deployments that are named by their ids, or the starts of those.

    Raises:
        TargetNotFound, UsageError: a deployment is not there, or several are.
        InvalidDigest: what is no digest.
    """
    given = {}
    for start, digest in words.items():
        name = only([name for name in view.seen if name.startswith(start)], start, "deployment")
        given[name] = Digest.parse(digest.removeprefix("@"))
    return given


def plan(
    repo: ReadRepo,
    view: SysrootView,
    *,
    manifests: Mapping[DeploymentId, Digest] | None = None,
    write_origin: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MigratePlan:
    """Plan the migration of this host.

    Args:
        repo: where.
        view: the sysroot.
        manifests: the user's word for deployments whose look-up is ambiguous or finds nothing.
        write_origin: add ``manifest_digest`` to origins that lack it, where the ref is (or becomes) complete.
        progress: is called with how many deployments were looked at, and how many there are.

    Raises:
        RefusedError (would-lose-content): something that is kept today would not be kept by the refs.
        TargetNotFound: ``manifests`` names a deployment or a manifest that is not there.
        RefusedError (deployment-mismatch): ``manifests`` names a manifest that was made into other EROFS images only.
    """
    read = _Read(Index(repo), Closures(repo, Rule.LINKED), {}, set(), set())
    named = dict(manifests or {})
    changes: list[RefChange] = []
    rows: list[Row] = []
    origins: list[OriginChange] = []
    lost: list[str] = []
    _check_given(repo, view, named, read.manifests)
    read.closures.read(f"{layout.IMAGES}/{name}" for name in view.seen)
    for number, name in enumerate(sorted(view.seen)):
        if progress is not None:
            progress(number, len(view.seen))
        try:
            row, parts = _row(repo, view, name, read, named.get(name))
        except CfsTagsError as error:
            row, parts = _without_image(name, error), ()
        rows.append(row)
        changes.extend(parts)
        if row.proof.lost:
            why = f" ({row.reason})" if row.reason else ""
            lost.append(f"deployment {name[:12]}…: {row.proof.lost} of {row.proof.before}{why}")
        if write_origin and row.manifest is not None and row.done in ("complete", "migrate"):
            origins.extend(origin_change(view, name, row.manifest))
    if lost:
        raise RefusedError("would-lose-content", what="migrating", lost=tuple(lost))
    proof = _prove(read.closures, sorted(read.before), sorted(read.after))
    return MigratePlan(tuple(changes), tuple(rows), tuple(origins), proof)


def _check_given(repo: ReadRepo, view: SysrootView, named: Mapping[DeploymentId, Digest], index: Index) -> None:
    for name, digest in named.items():
        if name not in view.seen:
            raise TargetNotFound(kind="deployment", name=name)
        made = images.load(repo, digest).erofs.values()
        if made and name not in made and digest not in index.of_image(name):
            raise RefusedError("deployment-mismatch", deployment=name, manifest=digest, images=tuple(sorted(set(made))))


def _row(
    repo: ReadRepo, view: SysrootView, name: DeploymentId, read: _Read, given: Digest | None
) -> tuple[Row, tuple[RefChange, ...]]:
    state = ref_state(repo, name)
    if state.failure is not None:
        raise state.failure
    lookup = look_up(repo, view, name, read.manifests)
    digest = given or lookup.digest
    unread = digest is None and lookup.unread is not None
    source = "given" if given is not None else lookup.source
    image = repo.image_object(name)
    if image is None and "state" not in view.seen[name] and state.status == "none":
        return Row(name, "not-here", None, "none", "another system's boot entry: nothing of it is here", Proof(0, 0, 0)), ()
    if state.status == "complete" and given is None and lookup.source == "ref":
        missing = _missing(repo, name, digest) or _lacking(repo, digest, read.content)
        if missing:
            return Row(name, "damaged", digest, "ref", "; ".join(missing), Proof(0, 0, 0)), ()
        proof = read.prove(today(view, repo, name, read.manifests), _of_ref(repo, name, digest))
        return Row(name, "complete", digest, "ref", "its ref is complete", proof), ()
    if lookup.ambiguous and given is None:
        fitting = ", ".join(lookup.candidates)
        reason = f"several manifests with different configs fit: {fitting}"
    else:
        reason = "; ".join(lookup.notes) if digest is None else ""
    whole = True
    try:
        parts = plan_parts(repo, name, digest, "migrate")
        lacking = _lacking(repo, digest, read.content)
        done = "image-only" if digest is None else "migrate" if parts or not lacking else "damaged"
        reason = reason or "; ".join(lacking)
    except CfsTagsError as error:
        if digest is None or given is not None:
            return _without_image(name, error), ()
        reason, unread = error.message, isinstance(error, SystemFailure)
        whole = not _missing(repo, name, digest)
        digest = None
        try:
            parts = plan_parts(repo, name, None, "migrate")
            done = "image-only"
        except CfsTagsError as second:
            return _without_image(name, second), ()
    if not parts and done == "migrate":
        done = "complete"
    proof = read.prove(today(view, repo, name, read.manifests, whole=whole), _of_ref(repo, name, digest))
    return Row(name, done, digest, source, reason, proof, lookup.candidates, unread), parts


def _missing(repo: ReadRepo, name: DeploymentId, digest: Digest | None) -> tuple[str, ...]:
    """What is not there behind a complete ref."""
    assert digest is not None
    try:
        image = repo.image_object(name)
        if image is None or not repo.has_object(image):
            return (f"EROFS image images/{name} is gone",)
        return images.missing_parts(repo, digest)
    except CfsTagsError as error:
        return (error.message,)


def _lacking(repo: ReadRepo, digest: Digest | None, known: dict[ObjectId, tuple[ObjectId, ...]]) -> list[str]:
    """Content of a manifest that is gone although all its parts are there: no reason not to keep the rest."""
    if digest is None:
        return []
    try:
        return [images.describe(repo, missing) for missing in images.missing_content(repo, digest, known)]
    except CfsTagsError as error:
        return [error.message]


def _without_image(name: DeploymentId, error: CfsTagsError) -> Row:
    return Row(name, "nothing", None, "none", error.message, Proof(0, 0, 0))


def today(view: SysrootView, repo: ReadRepo, name: DeploymentId, index: Index, *, whole: bool = True) -> list[str]:
    """The roots that bootc computes for a deployment: names in ``images/`` and ``streams/``.

    bootc sees a deployment that has a boot entry, a state directory and a readable origin.  It keeps the EROFS image, and
    the manifest that the origin names, else the first tagged one whose *plain* image is the deployment's.  Of a manifest
    that is not ``whole`` nothing counts: there is no image any more that a ref could keep.
    """
    origin = view.origins.get(name)
    places = view.seen.get(name, frozenset())
    if not isinstance(origin, Origin) or not places & {"boot-entry", "staged-entry"} or "state" not in places:
        return []
    kept = [f"{layout.IMAGES}/{name}"] if repo.image_object(name) is not None else []
    if not whole:
        return kept
    digest = origin.manifest_digest
    if digest is None:
        version = repo.meta.erofs_version if repo.meta is not None else 2
        plain = images.EROFS_KEY if version == 2 else f"{images.EROFS_KEY}.v1"
        for candidate in index.of_image(name):
            if index.tags_of(candidate) and images.load(repo, candidate).erofs.get(plain) == name:
                digest = candidate
                break
    if digest is not None and repo.stream_object(ContentId.manifest(digest)) is not None:
        kept.append(f"{layout.STREAMS}/{ContentId.manifest(digest)}")
    return kept


def _of_ref(repo: ReadRepo, name: DeploymentId, digest: Digest | None) -> list[str]:
    """The names that a deployment ref leads to."""
    kept = [f"{layout.IMAGES}/{name}"]
    if digest is not None:
        kept.append(f"{layout.STREAMS}/{ContentId.manifest(digest)}")
        kept.append(f"{layout.STREAMS}/{ContentId.config(images.load(repo, digest).manifest.config.digest)}")
    return kept


def _prove(closures: Closures, before: list[str], after: list[str]) -> Proof:
    had, kept = closures.of(before), closures.of(after)
    return Proof(closures.count(had), closures.count(kept), closures.lost(had, kept))
