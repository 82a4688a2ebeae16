#!/usr/bin/env python3
"""Try a collector on recorded hosts, and say what it lost.

    python3 kit/run.py [--hosts DIR] [--data FILE] [--only NAME] -- COMMAND…

Each host is unpacked into a temporary directory, the refs of its deployments are written (``docs/spec/deployment-refs.md``),
and the command is run once.  In its words ``{repo}`` stands for the repository, ``{sysroot}`` for the physical root, ``{run}``
for the host's ``/run`` and ``{booted}`` for the id of the booted deployment.  Then everything that had to survive is looked
for.

A line for each host: its name, the command's exit status, how much had to survive, what is lost, how many other paths are
left.  Exit status: 0 nothing is lost; 1 something is; 2 wrong usage.  A command that fails and loses nothing is not an error
here: a collector may refuse.

Needs Python 3.11 and nothing else.  ``kit/live_sets.json`` has for each host the refs and the paths, relative to the
repository.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
HOSTS = HERE.parent / "tests" / "data" / "hosts"
SHOWN = 5
PLACE = re.compile(r"\{(repo|sysroot|run|booted)\}")
TIMEOUT = 300
"""Seconds that a collector may take for one of these tiny hosts."""


class Outcome(NamedTuple):
    """What a collector did to one host: paths that are lost, and the number of paths that are left besides."""

    host: str
    status: int
    needed: int
    lost: list[str]
    others: int

    def line(self) -> str:
        """For people."""
        lost = f"LOST {len(self.lost)}: {', '.join(self.lost[:SHOWN])}" if self.lost else "nothing lost"
        return f"{self.host:<18} exit {self.status}  {self.needed} had to survive  {lost}  {self.others} other paths left"


def unpack(archive: Path, into: Path) -> None:
    """Unpack a recorded host."""
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="tar")


def write_refs(repo: Path, refs: dict[str, str]) -> None:
    """Make the refs of the host's deployments."""
    for path, link in refs.items():
        place = repo / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(link)


def content(repo: Path) -> set[str]:
    """Links and objects that are there."""
    found = set()
    for tree in ("streams", "images"):
        found |= {f"{tree}/{entry.name}" for entry in os.scandir(repo / tree) if entry.is_symlink()}
    found |= {f"objects/{path.parent.name}/{path.name}" for path in (repo / "objects").glob("??/*")}
    return found


def run(host: str, facts: dict[str, object], archive: Path, command: list[str]) -> Outcome:
    """Unpack one host, run the command, and look."""
    refs, survive = facts["refs"], facts["survive"]
    assert isinstance(refs, dict)
    assert isinstance(survive, list)
    with tempfile.TemporaryDirectory(prefix="cfs-tags-kit-") as directory:
        root = Path(directory)
        unpack(archive, root)
        repo = root / "composefs"
        write_refs(repo, refs)
        words = {"repo": repo, "sysroot": root, "run": root / "run", "booted": facts["booted"]}
        argv = [PLACE.sub(lambda place: str(words[place[1]]), word) for word in command]
        try:
            status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=TIMEOUT, check=False).returncode
        except OSError as error:
            sys.exit(f"cannot run {argv[0]}: {error.strerror}")
        left = content(repo)
        return Outcome(host, status, len(survive), sorted(set(survive) - left), len(left - set(survive)))


def main() -> int:
    """Parse the words, run, print."""
    parser = argparse.ArgumentParser(description="Try a collector on recorded hosts, and say what it lost.")
    parser.add_argument("--hosts", type=Path, default=HOSTS, help="directory with the recorded hosts (NAME.tar.gz)")
    parser.add_argument("--data", type=Path, default=HERE / "live_sets.json", help="what must survive")
    parser.add_argument("--only", action="append", metavar="NAME", help="this host alone; may be given several times")
    parser.add_argument("command", nargs="+", help="the collector, with {repo}, {sysroot}, {run}, {booted}")
    given = parser.parse_args()
    hosts = json.loads(given.data.read_text())["hosts"]
    unknown = [name for name in given.only or () if name not in hosts]
    if unknown:
        parser.error(f"no such host: {', '.join(unknown)}; there are {', '.join(hosts)}")
    lost = False
    for host in given.only or hosts:
        outcome = run(host, hosts[host], given.hosts / f"{host}.tar.gz", given.command)
        print(outcome.line(), flush=True)
        lost = lost or bool(outcome.lost)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
