"""A look needs no more than reading: ``--dry-run`` where the run would be refused by the system alone."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.images import app_image
from support.trees import copy_tree, tree

ROOT = Path(__file__).parent.parent.parent
WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
PLACES = ("--run", "none", "--booted", "none", "--esp", "none")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DRY_RUNS = {
    "create": ("create", "x:1", WEB),
    "create --deployment": ("create", "--deployment", "4b7d9f8b3973"),
    "refused": ("create", WEB, DB),
    "delete": ("delete", WEB),
    "absent": ("delete", "absent"),
    "rename": ("rename", WEB, "x:1"),
    "restore": ("restore", WEB),
    "trash": ("trash", "empty"),
    "update": ("update", "--stdin"),
    "migrate": ("migrate", *PLACES),
    "migrate --undo": ("migrate", "--undo", *PLACES),
    "retire": ("retire", *PLACES),
    "bind": ("bind", *PLACES),
    "good-boot": ("good-boot", "4b7d9f8b3973", *PLACES),
    "gc": ("gc", *PLACES),
    "maintain": ("maintain", *PLACES),
    "fsck": ("fsck", "--repair"),
    "import": ("import", "oci:layout:app", "x:1"),
    "pin": ("pin", "4b7d9f8b3973", *PLACES),
    "unpin": ("unpin", "absent"),
    "policy": ("policy", "apply", "--file", "policy.toml"),
}
ELSEWHERE = {"hold", "publish", "revive"}
"""They run a command, or ask a registry or bootc; the tests of each have its dry run."""
POLICY = '[[rule]]\ntags = ["quay.io/apps/*"]\nkeep-last = 1\ngroup-by = "rule"\n'


AS_NOBODY = """
import os, sys
from cfs_tags.cli import owner
from cfs_tags.cli.main import main
places = owner._hold_program()  # the interpreter may be where only root can read it
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
owner._import_from(places)
sys.exit(main())
"""


def call(place: Path, *words: str, as_nobody: bool = False) -> subprocess.CompletedProcess[str]:
    program = ["-c", AS_NOBODY] if as_nobody else ["-m", "cfs_tags"]
    command = [sys.executable, *program, "--sysroot", "host", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    text = f"create a {WEB}\n"
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=place, env=environment, check=False)


@pytest.fixture(scope="module")
def looked_at(_example: Path) -> Iterator[Path]:
    """A directory that everybody can read, with a host and a layout."""
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o755)
        copy_tree(_example, place / "host")
        app_image(place / "layout", "app")
        (place / "policy.toml").write_text(POLICY)
        subprocess.run(["chmod", "-R", "go+rX,go-w", place], check=True)
        yield place
    finally:
        shutil.rmtree(place)


@pytest.fixture
def read_only(looked_at: Path) -> Iterator[Path]:
    """The same, on a mount of its own that is read-only."""
    host = looked_at / "host"
    done = subprocess.run(["mount", "--bind", host, host], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", host], check=True)
        yield looked_at
    finally:
        subprocess.run(["umount", host], check=True)


@pytest.fixture(scope="module")
def writable(looked_at: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, where it can be written."""
    return copy_tree(looked_at, tmp_path_factory.mktemp("writable") / "copy")


def test_every_command_that_has_a_dry_run_is_among_them() -> None:
    sources = {
        path.stem.removeprefix("cmd_").replace("_", "-"): path.read_text() for path in (ROOT / "cfs_tags/cli").glob("cmd_*.py")
    }
    with_dry_run = {name for name, source in sources.items() if "how: Change" in source or "DryRun" in source}

    assert with_dry_run - {words[0] for words in DRY_RUNS.values()} == ELSEWHERE


@ROOT_ONLY
@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_on_a_read_only_mount_says_what_the_run_would_do_and_how_it_can(
    name: str, read_only: Path, writable: Path
) -> None:
    words = (*DRY_RUNS[name], "--dry-run")
    before = tree(read_only)
    seen = call(read_only, *words)

    there = call(writable, *words)
    assert (seen.returncode, seen.stdout) == (there.returncode, there.stdout)
    assert seen.stderr.startswith(there.stderr)
    warning, hint = seen.stderr[len(there.stderr) :].splitlines()
    assert warning == "cfs-tag: warning: host/composefs can only be read: the file system is mounted read-only"
    line = shlex.split(hint.partition(": unshare ")[2])
    typed = ["cfs-tag", "--sysroot", "host", *DRY_RUNS[name]]
    assert line[:3] == ["-m", "sh", "-c"]
    assert shlex.split(line[3]) == ["mount", "-o", "remount,bind,rw", str(read_only / "host"), "&&", *typed]
    assert tree(read_only) == before


@ROOT_ONLY
def test_what_a_policy_would_do_is_said_there_in_full(read_only: Path) -> None:
    checked = call(read_only, "policy", "check", "--file", "policy.toml")

    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.endswith("4 tags would stay, 1 would be deleted\n")
    applied = call(read_only, *DRY_RUNS["policy"], "--dry-run")
    assert applied.stdout.startswith("would be deleted: quay.io/apps/"), applied


@ROOT_ONLY
@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_of_another_user_needs_no_permission_but_to_read(name: str, looked_at: Path) -> None:
    words = (*DRY_RUNS[name], "--dry-run")
    ours = call(looked_at, *words)
    theirs = call(looked_at, *words, as_nobody=True)

    assert (theirs.returncode, theirs.stdout) == (ours.returncode, ours.stdout)
    assert "cfs-tag: warning: cannot write in host/composefs: Permission denied\n" in theirs.stderr
    assert theirs.stderr.endswith("hint: run it as the owner, or as root\n")


@ROOT_ONLY
def test_the_run_is_refused_there_and_works_with_the_line_that_is_shown(read_only: Path) -> None:
    refused = call(read_only, "create", "x:1", WEB)
    assert refused.returncode == 4
    line = refused.stderr.partition("as bootc does: ")[2].strip().replace("cfs-tag ", f"{sys.executable} -m cfs_tags ", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=read_only, env=environment, check=False)

    assert done.stdout.startswith("created: x:1"), done.stderr
    assert call(read_only, "create", "y:1", WEB).returncode == 4, "for others it is as it was"
