"""Measure cfs-tag beside its peers: ``make bench``, or this program with the Python of an environment that has cfs-tag.

Nothing is asserted: what is measured on a busy machine would fail for no reason.  Each line says whether a goal is met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import collecting
import rows as tags_and_deployments
from datasets import Data
from measure import BenchError, Launcher
from rows import FULL, QUICK, Bench, Row

import apps
import report
from support.peers import CFSCTL_VERSION, clean_environment, find_peer

SCHEMA = 1
GROUPS = {**tags_and_deployments.GROUPS, **collecting.GROUPS, **apps.GROUPS}
_MEMORY = Path("/dev/shm")


def main() -> int:
    """Run what the command line asks for; returns the exit status: 1 where a program failed, never for a slow one."""
    options = _options()
    program = Path(sys.executable).with_name("cfs-tag")
    if not program.exists():
        sys.exit(f"bench: {program} is not there: 'make bench' installs it, and calls this with the right Python")
    cfsctl = find_peer("cfsctl")
    if cfsctl is None:
        sys.exit(f"bench: cfsctl {'.'.join(map(str, CFSCTL_VERSION))} or newer is needed: .ci/run builds it")
    git = find_peer("git")
    cache = options.cache or _cache()
    cache.mkdir(parents=True, exist_ok=True)
    status = 0
    with ExitStack() as stack:

        def directory(where: Path) -> Path:
            made = tempfile.TemporaryDirectory(dir=where, prefix="cfs-tags-bench-", ignore_cleanup_errors=True)
            return Path(stack.enter_context(made))

        work = directory(cache)
        memory = directory(_MEMORY) if os.access(_MEMORY, os.W_OK) else None
        home = work / "home"
        home.mkdir()
        said = [_version(peer) for peer in (cfsctl, git) if peer is not None]
        machine, versions = report.machine(cache), report.versions(said)
        form = "quick" if options.quick else "full"
        _say(f"machine    {'; '.join(f'{name} {value}' for name, value in machine.items())}")
        _say(f"versions   {'; '.join(f'{name} {value}' for name, value in versions.items())}")
        _say(f"form       {form}{', nothing in memory before each run (--cold)' if options.cold else ''}")
        if options.quick:
            _say("           smaller data and fewer pairs: the goals are meant for the full form")
        rows: list[Row] = []
        started = time.monotonic()
        with Launcher(clean_environment(home), work) as launcher:
            data = Data(cache, cfsctl, _version(cfsctl), _say)
            sizes = QUICK if options.quick else FULL
            bench = Bench(program, cfsctl, git, Path(sys.executable), launcher, data, sizes, work, memory, options.cold)
            floor = launcher.run("/bin/true").peak / (1 << 20)
            _say(f"memory     peaks below {floor:.1f} MiB cannot be told apart: so much has what starts the programs")
            for name in options.group or GROUPS:
                _say(f"\n-- {name}")
                try:
                    for row in GROUPS[name](bench):
                        rows.append(row)
                        _say(report.table([row]))
                except BenchError as error:
                    status = 1
                    _say(f"    failed: {error}")
    _say(f"\n-- goals ({time.monotonic() - started:.0f} s)")
    for row in rows:
        if row.limit is not None:
            _say(f"{row.name:20} {row.verdict}")
    if options.markdown is not None:
        options.markdown.write_text(report.markdown(rows))
    if options.json is not None:
        document = {
            "schema": SCHEMA,
            "form": form,
            "cold": options.cold,
            "machine": machine,
            "versions": versions,
            "rows": [report.row_facts(row) for row in rows],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Measure cfs-tag beside its peers.")
    parser.add_argument("group", nargs="*", metavar="GROUP", help=f"only these: {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="smaller data, fewer pairs")
    parser.add_argument("--cold", action="store_true", help="empty the kernel's caches before each reading run (root)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table of docs/performance.md there, too")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where the data sets are kept (default: beside cfsctl's)")
    options = parser.parse_args()
    unknown = set(options.group) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}: there are {', '.join(GROUPS)}")
    return options


def _cache() -> Path:
    home = Path(os.environ.get("HOME", "/nonexistent"))
    base = os.environ.get("CFS_TAGS_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or home / '.cache'}/cfs-tag-ci"
    return Path(base) / "bench-data"


def _version(program: Path) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
