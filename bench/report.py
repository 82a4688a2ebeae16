"""What is printed: the machine and the versions, and a line for each row; the same as JSON."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rows import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from measure import Run
    from rows import Row

__all__ = ["machine", "markdown", "row_facts", "table", "versions"]

_PACKAGES = ("cfs-tags", "typer", "click", "rich", "backports.zstd")


def machine(where: Path) -> dict[str, str]:
    """What the figures depend on; nothing that tells whose machine it is.

    Args:
        where: a directory of the file system that is measured on.
    """
    system = os.uname()
    load = "no load average" if not hasattr(os, "getloadavg") else f"{os.getloadavg()[0]:.2f}"
    return {
        "CPU": _field("/proc/cpuinfo", "model name") or system.machine,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int((_field('/proc/meminfo', 'MemTotal') or '0').split()[0]) / MIB:.1f} GiB",
        "kernel": f"{system.sysname} {system.release.partition('-')[0]} {system.machine}",
        "file system": _file_system(where),
        "load before": load,
    }


def versions(peers: Iterable[str]) -> dict[str, str]:
    """Versions of all that is measured; ``peers`` are what the other programs say of themselves."""
    found = dict(said.replace(" version", "").rsplit(" ", 1) for said in peers)
    found["Python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["libzstd"] = _libzstd()
    return found


def _libzstd() -> str:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        return "none"
    return str(zstd.zstd_version)


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), None)


def _file_system(where: Path) -> str:
    """Type of the mount that a directory is on (mountinfo of proc(5))."""
    best, found = -1, "unknown"
    path = where.resolve()
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        fields = line.split(" ")
        point = fields[4]
        if path.is_relative_to(point) and len(point) >= best:
            best = len(point)
            kind = fields[fields.index("-") + 1]
            found = kind
            if kind == "ext4":
                options = Path(f"/proc/fs/ext4/{Path(fields[fields.index('-') + 2]).name}/options")
                with suppress(OSError):
                    found += " with a journal" if "data=" in options.read_text() else " without a journal"
    return found


# -- rows --------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """All rows as text."""
    return "\n".join(line for row in rows for line in _lines(row))


def _lines(row: Row) -> Iterable[str]:
    yield f"{row.name}: {row.ours}" + (f"  /  {row.peer}" if row.peer else "")
    if row.note:
        yield f"    ({row.note})"
    if row.comparison is not None and row.unit == "x":
        yield f"    ours  {_runs(row.comparison.ours)}"
        yield f"    peer  {_runs(row.comparison.peer)}"
    goal = "" if row.limit is None else f"   goal: at {'least' if row.at_least else 'most'} {row.limit:g}{_unit(row)}"
    if row.figure is not None:
        middle, least, most = row.figure
        yield f"    {middle:.2f}{_unit(row)}  ({least:.2f} to {most:.2f}){goal}   {row.verdict}"
    else:
        yield f"    {row.verdict}{goal}"


def _unit(row: Row) -> str:
    return "×" if row.unit == "x" else f" {row.unit}"


def _runs(runs: Sequence[Run]) -> str:
    times = sorted(run.seconds * 1000 for run in runs)
    peak = max(run.peak for run in runs) / MIB
    busy = median(run.user + run.system for run in runs) * 1000
    return (
        f"{times[0]:9.1f} {median(times):9.1f} {times[-1]:9.1f} ms (min, median, max);"
        f"  processor {busy:.1f} ms;  peak {peak:.1f} MiB"
    )


def markdown(rows: Sequence[Row]) -> str:
    """All rows as the table of ``docs/performance.md``."""
    lines = ["| row | ours | peer | figure (min to max) | goal | |", "| --- | ---: | ---: | ---: | --- | --- |"]
    for row in rows:
        ours, peer, figure = "", "", ""
        if row.comparison is not None and row.unit == "x":
            ours, peer = _short(row.comparison.ours), _short(row.comparison.peer)
        if row.figure is not None:
            middle, least, most = row.figure
            figure = f"{middle:.2f}{_unit(row)} ({least:.2f} to {most:.2f})"
        goal = "" if row.limit is None else f"at {'least' if row.at_least else 'most'} {row.limit:g}{_unit(row)}"
        lines.append(f"| `{row.name}` | {ours} | {peer} | {figure} | {goal} | {row.verdict} |")
    return "\n".join(lines) + "\n"


def _short(runs: Sequence[Run]) -> str:
    return f"{median(run.seconds for run in runs) * 1000:,.0f} ms, {max(run.peak for run in runs) / MIB:.0f} MiB"


def row_facts(row: Row) -> dict[str, Any]:
    """A row as JSON has it, with every run: seconds of wall time and peak bytes."""
    found: dict[str, Any] = {
        "group": row.group,
        "name": row.name,
        "ours": row.ours,
        "peer": row.peer,
        "note": row.note,
        "unit": row.unit,
        "figure": row.figure and dict(zip(("median", "min", "max"), row.figure, strict=True)),
        "limit": row.limit,
        "at_least": row.at_least,
        "verdict": row.verdict,
    }
    if row.comparison is not None:
        found["runs"] = {
            "ours": [run._asdict() for run in row.comparison.ours],
            "peer": [run._asdict() for run in row.comparison.peer],
        }
    return found
