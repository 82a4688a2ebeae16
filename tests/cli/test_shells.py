"""Completion in the real shells, on a terminal, as a person presses the key."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.terminal import Screen

PROGRAM = Path(sys.executable).with_name("cfs-tag")
WEB = "quay.io/apps/web:1"
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
SETTINGS = {
    "bash": "PS1='> '; bind 'set enable-bracketed-paste off'",
    "zsh": "PS1='> '; unsetopt prompt_sp; autoload -Uz compinit; compinit -D",
    "fish": "function fish_prompt; printf '> '; end; set -g fish_greeting",
}
SECONDS = 20


class Shell:
    """A shell on a terminal of 300 columns in which completion of ``cfs-tag`` is set up."""

    def __init__(self, name: str, home: Path) -> None:
        self.screen = Screen(300, 50)
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
        environment = {
            "HOME": str(home),
            "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "CFS_TAG_REPO": str(home / "composefs"),
        }
        self._process = subprocess.Popen(
            ["setsid", "-c", *START[name]], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=home
        )
        os.close(theirs)
        self._start = (name, home, environment)

    def start(self) -> None:
        """Set up the shell, and completion as its users do."""
        name, home, environment = self._start
        script = subprocess.run(
            [PROGRAM], env={**environment, "_CFS_TAG_COMPLETE": f"source_{name}"}, capture_output=True, text=True, check=True
        )
        (home / f"completion.{name}").write_text(script.stdout)
        # a shell wants the terminal to be its own
        self.type(f"{SETTINGS[name]}; source completion.{name}; echo re''ady\r")
        self.wait_for("ready\n>")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Until the screen ends with this text, but for blanks."""
        end = time.monotonic() + SECONDS
        while not self.screen.text.endswith(text):
            ready, _, _ = select.select([self._ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} is not the end of:\n{self.screen.text}"
            try:
                self.screen.feed(os.read(self._ours, 65536))
            except OSError:
                pytest.fail(f"the shell has ended:\n{self.screen.text}")

    def complete(self, typed: str, wanted: str) -> None:
        """The key is pressed behind what is typed, and then the line is this."""
        self.type(f"{typed}\t")
        self.wait_for(f"> {wanted}")
        self.type("\x15echo no''thing\r")
        self.wait_for("nothing\n>")

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._ours)


@pytest.fixture(params=START)
def shell(request: pytest.FixtureRequest, repo: Path) -> Iterator[Shell]:
    name = request.param
    if shutil.which(name) is None:
        if os.environ.get("CFS_TAGS_REQUIRE_PEERS") == "1":
            pytest.fail(f"missing peer: {name}")
        pytest.skip(f"missing peer: {name}")
    shell = Shell(name, repo.parent)
    try:
        shell.start()
        yield shell
    finally:
        shell.end()


def test_commands_names_and_values_are_completed_in_the_line(shell: Shell, booted: str) -> None:
    shell.complete("cfs-tag resto", "cfs-tag restore")
    shell.complete("cfs-tag show quay.io/apps/w", f"cfs-tag show {WEB}")
    shell.complete("cfs-tag show quay.io/apps/web:", f"cfs-tag show {WEB}")
    shell.complete("cfs-tag show @boo", "cfs-tag show @booted")
    shell.complete(f"cfs-tag retire {booted[:6]}", f"cfs-tag retire {booted}")
    shell.complete("cfs-tag list --sort dig", "cfs-tag list --sort digest")
    shell.complete("cfs-tag list --points-at quay.io/apps/w", f"cfs-tag list --points-at {WEB}")
    shell.complete("cfs-tag list --points-at=quay.io/apps/w", f"cfs-tag list --points-at={WEB}")


@pytest.fixture
def booted(facts: dict[str, str]) -> str:
    return facts["booted"]
