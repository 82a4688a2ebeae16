"""Tests of this suite are shut off from the hooks and policies of the machine that they run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ADMINISTRATOR = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" overlay /etc
mkdir -p /etc/cfs-tags/hooks.d/pre
printf '#!/bin/sh\\nexit 1\\n' >/etc/cfs-tags/hooks.d/pre/no
chmod 755 /etc/cfs-tags/hooks.d/pre/no
exec "$2" -m pytest -q -p no:cacheprovider tests/cli/test_log.py -k since
"""
"""A machine whose hook refuses every change."""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a file system over /etc")
def test_a_hook_of_the_machine_is_not_asked(tmp_path: Path) -> None:
    words = ["unshare", "-m", "sh", "-c", ADMINISTRATOR, "sh", tmp_path, sys.executable]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
