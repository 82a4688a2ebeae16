"""The hosts of a registry: what each says, and what is wrong with it or with what it says.

A list of tags names the hosts, and by their ``seen-`` tags says which have changed: the others are taken from the cache.  A
host that says something odd is a row with its problems, never a failed listing.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, DamagedError, FormatError
from cfs_tags.fleet import hosts
from cfs_tags.fleet.shared import Shared
from cfs_tags.formats import oci
from cfs_tags.tags.rows import moment
from cfs_tags.values import Digest, instant_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from cfs_tags.fleet.hosts import Host, Seen
    from cfs_tags.fleet.memory import Memory
    from cfs_tags.remote.client import Client
    from cfs_tags.remote.names import Place

MAX_CACHED = 1 << 20
"""Bytes of a host in the cache: four times those of its document."""
_AT_ONCE = 8
_AHEAD = 3600.0
"""Seconds that a host may say to have been seen in the future."""
_CLOCK = 300
"""Seconds that a clock may be wrong before that is said."""


_Known = tuple[Digest, "Host | None"]


class Row(NamedTuple):
    """A host.

    Attributes:
        name: as its tag says.
        host: what it says; None where that cannot be read.
        digest: of its artifact.
        time: when it was seen (``YYYYMMDDThhmmssZ``), None where that is not known.
        problems: codes: ``unreadable``, ``names-another`` (its artifact is about another host), ``several-claims`` (two publish
            under its name), ``seen-differs`` (its ``seen-`` tag is about another artifact), ``time-in-future``,
            ``clock-wrong``, ``not-seen``, ``lost``, and those of its deployments' health.
        state: ``wanted``, ``staged``, ``drift``, or ``unknown``; empty where nothing is wanted.
    """

    name: str
    host: Host | None
    digest: Digest | None
    time: str | None
    problems: tuple[str, ...]
    state: str = ""


class Fleet(NamedTuple):
    """All hosts of a registry.

    Attributes:
        place: where.
        time: when they were looked at, by the clock of the registry.
        rows: by name.
        wanted: digests that are wanted; none where nothing is.
        fetched: hosts that the registry was asked about.
    """

    place: Place
    time: str
    rows: tuple[Row, ...]
    wanted: tuple[Digest, ...]
    fetched: int

    def counted(self) -> list[tuple[str, Digest, int]]:
        """Versions that hosts booted: version, manifest, how many; the most first."""
        found: Counter[tuple[str, Digest]] = Counter()
        for row in self.rows:
            use = row.host.use("booted") if row.host is not None else None
            if use is not None:
                found[use.version or "", use.manifest] += 1
        return [(version, digest, count) for (version, digest), count in found.most_common()]


def read(
    client: Client,
    place: Place,
    cache: Memory | None = None,
    *,
    wanted: str | None = None,
    unseen: float = 7 * 86400.0,
) -> Fleet:
    """Read all hosts.

    Args:
        client: of the registry.
        place: the repository that they publish to.
        cache: what was read before; what is read now is added.
        wanted: a tag or digest that all hosts are to have booted.
        unseen: seconds after which a host that says nothing is ``not-seen``.

    Raises:
        CfsTagsError: the registry does not say which there are, or has no such tag.
    """
    tags = client.tags()
    claims: dict[str, list[Seen]] = defaultdict(list)
    names = []
    for tag in tags:
        name, seen = hosts.host_of_tag(tag), hosts.parse_seen(tag)
        if name is not None:
            names.append(name)
        elif seen is not None:
            claims[seen.host].append(seen)
    shared = Shared()
    saved, current = _cached(cache, claims, shared)
    current = {name: current[name] for name in names if name in current}
    asked = [name for name in names if name not in current]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = dict(zip(asked, pool.map(lambda name: _fetch(client, name, shared), asked), strict=True))
    read_now = {name: answer for name, answer in found.items() if answer is not None}
    if cache is not None and (read_now or saved != len(current)):
        cache.save_each(
            [name, digest, hosts.to_json(host)] for name, (digest, host) in {**current, **read_now}.items() if host is not None
        )
    now = time.time() + (client.transport.offset or 0.0)
    digests = _wanted(client, wanted) if wanted is not None else ()
    rows = [
        _row(name, *(current.get(name) or read_now[name]), claims[name], now, unseen, digests)
        for name in sorted(names)
        if name in current or name in read_now
    ]
    return Fleet(place, moment(now), tuple(rows), digests, len(asked))


def _fetch(client: Client, name: str, shared: Shared) -> _Known | None:
    """The artifact of a host; None where it has gone meanwhile."""
    try:
        found = client.get(hosts.host_tag(name))
    except DamagedError:  # it lies about its digest
        return Digest.of(b""), None
    if found is None:
        return None
    try:
        return found.digest, shared.take(hosts.parse_artifact(found.data))
    except FormatError:
        return found.digest, None


def _wanted(client: Client, reference: str) -> tuple[Digest, ...]:
    """The manifest of a reference; of an index all of them."""
    found = client.get(reference)
    if found is None:
        from cfs_tags.errors import TargetNotFound

        raise TargetNotFound(kind="manifest", name=reference, where="the registry")
    parsed = oci.parse_manifest_or_index(found.data)
    more = tuple(entry.digest for entry in parsed.manifests) if isinstance(parsed, oci.Index) else ()
    return (found.digest, *more)


# -- rows --------------------------------------------------------------------------------------------------------------


def _row(
    name: str,
    digest: Digest,
    host: Host | None,
    claims: Sequence[Seen],
    now: float,
    unseen: float,
    wanted: Collection[Digest],
) -> Row:
    fitting = [claim for claim in claims if claim.digits == digest.hex[:12]]
    when = fitting[0].time if fitting else host.time if host is not None else None
    problems = []
    if host is None:
        problems.append("unreadable")
    elif host.name != name:
        problems.append("names-another")
    if len({claim.digits for claim in claims}) > 1:
        problems.append("several-claims")
    elif claims and not fitting:
        problems.append("seen-differs")
    instant = instant_of(when)
    age = now - instant.timestamp() if instant is not None else None
    if age is not None and age < -_AHEAD:
        problems.append("time-in-future")
    if age is not None and age > unseen:
        problems.append("not-seen")
    if host is not None:
        problems += _problems_of(host)
    return Row(name, host, digest, when, tuple(dict.fromkeys(problems)), _state(host, wanted))


def _problems_of(host: Host) -> Iterable[str]:
    if abs(host.clock) > _CLOCK:
        yield "clock-wrong"
    if any(use.repository is None for use in host.uses):
        yield "lost"
    for use in host.uses:
        yield from use.health


def _state(host: Host | None, wanted: Collection[Digest]) -> str:
    if not wanted:
        return ""
    booted = host.use("booted") if host is not None else None
    if host is None or booted is None:
        return "unknown"
    if booted.manifest in wanted or booted.digest in wanted:
        return "wanted"
    staged = host.use("staged")
    return "staged" if staged is not None and (staged.manifest in wanted or staged.digest in wanted) else "drift"


# -- the cache ---------------------------------------------------------------------------------------------------------


def _cached(cache: Memory | None, claims: Mapping[str, Sequence[Seen]], shared: Shared) -> tuple[int, dict[str, _Known]]:
    """How many hosts were saved, and those that are what their only ``seen-`` tag is about."""
    saved = 0
    found: dict[str, _Known] = {}
    with suppress(CfsTagsError, TypeError, ValueError):
        for saved, (name, digest, document) in enumerate(cache.load_each() if cache is not None else (), 1):  # noqa: B007
            claimed = claims.get(name, ())
            if len(claimed) == 1 and claimed[0].digits == Digest.parse(digest).hex[:12]:
                host = shared.take(hosts.of_json(document))
                if host is not None:
                    found[name] = (Digest.parse(digest), host)
    return saved, found
