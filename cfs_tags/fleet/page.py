"""A page about hosts: their versions over time, and what is wrong."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from cfs_tags.report import drawing as draw
from cfs_tags.values import instant_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cfs_tags.fleet.hosts import Booted
    from cfs_tags.fleet.view import Fleet, Row

_MOST_ROWS = 200
"""Hosts up to which each has a line."""
_MOST_VERSIONS = 12
_PALETTE = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
_OTHERS = "#cccccc"


def page(fleet: Fleet) -> str:
    """The page, as HTML.

    Args:
        fleet: what it shows.
    """
    now = instant_of(fleet.time) or datetime.now(UTC)
    labels = _labels(fleet)
    colours = {label: _PALETTE[number % len(_PALETTE)] for number, label in enumerate(labels)}
    wrong = sum(bool(row.problems) for row in fleet.rows)
    said = f"{len(fleet.rows)} hosts, {wrong} of them with problems; read at {draw.day(now)} UTC."
    sections = [
        draw.section("versions", "Hosts by version over time", _shares(fleet, now, colours), _versions_table(fleet)),
        draw.section("hosts", "Versions of each host", _timeline(fleet, now, colours), _hosts_table(fleet)),
    ]
    return draw.document(f"Fleet {draw.text(str(fleet.place))}", said, (), sections if fleet.rows else ())


def _label(booted: Booted) -> str:
    return booted.version or booted.manifest.hex[:12]


def _labels(fleet: Fleet) -> list[str]:
    """The versions that most hosts have had; the others are one."""
    found = Counter(label for row in fleet.rows if row.host for label in {_label(one) for one in row.host.history})
    return [label for label, _ in found.most_common(_MOST_VERSIONS)]


def _spans(row: Row, now: datetime) -> Iterable[tuple[datetime, datetime, str]]:
    """From when until when a host ran what."""
    history = row.host.history if row.host is not None else ()
    last = min(instant_of(row.time) or now, now) if "not-seen" in row.problems else now
    for number, one in enumerate(history):
        since = instant_of(one.time)
        until = instant_of(history[number + 1].time) if number + 1 < len(history) else last
        if since is not None and until is not None and since <= until:
            yield since, until, _label(one)


def _shares(fleet: Fleet, now: datetime, colours: dict[str, str]) -> go.Figure:
    """How many hosts ran which version, as areas above each other."""
    changes: list[tuple[datetime, str, int]] = []
    for row in fleet.rows:
        for since, until, label in _spans(row, now):
            name = label if label in colours else "others"
            changes += [(since, name, 1), (until, name, -1)] if until < now else [(since, name, 1)]
    changes.sort(key=lambda change: change[0])
    times = sorted({when for when, _, _ in changes} | {now})
    traces = []
    for name in [*colours, *(["others"] if any(one == "others" for _, one, _ in changes) else [])]:
        steps = Counter[datetime]()
        for when, one, change in changes:
            if one == name:
                steps[when] += change
        count, counts = 0, []
        for when in times:
            count += steps[when]
            counts.append(count)
        line = {"shape": "hv", "width": 0.5, "color": colours.get(name, _OTHERS)}
        hover = "%{y} hosts<br>%{x}"
        text = draw.short(name)
        traces.append(go.Scatter(x=times, y=counts, name=text, stackgroup="hosts", line=line, hovertemplate=hover))
    chart = draw.figure(traces, height=360)
    chart.update_layout(xaxis={"type": "date"}, showlegend=True, yaxis={"rangemode": "tozero"})
    return chart


def _timeline(fleet: Fleet, now: datetime, colours: dict[str, str]) -> go.Figure:
    """A line for each host, in the colours of what it ran: those with problems first."""
    rows = sorted(fleet.rows, key=lambda row: (not row.problems, row.name))[:_MOST_ROWS]
    lines: dict[str, tuple[list[Any], list[Any], list[str]]] = {}
    for number, row in enumerate(rows):
        for since, until, label in _spans(row, now):
            x, y, said = lines.setdefault(label if label in colours else "others", ([], [], []))
            x += [since, until, None]
            y += [number, number, None]
            said += [f"{draw.text(row.name)}<br>{draw.text(label)}"] * 3
    traces = [
        go.Scatter(
            x=x,
            y=y,
            customdata=said,
            mode="lines",
            name=draw.short(name),
            line={"color": colours.get(name, _OTHERS), "width": 10},
            hovertemplate="%{customdata}<br>%{x}<extra></extra>",
        )
        for name, (x, y, said) in lines.items()
    ]
    chart = draw.figure(traces, height=max(260, 120 + 18 * len(rows)))
    marks = [f"{'⚠ ' if row.problems else ''}{draw.short(row.name)}" for row in rows]
    numbers = list(range(len(rows)))
    axis = {"tickmode": "array", "tickvals": numbers, "ticktext": marks, "range": [len(rows) - 0.5, -0.5], "automargin": True}
    chart.update_layout(yaxis=axis, xaxis={"type": "date"}, showlegend=True)
    return chart


def _versions_table(fleet: Fleet) -> str:
    rows = ((draw.text(version), digest[:19], str(count)) for version, digest, count in fleet.counted())
    return draw.table(("Version", "Manifest", "Hosts"), rows)


def _hosts_table(fleet: Fleet) -> str:
    return draw.table(("Host", "Booted", "Staged", "Rollback", "Seen", "Problems"), map(_row, fleet.rows))


def _row(row: Row) -> tuple[str, ...]:
    def said(slot: str) -> str:
        use = row.host.use(slot) if row.host is not None else None
        return draw.text(use.version or use.manifest[:19]) if use is not None else ""

    when = instant_of(row.time)
    seen = draw.day(when) if when is not None else ""
    return (draw.text(row.name), said("booted"), said("staged"), said("rollback"), seen, draw.text(", ".join(row.problems)))
