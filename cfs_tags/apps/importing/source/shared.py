"""An image whose layers other hosts on the network may have, or are about to have: each is fetched from the registry by one.

Hosts that import an image at the same time see each other through their ``cfs-tag serve``: every import says which layers it
wants, fetches and has (``repo/arriving.py``).  What a host has is taken from there.  Layers that no host has are divided
among the imports by a hash of layer and import, and each says so before it begins; what is being fetched elsewhere is
waited for.  There is no leader and no agreement: what does not come in time is asked of the registry, so that a host that
vanishes, hangs or lies costs time, never the image.

What comes from another host is a layer uncompressed, and is checked against the diff_id that the config names.  The config, and
the manifest that names it, come from the registry.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING

from cfs_tags.apps.importing.source.base import Source, Way
from cfs_tags.errors import CfsTagsError, DamagedError, NotFoundError, SourceFailed, UsageError
from cfs_tags.repo.arriving import Announcement, Layer

if TYPE_CHECKING:
    from cfs_tags.apps.blobs import Reader
    from cfs_tags.apps.importing.source.http import LayerState, Server
    from cfs_tags.formats.oci import Descriptor
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.values import Digest, ObjectId

_AT_ONCE = 16
"""Hosts that are asked at the same time."""
_POLL = 0.5
"""Seconds between two looks at what others do."""
_SETTLE = 0.1
"""Seconds after which another import that claims a layer at the same moment has seen that we do."""
_TURN = 3.0
"""Seconds that an import to which a layer falls has to begin with it."""
_PATIENCE = 20.0
_SLOWEST = 256 << 10
"""A layer that is fetched elsewhere is waited for that many seconds, and a second more for as many bytes as this."""
_IN_VAIN = 4
"""How often an import waits for a layer of a host that does not come; then it waits for nobody any more."""
_LOOK = 0.5
"""Seconds that a host may take for each look, on the average, beyond :data:`_PATIENCE` in all."""


class Shared(Source):
    """A source, with other hosts before it.

    Args:
        source: where the image comes from.
        repo: what this host says of its layers is said here.
        hosts: those that may have them, in any order.
        seed: of the choice among hosts that have a layer.

    Attributes:
        problems: what was wrong with a host, once for each.
    """

    def __init__(self, source: Source, repo: WriteRepo, hosts: Sequence[Server], seed: int | None = None) -> None:
        super().__init__(source.text, source.name)
        self.offered, self.listed = source.offered, source.listed
        self.problems: list[CfsTagsError] = []
        self._source = source
        self._repo = repo
        self._hosts = list(hosts)
        self._random = random.Random(seed)
        self._announcement: Announcement | None = None
        self._mine: dict[Digest, Layer] = {}
        self._from: dict[Digest, list[Server]] = {}
        self._since: dict[tuple[Digest, str], float] = {}
        self._waited: dict[tuple[Digest, str], float] = {}
        self._in_vain: set[tuple[Digest, str]] = set()
        self._left = {host.address: _PATIENCE for host in hosts}

    @contextmanager
    def sharing(self, names: Sequence[str]) -> Iterator[None]:
        """Have other hosts see how far the layers are, as those of tags with these names."""
        with Announcement(self._repo, names) as self._announcement:
            try:
                yield
            finally:
                self._announcement = None

    # -- layers --------------------------------------------------------------------------------------------------------

    def choose(self, layers: Sequence[tuple[Descriptor, Digest | None]]) -> int:
        """The next layer: one that another host has, else one that falls to this import; waits where there is neither."""
        wanted: dict[Digest, int] = {}
        for number, (_, diff_id) in enumerate(layers):
            if diff_id is None:
                return number  # what is no tar is small, and no host gives it by another name
            wanted.setdefault(diff_id, number)
        if self._announcement is None or not self._hosts:
            return 0
        new = {digest: Layer("wanted") for digest in wanted if digest not in self._mine}
        if new:
            self._say(new)
        while True:
            seen = self._look(list(wanted))
            here = [digest for digest in wanted if any(one.state == "here" for _, one in seen[digest])]
            if here:
                digest = self._random.choice(here)
                self._from[digest] = [host for host, one in seen[digest] if one.state == "here"]
                self._random.shuffle(self._from[digest])
                return wanted[digest]
            falls = [digest for digest in wanted if self._falls_to_us(digest, layers[wanted[digest]][0], seen)]
            # the largest first: it takes longest
            for digest in sorted(falls, key=lambda one: -layers[wanted[one]][0].size):
                if self._claim(digest, layers[wanted[digest]][0]):
                    return wanted[digest]
            sleep(_POLL)

    def ways(self, layer: Descriptor, diff_id: Digest | None) -> Iterator[Way]:
        """Other hosts that have it, then where the image comes from."""
        if diff_id is not None:
            for host in self._from.pop(diff_id, ()):
                yield Way(host.address, partial(host.blob, diff_id), diff_id, None)
            if self._announcement is not None:
                self._say({diff_id: Layer("fetching")})
        self._source.expect([layer.digest])
        yield from self._source.ways(layer, diff_id)

    def stored(self, layer: Descriptor, diff_id: Digest | None, stream: ObjectId) -> None:
        """Other hosts can have it now."""
        if diff_id is not None and self._announcement is not None:
            self._say({diff_id: Layer("here", stream)})

    def failed(self, way: Way, error: CfsTagsError) -> None:
        """A host that gave wrong bytes, or none, is not asked again."""
        for host in self._hosts:
            if host.address == way.text:
                self._drop(host, error)
                return
        self._source.failed(way, error)

    def _drop(self, host: Server, error: CfsTagsError) -> None:
        self._hosts = [one for one in self._hosts if one is not host]
        self.problems.append(error)

    # -- other imports -------------------------------------------------------------------------------------------------

    def _say(self, layers: dict[Digest, Layer]) -> None:
        self._mine |= layers
        if self._announcement is not None:
            self._announcement.say(self._mine)

    def _look(self, digests: Sequence[Digest]) -> dict[Digest, list[tuple[Server, LayerState]]]:
        """What other hosts say of layers.  Threads are there for as long as this takes: another process may be forked."""
        found: dict[Digest, list[tuple[Server, LayerState]]] = {digest: [] for digest in digests}
        if not self._hosts:
            return found
        with ThreadPoolExecutor(min(_AT_ONCE, len(self._hosts))) as pool:
            answers = list(pool.map(lambda host: _states(host, digests), self._hosts))
        ours = self._announcement.by if self._announcement is not None else ""
        for host, (answer, seconds) in zip(list(self._hosts), answers, strict=True):
            self._left[host.address] += _LOOK - seconds
            if self._left[host.address] < 0 and not isinstance(answer, CfsTagsError):
                answer = SourceFailed(source=host.address, reason="is too slow to say which layers it has")
            if isinstance(answer, CfsTagsError):
                self._drop(host, answer)
                continue
            for digest, state in answer.items():
                if state.by != ours:
                    found[digest].append((host, state))
        return found

    def _falls_to_us(self, digest: Digest, layer: Descriptor, seen: dict[Digest, list[tuple[Server, LayerState]]]) -> bool:
        """Whether it is this import's turn to fetch a layer from where the image comes from."""
        busy = {one.by for states in seen.values() for _, one in states if one.state == "fetching"}
        now = monotonic()
        ours = self._announcement.by if self._announcement is not None else ""
        for host, one in seen[digest]:
            since = now - self._since.setdefault((digest, f"{one.state} {one.by}"), now)
            if one.state in ("fetching", "claiming"):
                waits = since < _PATIENCE + (layer.size / _SLOWEST if one.state == "fetching" else 0)
            else:
                waits = one.by not in busy and _rank(digest, one.by) > _rank(digest, ours) and since < _TURN
            if waits and not self._is_over(digest, layer, host):
                return False
        return True

    def _is_over(self, digest: Digest, layer: Descriptor, host: Server) -> bool:
        """Whether a host has had us wait for a layer for long enough, under whatever names of imports; or all of them have."""
        now, key = monotonic(), (digest, host.address)
        if now - self._waited.setdefault(key, now) >= _TURN + 2 * _PATIENCE + layer.size / _SLOWEST:
            self._in_vain.add(key)
        return key in self._in_vain or len(self._in_vain) >= _IN_VAIN

    def _claim(self, digest: Digest, layer: Descriptor) -> bool:
        """Say that this import fetches a layer; False where another has begun, or is to begin, at the same moment."""
        self._say({digest: Layer("claiming")})
        ours = self._announcement.by if self._announcement is not None else ""
        for _ in range(2):
            seen = self._look([digest])[digest]
            others = [(host, one) for host, one in seen if one.state in ("claiming", "fetching", "here")]
            for host, one in others:
                first = one.state != "claiming" or _rank(digest, one.by) > _rank(digest, ours)
                since = monotonic() - self._since.setdefault((digest, f"{one.state} {one.by}"), monotonic())
                waits = first and (one.state == "here" or since < _PATIENCE + layer.size / _SLOWEST)
                if waits and not self._is_over(digest, layer, host):
                    self._say({digest: Layer("wanted")})
                    return False
            if not others:
                break
            sleep(_SETTLE)  # the other one sees us now, or has begun
        self._say({digest: Layer("fetching")})
        return True

    # -- all else is the source's --------------------------------------------------------------------------------------

    def document(self, digest: Digest) -> bytes:
        """A manifest or index, from where the image comes from."""
        return self._source.document(digest)

    def open(self, digest: Digest) -> Reader:
        """The bytes of a blob, from where the image comes from."""
        return self._source.open(digest)

    def size(self, digest: Digest) -> int | None:
        """Bytes of a blob there."""
        return self._source.size(digest)

    def name_of(self, entry: Descriptor) -> str | None:
        """What the source calls an entry."""
        return self._source.name_of(entry)

    def ambiguous(self, entries: Sequence[Descriptor]) -> UsageError:
        """The error that lists the entries that fit."""
        return self._source.ambiguous(entries)

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _states(host: Server, digests: Sequence[Digest]) -> tuple[dict[Digest, LayerState] | CfsTagsError, float]:
    """What a host says, and the seconds that it took."""
    began = monotonic()
    try:
        return host.states(digests), monotonic() - began
    except (DamagedError, NotFoundError, SourceFailed) as error:
        return error, monotonic() - began


def _rank(digest: Digest, by: str) -> bytes:
    return hashlib.sha256(f"{digest} {by}".encode()).digest()
