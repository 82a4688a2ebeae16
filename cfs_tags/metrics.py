"""Figures about a repository as Prometheus reads them, written with its own library (``cfs-tags[metrics]``)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cfs_tags.errors import installed
from cfs_tags.host.rows import list_deployments
from cfs_tags.repo import reflog, refs
from cfs_tags.tags import rows
from cfs_tags.values import OWNERS, instant_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

    from cfs_tags.df import Usage
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.reflog import Entry
    from cfs_tags.repo.store import ReadRepo

_STATES = ("booted", "staged", "rollback", "other", "kept", "gone")
_STEPS = ("adopt", "policy", "collect", "check")


def text(repo: ReadRepo, view: SysrootView | None, usage: Usage | None) -> bytes:
    """All figures, in the text format of Prometheus.

    Args:
        repo: where.
        view: the sysroot, where there is one.
        usage: who takes how much, where that was measured.

    Raises:
        CfsTagsError (missing-extra): the library is not installed.
    """
    with installed("prometheus-client", extra="metrics", command="metrics"):
        from prometheus_client import CollectorRegistry, generate_latest
    into = CollectorRegistry()
    _about_refs(repo, view, into)
    if usage is not None:
        _about_space(usage, into)
    _about_the_past(reflog.events(repo), into)
    return generate_latest(into)


def _gauge(
    into: CollectorRegistry, name: str, about: str, values: Iterable[tuple[str, float]] | float, label: str = ""
) -> None:
    """One figure, or one for each value of a label."""
    from prometheus_client import Gauge

    gauge = Gauge(f"cfs_tags_{name}", about, (label,) if label else (), registry=into)
    if isinstance(values, int | float):
        gauge.set(values)
        return
    for value, number in values:
        gauge.labels(value).set(number)


def _about_refs(repo: ReadRepo, view: SysrootView | None, into: CollectorRegistry) -> None:
    tags, kept, deployments = refs.read_at_once(
        repo,
        lambda: (
            rows.list_tags(repo, owners=OWNERS),
            rows.trash(repo),
            list_deployments(repo, view) if view is not None else None,
        ),
    )
    count = Counter(tag.owner for tag in tags)
    broken = Counter(tag.owner for tag in tags if tag.problem is not None)
    _gauge(into, "refs", "Refs by owner.", [(owner, count[owner]) for owner in OWNERS], "owner")
    _gauge(into, "refs_broken", "Refs that lead nowhere, by owner.", [(owner, broken[owner]) for owner in OWNERS], "owner")
    _gauge(into, "refs_trash", "Deleted tags that are being kept.", len(kept))
    if deployments is None:
        return
    states = Counter(row.state for row in deployments)
    without = sum(row.ref == "none" and row.state not in ("kept", "gone") for row in deployments)
    _gauge(into, "deployments", "Deployments by state.", [(state, states[state]) for state in _STATES], "state")
    _gauge(into, "deployments_without_ref", "Deployments that have no ref.", without)
    _gauge(into, "deployments_unhealthy", "Deployments with findings.", sum(bool(row.health) for row in deployments))


def _about_space(usage: Usage, into: CollectorRegistry) -> None:
    _gauge(into, "live_objects", "Objects that a ref leads to.", usage.live.objects)
    _gauge(into, "live_bytes", "Bytes on disk of objects that a ref leads to.", usage.live.allocated)
    owners = [(row.name, row.total.allocated) for row in usage.owners]
    shared = [(row.name, row.shared.allocated) for row in usage.owners]
    _gauge(into, "owner_bytes", "Bytes on disk that the refs of an owner lead to.", owners, "owner")
    _gauge(into, "shared_bytes", "Those of them that refs of other owners lead to as well.", shared, "owner")
    _gauge(into, "reclaimable_objects", "Objects that a collection would delete.", usage.dead.objects)
    _gauge(into, "reclaimable_bytes", "Bytes on disk that a collection would free.", usage.dead.allocated)


def _about_the_past(events: Iterable[Entry], into: CollectorRegistry) -> None:
    """The last collection, check and maintenance, as the log has them; figures of what never was are left out."""
    last = {event.action: event for event in events}
    done, failed = _collected(last.get("collect"), last.get("maintain"))
    if done is not None:
        about = "When a collection was done last, or was found to have nothing to do."
        _gauge(into, "last_collection_timestamp_seconds", about, _time(done))
    if done is not None or failed:
        _gauge(into, "last_collection_failed", "Whether the last collection of a maintenance was refused.", failed)
    collected = last.get("collect")
    if collected is not None:
        _gauge(into, "last_collection_freed_bytes", "Bytes that the last collection freed.", _fact(collected, "bytes"))
        stopped = int(bool((collected.facts or {}).get("stopped")))
        _gauge(into, "last_collection_stopped_early", "Whether it ended before everything dead was gone.", stopped)
    checked = last.get("check")
    if checked is not None:
        found = [(severity, _fact(checked, f"{severity}s")) for severity in ("error", "warning", "note")]
        _gauge(into, "last_check_timestamp_seconds", "When fsck ran last.", _time(checked))
        _gauge(into, "last_check_findings", "What it found and did not repair.", found, "severity")
    maintained = last.get("maintain")
    if maintained is not None:
        steps = (maintained.facts or {}).get("failed") or []
        refused = [(step, int(isinstance(steps, list) and step in steps)) for step in _STEPS]
        _gauge(into, "last_maintenance_timestamp_seconds", "When maintain ran last.", _time(maintained))
        _gauge(into, "last_maintenance_failed", "Steps of it that were refused.", refused, "step")
        _gauge(into, "last_maintenance_checked_objects", "Objects that it read.", _fact(maintained, "checked"))
        _gauge(
            into, "last_maintenance_findings", "Objects with other bytes than their digests say.", _fact(maintained, "findings")
        )


def _collected(collected: Entry | None, maintained: Entry | None) -> tuple[Entry | None, int]:
    """The event that says last that there is nothing left to collect, and whether a later one was refused."""
    if maintained is None:
        return collected, 0
    steps = (maintained.facts or {}).get("failed")
    if isinstance(steps, list) and "collect" in steps:
        return collected, int(collected is None or collected.time <= maintained.time)
    return (maintained if collected is None or maintained.time >= collected.time else collected), 0


def _time(event: Entry) -> float:
    found = instant_of(event.time)
    return found.timestamp() if found is not None else 0.0


def _fact(event: Entry, name: str) -> int:
    value = (event.facts or {}).get(name)
    return value if isinstance(value, int) and abs(value) < 1 << 63 else 0
