"""A recorded host as the running system: its repository at ``/sysroot``, its ``/boot`` and ``/run``, its kernel command line.

Everything happens in a mount namespace of its own, below a root directory that is made of the machine's; so commands are
those that a user types, without options that say where the host is.  Needs ``unshare`` and root, or a kernel on which users
may make namespaces.
"""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

import pytest

from support.terminal import PROGRAM, Screen

COLUMNS = 110
LINES = 60
SECONDS = 30
"""A step that takes longer is killed."""
UNSET = (
    "COLUMNS",
    "NO_COLOR",
    "FORCE_COLOR",
    "SUDO_USER",
    "CFS_TAG_REPO",
    "CFS_TAG_SYSROOT",
    "CFS_TAG_DEBUG",
    "LC_ALL",
    "PYTHONUTF8",
)

# the root of the namespace: a file system in memory, where files take as much room on every machine, whose source says what
# is booted; with everything else of the machine in it
ROOT = """
set -eu
work=$1 host=$2 booted=$3; shift 3
mount --make-rprivate /
root=$work/root
mkdir -p "$root"
mount -t tmpfs "composefs:$booted" "$root"
for one in /* ; do
    case $one in
        /sysroot | /boot | /run | /srv | /var) ;;
        *) if [ -L "$one" ]; then cp -P "$one" "$root$one"
           elif [ -d "$one" ]; then mkdir "$root$one"; mount --rbind "$one" "$root$one"; fi ;;
    esac
done
mkdir -p "$root/sysroot" "$root/boot" "$root/run" "$root/var/tmp" "$root/srv"
mount -t tmpfs sysroot "$root/sysroot"
tar -xzf "$host" -C "$root/sysroot"
mount --bind "$root/sysroot/boot" "$root/boot"
mount -o remount,bind,ro "$root/sysroot"
[ ! -d "$root/sysroot/run" ] || cp -R "$root/sysroot/run/." "$root/run/"
printf 'root=UUID=0 rw composefs=%s\\n' "$booted" >"$work/cmdline"
mount --bind "$work/cmdline" "$root/proc/cmdline"
# a machine without EFI
[ ! -d "$root/sys/firmware" ] || { mount -t tmpfs none "$root/sys/firmware"; mkdir "$root/sys/firmware/acpi"; }
cd "$root"
exec chroot "$root" "$@"
"""


class Step(NamedTuple):
    """A command line for bash, and what is typed while it runs.  ``writable`` says that ``/sysroot`` is mounted so."""

    text: str
    typed: str = ""
    writable: bool = False


class Typed(NamedTuple):
    """What a terminal shows of a step in the end, and the exit status."""

    text: str
    status: int


def run_on_host(
    archive: Path, booted: str, steps: Sequence[Step], work: Path, env: Mapping[str, str] | None = None, columns: int = COLUMNS
) -> list[Typed]:
    """Run steps one after the other on a copy of a recorded host.

    Args:
        archive: the recorded host.
        booted: the id of the deployment that runs.
        steps: what is typed.
        work: an empty directory.
        env: of the environment, besides what is said here.
        columns: of the terminal.
    """
    _needs("unshare", "jq")
    programs = work / "bin"
    programs.mkdir()
    for name, code in (("cfs-tag", PROGRAM), ("python3", None)):
        path = programs / name
        path.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n' if code is None else f"#!{sys.executable}{code}"
        )
        path.chmod(0o755)
    order = work / "order.json"
    order.write_text(json.dumps({"steps": steps, "columns": columns}))
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    environment = {
        **kept,
        "PATH": f"{programs}:{kept['PATH']}",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "HOME": "/root",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "LATER": "0",
        **(env or {}),
    }
    flags = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    driver = [sys.executable, "-m", "support.livehost", str(order)]
    command = ["unshare", *flags, "sh", "-c", ROOT, "sh", str(work), str(archive), booted, *driver]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [Typed(*one) for one in json.loads((work / "said.json").read_text())]


def _needs(*programs: str) -> None:
    for name in programs:
        if shutil.which(name) is None:
            if os.environ.get("CFS_TAGS_REQUIRE_PEERS") == "1":
                pytest.fail(f"{name} is missing")
            pytest.skip(f"{name} is missing")


def _drive(order: Path) -> None:
    wanted = json.loads(order.read_text())
    said = [_type(Step(*step), wanted["columns"]) for step in wanted["steps"]]
    (order.parent / "said.json").write_text(json.dumps(said))


def _type(step: Step, columns: int) -> Typed:
    if step.writable:
        subprocess.run(["mount", "-o", "remount,bind,rw", "/sysroot"], check=True)
    typed = on_terminal(step, columns, LINES, cwd="/srv")
    if step.writable:
        subprocess.run(["mount", "-o", "remount,bind,ro", "/sysroot"], check=True)
    return typed


def on_terminal(step: Step, columns: int, lines: int, cwd: str | None = None, env: Mapping[str, str] | None = None) -> Typed:
    """What a terminal of this size shows of a step, and its exit status; a step that takes too long is killed."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = ["bash", "-c", step.text]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env, start_new_session=True)
    os.close(theirs)
    typed = step.typed.encode()
    screen = Screen(columns, lines)
    end = time.monotonic() + SECONDS
    while select.select([ours], [], [], max(0, end - time.monotonic()))[0] and (data := _read(ours)):
        screen.feed(data)
        if typed and not data.endswith(b"\n"):  # a question
            os.write(ours, typed)
            typed = b""
    if time.monotonic() > end:
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait(timeout=SECONDS)
    os.close(ours)  # not before: a terminal that goes is a signal
    return Typed(screen.text, status)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its way to say that this was all
        return b""


if __name__ == "__main__":
    _drive(Path(sys.argv[1]))
