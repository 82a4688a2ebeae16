"""What a report of a repository shows, as values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.df import Shares, shares
from cfs_tags.host.lookup import referred
from cfs_tags.host.rows import list_deployments
from cfs_tags.repo import layout, reflog
from cfs_tags.values import instant_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.repo.transaction.change import RefChange


class Span(NamedTuple):
    """A deployment over time.

    Attributes:
        id: of the deployment.
        state: ``booted``, ``staged``, ``rollback``, ``other``, ``gone``; ``unseen`` where the host's places are not seen.
        image: what it was made from, where that is known.
        version: of that image.
        built: when the image was made.
        kept: from when until when it had a ref; until None for one that it has still.
    """

    id: str
    state: str
    image: str | None
    version: str | None
    built: datetime | None
    kept: tuple[tuple[datetime, datetime | None], ...]


class Facts(NamedTuple):
    """All that a report shows; ``made`` is when it was read."""

    path: str
    made: datetime
    shares: Shares
    deployments: tuple[Span, ...]
    problems: tuple[str, ...]


def read(repo: ReadRepo, view: SysrootView | None = None, changes: Iterable[RefChange] = ()) -> Facts:
    """Read what a report shows; the caller holds the lock shared.

    Args:
        repo: where.
        view: the sysroot, where there is one.
        changes: of refs that a collection would make first.

    Raises:
        FormatError, SystemFailure: the repository cannot be read.
    """
    found = shares(repo, changes)
    return Facts(repo.path, datetime.now(UTC), found, tuple(_spans(repo, view)), found.problems)


def _spans(repo: ReadRepo, view: SysrootView | None) -> Iterable[Span]:
    """Deployments that are there or have a ref, as they are listed; then those that only the log knows, the newest first."""
    kept = _kept(repo)
    known = set()
    rows = list_deployments(repo, view) if view is not None else ()
    for row in rows:
        known.add(str(row.id))
        yield Span(row.id, row.state, row.image, row.version, row.built, kept.get(row.id, ()))
    here = [str(name) for name in referred(repo) if name not in known]
    past = sorted(kept.keys() - known - set(here), key=lambda name: kept[name][0][0], reverse=True)
    for name in (*here, *past):
        yield Span(name, "unseen" if name in here else "gone", None, None, None, kept.get(name, ()))


def _kept(repo: ReadRepo) -> dict[str, tuple[tuple[datetime, datetime | None], ...]]:
    """From when until when each deployment had its ref, as the log says."""
    start = f"{layout.DEPLOYMENTS}/"
    images = f"{layout.DEPLOYMENT_IMAGES}/"
    open_since: dict[str, datetime] = {}
    found: dict[str, list[tuple[datetime, datetime | None]]] = {}
    for entry in reflog.all_entries(repo).entries:
        when = instant_of(entry.time)
        if when is None or not entry.ref.startswith((start, images)):
            continue
        name = entry.ref.rpartition("/")[2]
        if entry.new is not None:
            open_since.setdefault(name, when)
        elif name in open_since:
            found.setdefault(name, []).append((open_since.pop(name), when))
    for name, since in open_since.items():
        found.setdefault(name, []).append((since, None))
    return {name: tuple(spans) for name, spans in found.items()}
