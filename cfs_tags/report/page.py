"""The page of a report of a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from cfs_tags.report import drawing as draw

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cfs_tags.df import Part
    from cfs_tags.report.facts import Facts, Span

_COLOURS = {
    "app": "#4269d0",
    "bootc": "#efb118",
    "deployment": "#3ca951",
    "pin": "#ff725c",
    "foreign": "#9c6b4e",
    "several": "#a463f2",
    "garbage": "#97979b",
}
_STATES = {
    "booted": "#3ca951",
    "staged": "#4269d0",
    "rollback": "#efb118",
    "other": "#6cc5b0",
    "kept": "#ff725c",
    "unseen": "#a463f2",
    "gone": "#97979b",
}


def page(facts: Facts) -> str:
    """The page, as HTML.

    Args:
        facts: what it shows.
    """
    parts = [*facts.shares.parts, *facts.shares.rest]
    live = sum(part.used.allocated for part in parts)
    sections = [
        draw.section("space", "Space by owner, tag and deployment", _treemap(parts, facts), _space_table(parts)),
        draw.section("sharing", "Who shares with whom", _matrix(facts), _pairs_table(facts)) if facts.shares.names else "",
        draw.section("time", "Deployments over time", _timeline(facts), _deployments_table(facts)) if facts.deployments else "",
    ]
    said = f"{draw.size(live)} live, {draw.size(facts.shares.dead.allocated)} garbage; read at {facts.made:%Y-%m-%d %H:%M} UTC."
    problems = [f"not followed: {draw.text(problem)}" for problem in facts.problems]
    return draw.document(f"Repository {draw.text(facts.path)}", said, problems, sections)


def _names(part: Part) -> str:
    more = f" and {part.more} more" if part.more else ""
    return ", ".join(part.names) + more if part.names else "many small parts"


# -- space -------------------------------------------------------------------------------------------------------------


_HEADINGS = {
    "app": "apps",
    "deployment": "deployments",
    "pin": "pins",
    "foreign": "other programs",
    "several": "shared by several owners",
}


def _owner(part: Part) -> str:
    """Whose a part is; what bootc tags for its deployments is theirs."""
    owners = set(part.owners)
    if owners == {"bootc", "deployment"}:
        return "deployment"
    return part.owners[0] if len(owners) == 1 else "several"


def _treemap(parts: Sequence[Part], facts: Facts) -> go.Figure:
    """A rectangle for each part below one for its owner; garbage beside them."""
    nodes: dict[str, tuple[str, str, int, str, str]] = {}
    for number, part in enumerate(parts):
        owner = _owner(part)
        _, _, sum_so_far, _, _ = nodes.get(owner, ("", "", 0, "", ""))
        heading = _HEADINGS.get(owner, owner)
        nodes[owner] = (heading, "all", sum_so_far + part.used.allocated, _COLOURS[owner], heading)
        others = len(part.names) + part.more - 1
        label = f"{draw.short(part.names[0])}{f' +{others}' if others else ''}" if part.names else "others"
        nodes[f"part {number}"] = (label, owner, part.used.allocated, _COLOURS[owner], draw.text(_names(part)))
    if facts.shares.dead.allocated:
        nodes["garbage"] = ("garbage", "all", facts.shares.dead.allocated, _COLOURS["garbage"], "what a collection would free")
    total = sum(size for _, parent, size, _, _ in nodes.values() if parent == "all")
    nodes["all"] = (draw.short(facts.path), "", total, "#ffffff", draw.text(facts.path))
    labels, parents, sizes, colours, texts = zip(*nodes.values(), strict=True)
    treemap = go.Treemap(
        ids=list(nodes),
        labels=labels,
        parents=parents,
        values=sizes,
        branchvalues="total",
        marker={"colors": colours},
        customdata=[[draw.size(size), text] for size, text in zip(sizes, texts, strict=True)],
        texttemplate="%{label}<br>%{customdata[0]}",
        hovertemplate="%{customdata[1]}<br>%{customdata[0]}, %{percentRoot:.1%} of all<extra></extra>",
    )
    return draw.figure([treemap], height=600)


def _space_table(parts: Sequence[Part]) -> str:
    rows = ((draw.text(", ".join(part.owners)), draw.text(_names(part)), draw.size(part.used.allocated)) for part in parts)
    return draw.table(("Owner", "Kept by", "Bytes on disk"), rows)


# -- sharing -----------------------------------------------------------------------------------------------------------


def _matrix(facts: Facts) -> go.Figure:
    """A square for each two names, the darker the more they share."""
    names, matrix = facts.shares.names, facts.shares.matrix
    numbers = list(range(len(names)))
    heat = go.Heatmap(
        x=numbers,
        y=numbers,
        z=[[size or None for size in row] for row in matrix],
        customdata=[
            [[draw.text(one), draw.text(other), draw.size(size)] for other, size in zip(names, row, strict=True)]
            for one, row in zip(names, matrix, strict=True)
        ],
        text=[[draw.size(size) if size else "" for size in row] for row in matrix],
        texttemplate="%{text}" if len(names) <= _IN_SQUARES else "",
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        colorscale="Blues",
        showscale=False,
        xgap=2,
        ygap=2,
    )
    labels = [draw.short(name) for name in names]
    axis = {"tickmode": "array", "tickvals": numbers, "ticktext": labels, "automargin": True, "showgrid": False}
    figure = draw.figure([heat], height=max(300, 160 + 28 * len(names)))
    figure.update_layout(xaxis=axis | {"side": "top"}, yaxis=axis | {"autorange": "reversed"})
    return figure


_IN_SQUARES = 12
"""Names up to which the bytes stand in the squares."""


def _pairs_table(facts: Facts) -> str:
    names, matrix = facts.shares.names, facts.shares.matrix
    pairs = [(matrix[one][other], names[one], names[other]) for one in range(len(names)) for other in range(one)]
    pairs.sort(key=lambda pair: -pair[0])
    rows = ((draw.text(one), draw.text(other), draw.size(size)) for size, one, other in pairs if size)
    return draw.table(("Name", "Name", "Bytes shared"), rows)


# -- time --------------------------------------------------------------------------------------------------------------


def _timeline(facts: Facts) -> go.Figure:
    """A line for each deployment while it has its ref, and a diamond where its image was made."""
    traces: list[Any] = []
    spans = list(enumerate(facts.deployments))
    for state, colour in _STATES.items():
        mine = [(number, span) for number, span in spans if span.state == state]
        if not mine:
            continue
        x: list[datetime | None] = []
        y: list[int | None] = []
        said: list[str] = []
        for number, span in mine:
            for since, until in span.kept:
                x += [since, until or facts.made, None]
                y += [number, number, None]
                said += [_said(span)] * 3
        line = {"color": colour, "width": 14}
        hover = "%{customdata}<br>%{x}<extra></extra>"
        traces.append(
            go.Scatter(x=x or [None], y=y or [None], customdata=said, mode="lines", line=line, name=state, hovertemplate=hover)
        )
        begun = [(since, number, f"{_said(span)}<br>ref made") for number, span in mine for since, _ in span.kept]
        built = [(span.built, number, f"{_said(span)}<br>image made") for number, span in mine if span.built is not None]
        for marks, symbol, size in ((begun, "line-ns-open", 14), (built, "diamond", 11)):
            if marks:
                when, rows, texts = zip(*marks, strict=True)
                mark = {"color": colour, "size": size, "symbol": symbol, "line": {"color": "#222", "width": 1}}
                hidden = {"mode": "markers", "showlegend": False}
                traces.append(go.Scatter(x=when, y=rows, customdata=texts, marker=mark, hovertemplate=hover, **hidden))
    figure = draw.figure(traces, height=max(260, 140 + 30 * len(spans)))
    numbers, labels = [number for number, _ in spans], [_label(span) for _, span in spans]
    figure.update_layout(
        yaxis={
            "tickmode": "array",
            "tickvals": numbers,
            "ticktext": labels,
            "range": [len(spans) - 0.5, -0.5],
            "automargin": True,
        },
        xaxis={"type": "date"},
        legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"},
        showlegend=True,
    )
    return figure


def _label(span: Span) -> str:
    return f"{span.id[:12]}{f' {draw.short(span.version)}' if span.version else ''}"


def _said(span: Span) -> str:
    return "<br>".join(draw.text(part) for part in (span.id[:12], span.image, span.version, span.state) if part)


def _deployments_table(facts: Facts) -> str:
    return draw.table(("Deployment", "State", "Image", "Version", "Image made", "Kept"), map(_row, facts.deployments))


def _row(span: Span) -> tuple[str, ...]:
    kept = "; ".join(f"{draw.day(since)} – {draw.day(until) if until is not None else 'now'}" for since, until in span.kept)
    built = draw.day(span.built) if span.built is not None else ""
    return (span.id[:12], span.state, draw.text(span.image or ""), draw.text(span.version or ""), built, kept)
