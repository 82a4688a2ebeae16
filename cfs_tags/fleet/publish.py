"""Publishing a host: which tags it is to have in the registry, and putting them.

The plan compares first.  Where the artifact of the host is the one that was published last, and nothing has changed since,
that took one request, and nothing is done.  Else every tag is looked at, tags move (``moves.py``), then the artifact is put,
and only then do tags go that are not needed any more.  What is about to change is remembered before: a run that was stopped
is done again in full.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps.manifests import ORIGINAL_DIGEST
from cfs_tags.errors import CfsTagsError, DamagedError, FormatError, NotFoundError, RefusedError
from cfs_tags.fleet import hosts
from cfs_tags.fleet.hosts import Booted, Host, Use
from cfs_tags.fleet.moves import Key, next_move
from cfs_tags.formats import oci
from cfs_tags.remote.client import Missing
from cfs_tags.remote.credentials import Challenge
from cfs_tags.remote.names import is_repository, is_tag, place_of
from cfs_tags.tags.rows import moment
from cfs_tags.values import Digest, instant_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cfs_tags.fleet.memory import Memory
    from cfs_tags.remote.client import Client
    from cfs_tags.remote.names import Place

_DAY = 86400.0
MAX_MEMORY = 1 << 20
_MOST_HISTORY = 20
_SPARE = "moving"
_TOO_OFTEN = 5000
_TRIES = 3
"""How often something is uploaded where the registry collects blobs before the manifest that names them is there."""


class Row(NamedTuple):
    """What becomes of a tag.

    Attributes:
        key: the tag.
        digest: what it names then; None where it is gone.
        slot: of the host.
        done: ``created``, ``moved``, ``unchanged``, ``restored``, ``lost`` (the registry does not have the manifest),
            ``deleted``, ``left`` (the registry does not delete it).
        manifest: what the host uses, where that is not ``digest``.
    """

    key: Key
    digest: Digest | None
    slot: str
    done: str
    manifest: Digest | None = None


class Plan(NamedTuple):
    """What is to be done, as far as comparing tells it.

    Attributes:
        place: the repository.
        host: what is published.
        is_unchanged: nothing has changed since the last time, which is not long ago.
        now: the tags of the host as they are.
        wanted: the tags that it is to have, and for which use.
        found: the artifact that is there.
        warnings: what is odd.
    """

    place: Place
    host: Host
    is_unchanged: bool
    now: Mapping[Key, Digest]
    wanted: Mapping[Key, Use]
    found: Digest | None
    warnings: tuple[CfsTagsError, ...]


class Published(NamedTuple):
    """What was done: a row for each tag, the artifact, and what is odd; of what was only planned, no rows and no artifact."""

    plan: Plan
    rows: tuple[Row, ...]
    artifact: Digest | None
    warnings: tuple[CfsTagsError, ...]

    @property
    def lost(self) -> tuple[Row, ...]:
        """What the registry does not have."""
        return tuple(row for row in self.rows if row.done == "lost")


class Remembered(NamedTuple):
    """What was published last, as this machine remembers it."""

    content: str = ""
    time: str = ""
    artifact: str = ""
    seen: tuple[str, ...] = ()
    tags: tuple[tuple[str, str, str], ...] = ()
    challenge: Challenge | None = None
    deletes: bool | None = None
    history: tuple[Booted, ...] = ()
    kept: tuple[tuple[Digest, Digest], ...] = ()
    whole: bool = False

    @classmethod
    def of(cls, memory: Memory) -> Remembered:
        """From the file; nothing where it makes no sense."""
        known = memory.load()
        try:
            return cls(
                str(known.get("content", "")),
                str(known.get("time", "")),
                str(known.get("artifact", "")),
                tuple(str(one) for one in known.get("seen", ()) if is_tag(str(one))),
                tuple((str(one), str(two), str(three)) for one, two, three in known.get("tags", ())),
                Challenge(*map(str, known["challenge"])) if known.get("challenge") else None,
                known.get("deletes") if isinstance(known.get("deletes"), bool) else None,
                tuple(Booted(str(at), Digest.parse(what), version) for at, what, version in known.get("history", ())),
                tuple((Digest.parse(one), Digest.parse(other)) for one, other in known.get("kept", ())),
                known.get("whole") is True,
            )
        except (CfsTagsError, TypeError, ValueError):
            return cls()

    def save(self, memory: Memory) -> None:
        """Save it."""
        memory.save(self._asdict())

    def keys(self) -> dict[Key, Digest]:
        """The tags that it has."""
        found = {}
        for repository, tag, digest in self.tags:
            if is_repository(repository) and is_tag(tag) and digest.startswith("sha256:"):
                found[Key(repository, tag)] = Digest.trusted(digest)
        return found


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(client: Client, place: Place, host: Host, known: Remembered, *, refresh: float = _DAY) -> Plan:
    """Compare what a host uses with what the registry has.

    Args:
        client: of the registry.
        place: the repository.
        host: what it uses, without a time.
        known: what was published last.
        refresh: seconds after which an artifact is published again though nothing has changed, so that the host is seen.

    Raises:
        CfsTagsError: the registry does not say.
    """
    found = client.head(hosts.host_tag(host.name))
    now = time.time() + (client.transport.offset or 0.0)
    host = host._replace(time=moment(now), clock=round(client.transport.offset or 0.0))
    warnings: list[CfsTagsError] = []
    if found is not None and known.artifact and found != known.artifact:
        warnings.append(CfsTagsError("host-name-taken", host=host.name, place=str(place), found=found, wanted=known.artifact))
    kept = dict(known.kept)
    wanted = {
        Key(_home(place, use), hosts.deployed_tag(host.name, use.slot)): use._replace(kept_as=kept.get(use.manifest))
        for use in host.uses
    }
    last = instant_of(known.time)
    is_unchanged = (
        found is not None
        and found == known.artifact
        and known.content == host.content
        and known.whole
        and last is not None
        and 0 <= now - last.timestamp() < refresh
    )
    if is_unchanged:
        return Plan(place, host, True, known.keys(), wanted, found, ())
    there = {}
    for key in {**dict.fromkeys(wanted), **known.keys()}:
        digest = _head(client, key)
        if digest is not None:
            there[key] = digest
    return Plan(place, host, False, there, wanted, found, tuple(warnings))


def _home(place: Place, use: Use) -> str:
    """The repository where a manifest is to have its tag: the one that it comes from, where the registry is the same."""
    origin = place_of(use.image) if use.image is not None else None
    return origin.repository if origin is not None and origin.registry == place.registry else place.repository


def _head(client: Client, key: Key) -> Digest | None:
    try:
        return client.head(key.tag, key.repository)
    except RefusedError:
        return None  # a repository that this host may not read, or does not exist


# -- carrying out ------------------------------------------------------------------------------------------------------


def publish(
    client: Client,
    plan: Plan,
    memory: Memory,
    known: Remembered,
    raw: Callable[[Digest], bytes | None],
    restore: Callable[[Digest], bytes] | None = None,
) -> Published:
    """Carry a plan out.

    Args:
        client: of the registry.
        plan: what is to be done.
        memory: where it is remembered.
        known: what was published last.
        raw: gives a manifest that the host has, None where it has not.
        restore: uploads the blobs of an image, and gives the manifest to put; None: nothing is uploaded.

    Raises:
        CfsTagsError: the registry refused; what was done until then stays, and the next run finishes.
    """
    if plan.is_unchanged:
        rows = (Row(key, use.digest, use.slot, "unchanged") for key, use in plan.wanted.items())
        return Published(plan, tuple(rows), plan.found, ())
    return _Publishing(client, plan, memory, known, raw, restore).run()


class _Publishing:
    def __init__(
        self,
        client: Client,
        plan: Plan,
        memory: Memory,
        known: Remembered,
        raw: Callable[[Digest], bytes | None],
        restore: Callable[[Digest], bytes] | None,
    ) -> None:
        self._client = client
        self._plan = plan
        self._memory = memory
        self._known = known
        self._raw = raw
        self._restore = restore
        self._now = dict(plan.now)
        self._rows: dict[Key, Row] = {}
        self._made: dict[Digest, bytes] = {}
        self._tried: Counter[Key] = Counter()
        self._spare = hosts.deployed_tag(plan.host.name, _SPARE)
        self._deletes = known.deletes is not False
        self._warnings = list(plan.warnings)

    def run(self) -> Published:
        """Move the tags, put the artifact, then delete tags that are not needed."""
        place, host = self._plan.place, self._plan.host
        before = {**self._known.keys(), **self._now}
        meant = {key: use.digest for key, use in self._plan.wanted.items()}
        spares = {Key(key.repository, self._spare): digest for key, digest in meant.items()}
        self._remember(Remembered(), {**before, **meant, **spares})
        if self._known.deletes is None:
            self._deletes = self._delete(Key(place.repository, self._spare))
        wanted = self._put_all(dict(self._plan.wanted))
        placed = {use.slot: use for use in wanted.values()}
        host = host._replace(
            uses=tuple(placed.get(use.slot, use) for use in host.uses), history=_history(self._known.history, host)
        )
        artifact, seen = self._put_artifact(host)
        self._delete_all(wanted)
        kept = [one for one in self._known.seen if one not in seen and not self._delete(Key(place.repository, one))]
        content = self._plan.host.content
        whole = not any(row.done == "lost" for row in self._rows.values())
        restored = tuple((use.manifest, use.kept_as) for use in wanted.values() if use.kept_as is not None)
        seen = (*kept, *seen)
        remembered = Remembered(content, host.time, artifact, seen, history=host.history, kept=restored, whole=whole)
        self._remember(remembered, self._now)
        return Published(self._plan._replace(host=host), tuple(self._rows.values()), artifact, tuple(self._warnings))

    def _remember(self, what: Remembered, tags: Mapping[Key, Digest]) -> None:
        shown = tuple((key.repository, key.tag, str(digest)) for key, digest in tags.items())
        deletes = self._deletes if what.content else self._known.deletes
        seen = what.seen or self._known.seen
        artifact = what.artifact or self._known.artifact
        history = what.history or self._known.history
        challenge = self._client.transport.challenge
        what._replace(tags=shown, deletes=deletes, seen=seen, artifact=artifact, history=history, challenge=challenge).save(
            self._memory
        )

    # -- tags ----------------------------------------------------------------------------------------------------------

    def _put_all(self, wanted: dict[Key, Use]) -> dict[Key, Use]:
        """Give every use its tag, as far as that is possible; those that have one, and where."""
        fallback = self._plan.place.repository
        for _ in range(_TOO_OFTEN):
            move = next_move(self._now, {key: use.digest for key, use in wanted.items()}, self._spare)
            if move is None or move.digest is None:
                break
            key, digest = move.key, move.digest
            use = wanted.get(key)
            done = "moved" if key in self._now else "created"
            try:
                manifest = self._made.get(digest) or self._manifest(digest, key)
                self._put(key, manifest)
                if digest in self._made:
                    self._check(key, digest, manifest)
            except (Missing, RefusedError) as error:
                if isinstance(error, RefusedError) and (use is None or key.repository == fallback):
                    raise
                if use is None:  # what was to be held meanwhile is not there any more
                    self._now = {
                        other: held for other, held in self._now.items() if (other.repository, held) != (key.repository, digest)
                    }
                    continue
                del wanted[key]
                elsewhere = Key(fallback, key.tag)
                if elsewhere != key:
                    self._go_to(elsewhere, use, wanted, source=key.repository)
                else:
                    self._lose(key, use, wanted)
                continue
            self._now[key] = digest
            if use is not None:
                restored = use.kept_as is not None or digest in self._made
                self._rows[key] = Row(key, digest, use.slot, "restored" if restored else done, use.manifest)
        for key, use in wanted.items():
            self._rows.setdefault(key, Row(key, use.digest, use.slot, "unchanged"))
        return {key: use._replace(repository=key.repository) for key, use in wanted.items()}

    def _go_to(self, key: Key, use: Use, wanted: dict[Key, Use], source: str) -> None:
        """Want the tag in the repository that is meant for all; its blobs come from the one that the image is from."""
        found = _head(self._client, key)
        if found is not None:
            self._now[key] = found
        wanted[key] = use
        data = self._raw(use.manifest)
        if found != use.manifest and data is not None:
            for digest in _blobs(data):
                try:
                    if not self._client.mount(digest, source, key.repository):
                        return
                except RefusedError:
                    return

    def _lose(self, key: Key, use: Use, wanted: dict[Key, Use]) -> None:
        """The registry does not have it: take what was restored before, restore it, or say that it is lost."""
        if use.kept_as is not None and use.kept_as not in self._made:  # what was restored once has gone, too
            wanted[key] = use._replace(kept_as=None)
            return
        self._tried[key] += 1
        data = self._restored_before(key, use) if self._tried[key] == 1 else None
        if data is None and self._restore is not None and self._tried[key] <= _TRIES:
            try:
                data = self._restore(use.manifest)
            except (NotFoundError, DamagedError) as error:
                self._warnings.append(error)
        if data is None:
            self._rows[key] = Row(key, None, use.slot, "lost", use.manifest)
            return
        digest = Digest.of(data)
        self._made[digest] = data
        wanted[key] = use._replace(kept_as=digest if digest != use.manifest else None)

    def _restored_before(self, key: Key, use: Use) -> bytes | None:
        """A manifest that a tag of the host names and that was made of the one that is lost.

        Who put it there is not known: the config is to be the same, which says what its layers are.
        """
        lost = self._raw(use.manifest)
        if lost is None:
            return None
        for one in {digest for other, digest in self._now.items() if other.repository == key.repository}:
            found = self._client.get(one, key.repository)
            if found is not None:
                with suppress(FormatError):
                    parsed = oci.parse_manifest(found.data)
                    is_same = parsed.config.digest == oci.parse_manifest(lost).config.digest
                    if is_same and parsed.annotations.get(ORIGINAL_DIGEST) == use.manifest:
                        return found.data
        return None

    def _check(self, key: Key, digest: Digest, manifest: bytes) -> None:
        """Look whether a manifest that was restored and all that it names are there.

        Raises:
            Missing: the registry has collected some of it meanwhile; the tag is taken away.
        """
        try:
            self._client.need(digest, key.repository)
            for blob in _blobs(manifest):
                self._client.need_blob(blob, key.repository)
        except Missing:
            self._delete(key)
            self._now.pop(key, None)
            raise

    def _manifest(self, digest: Digest, key: Key) -> bytes:
        return self._raw(digest) or self._client.need(digest, key.repository).data

    def _put(self, key: Key, manifest: bytes) -> None:
        self._client.put(key.tag, manifest, _media_type(manifest), key.repository)

    def _delete_all(self, wanted: Iterable[Key]) -> None:
        """Delete the host's tags that are not needed."""
        kept = set(wanted)
        booted = next((self._now[key] for key in kept if key.tag.endswith("-booted") and key in self._now), None)
        for key in [key for key in self._now if key not in kept]:
            slot = key.tag.removeprefix(hosts.deployed_tag(self._plan.host.name, ""))
            if self._delete(key):
                del self._now[key]
                done = "deleted"
            else:
                done = "left"
                data = self._raw(booted) if booted is not None else None
                if data is not None and self._now[key] != booted:
                    # it cannot go, but what it names can
                    with suppress(Missing):
                        self._put(key, data)
                        self._now[key] = Digest.of(data)
            if slot != _SPARE and key not in self._rows:
                self._rows[key] = Row(key, self._now.get(key), slot, done)

    def _delete(self, key: Key) -> bool:
        try:
            return self._client.delete(key.tag, key.repository)
        except RefusedError:
            return False

    # -- the artifact --------------------------------------------------------------------------------------------------

    def _put_artifact(self, host: Host) -> tuple[Digest, tuple[str, ...]]:
        client = self._client
        hosts.encoded(host)
        made = hosts.artifact(host, self._subject(host))
        seen = hosts.seen_tag(host.name, host.time, made.digest)
        self._remember(Remembered(seen=(*self._known.seen, seen)), self._now)
        tags = (hosts.host_tag(host.name), *((seen,) if self._deletes else ()))
        for left in reversed(range(_TRIES)):
            try:
                client.upload(Digest.of(made.document), [made.document])
                for tag in tags:
                    client.put(tag, made.manifest, oci.MEDIA_TYPE_MANIFEST)
                break
            except Missing:  # collected before the manifest named it
                if not left:
                    raise
        return made.digest, tags[1:]

    def _subject(self, host: Host) -> tuple[Digest, int, str] | None:
        use = host.use("booted")
        data = self._made.get(use.digest) or self._raw(use.digest) if use is not None else None
        return (Digest.of(data), len(data), _media_type(data)) if data is not None else None


def _media_type(manifest: bytes) -> str:
    return oci.parse_manifest_or_index(manifest).media_type or oci.MEDIA_TYPE_MANIFEST


def _blobs(manifest: bytes) -> Iterable[Digest]:
    parsed = oci.parse_manifest(manifest)
    return dict.fromkeys((parsed.config.digest, *(layer.digest for layer in parsed.layers)))


def _history(known: tuple[Booted, ...], host: Host) -> tuple[Booted, ...]:
    """What the host booted, with what it has booted now."""
    use = host.use("booted")
    if use is None or (known and known[-1].manifest == use.manifest):
        return known
    return (*known, Booted(host.time, use.manifest, use.version))[-_MOST_HISTORY:]


# -- taking back -------------------------------------------------------------------------------------------------------


def retract(client: Client, place: Place, name: str, memory: Memory, known: Remembered, *, dry_run: bool) -> tuple[Row, ...]:
    """Delete every tag that a host has published.

    Raises:
        RefusedError (registry-keeps-tags): the registry does not delete tags.
        CfsTagsError: the registry does not answer.
    """
    keys = dict.fromkeys(known.keys())
    keys[Key(place.repository, hosts.host_tag(name))] = None
    keys.update(dict.fromkeys(Key(place.repository, one) for one in known.seen))
    found = client.get(hosts.host_tag(name))
    if found is not None:
        try:
            host: Host | None = hosts.parse_artifact(found.data)
        except FormatError:
            host = None
        if host is not None and host.name == name:
            keys[Key(place.repository, hosts.seen_tag(name, host.time, found.digest))] = None
            for use in host.uses:
                if use.repository is not None and is_repository(use.repository):
                    keys[Key(use.repository, hosts.deployed_tag(name, use.slot))] = None
    if not dry_run:
        known._replace(whole=False).save(memory)  # where this is stopped, the next 'publish' looks at every tag
    rows = []
    for key in keys:
        slot = key.tag.removeprefix(hosts.deployed_tag(name, ""))
        if not dry_run and not client.delete(key.tag, key.repository):
            raise RefusedError("registry-keeps-tags", registry=place.registry, tag=key.tag)
        rows.append(Row(key, None, slot, "deleted"))
    if not dry_run:
        memory.save({})
    return tuple(rows)
