"""``make demo`` shows migrating first, and fits two screens."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from support.livehost import Step, on_terminal

ROOT = Path(__file__).parent.parent.parent


def test_the_demo_migrates_first_and_fits_two_screens() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "xterm-256color"}

    shown = on_terminal(Step(f"sh {ROOT}/examples/demo.sh"), columns=80, lines=24, env=environment)

    assert shown.status == 0, shown.text
    lines = shown.text.splitlines()
    commands = [line for line in lines if line.startswith("$ ")]
    assert commands[0] == "$ cfs-tag migrate $HOST"
    assert len(commands) > 5
    assert len(lines) <= 48, shown.text
