"""What pages with charts have in common: one file that needs no network.

Charts are drawn by plotly, whose script is in the page.  All text in it is foreign: it is made printable and escaped before
plotly gets it, which reads some markup in labels; and a policy in the head of the page forbids everything that would come from
elsewhere.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from cfs_tags.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_DIGEST = re.compile(r"[0-9a-f]{64,128}")
_LONGEST = 40
_CONFIG = {"displayModeBar": False, "responsive": True}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .15em .8em; text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr:nth-child(even) { background: #f5f5f5; } .problem { color: #b00020; }
"""


def document(title: str, said: str, problems: Iterable[str], sections: Iterable[str]) -> str:
    """A whole page; every part is HTML already."""
    shown = "".join(f'<p class="problem">{problem}</p>' for problem in problems)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><h1>{title}</h1>"
        f"<p>{said}</p>"
        f"{shown}{''.join(sections)}</body></html>\n"
    )


def section(name: str, heading: str, chart: go.Figure, shown: str) -> str:
    """A chart with a heading, and a table of the same below it."""
    drawn = chart.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=_CONFIG)
    return f"<h2>{heading}</h2>{drawn}<details><summary>As a table</summary>{shown}</details>"


def text(foreign: str) -> str:
    """Foreign text for HTML, and for labels, in which plotly reads tags and entities."""
    return escape(printable(foreign))


def short(name: str) -> str:
    """A name in which digests and ids are short, and no longer than fits a label."""
    label = _DIGEST.sub(lambda found: found[0][:12], printable(name))
    return escape(label if len(label) <= _LONGEST else f"{label[: _LONGEST // 2]}…{label[-_LONGEST // 2 :]}")


def size(count: int) -> str:
    """Bytes as people read them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def table(headings: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A table; every cell is HTML already."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f'<td class="number">{cell}</td>' if _is_size(cell) else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _is_size(cell: str) -> bool:
    return re.fullmatch(r"[\d.]+ [KMGT]?i?B", cell) is not None


def day(when: datetime) -> str:
    """An instant as people read it."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M}"


def figure(traces: Sequence[Any], height: int) -> go.Figure:
    """A chart in the look that all have."""
    made = go.Figure(traces)
    made.update_layout(template="plotly_white", height=height, margin={"l": 8, "r": 8, "t": 8, "b": 8})
    return made
