"""The kit for collectors: what it says of ours, of cfsctl, and of one that deletes too much."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.peers import Cfsctl

ROOT = Path(__file__).resolve().parent.parent.parent
KIT = ROOT / "kit"
PROGRAM = Path(sys.executable).with_name("cfs-tag")
DATA = json.loads((KIT / "live_sets.json").read_text())


def run_kit(*words: str) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, KIT / "run.py", *words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_the_live_sets_are_what_the_script_makes() -> None:
    made = subprocess.run([sys.executable, ROOT / "scripts/make_live_sets.py"], capture_output=True, text=True, check=True)

    assert json.loads(made.stdout) == DATA


def test_every_host_has_a_deployment_whose_three_refs_are_there() -> None:
    for name, host in DATA["hosts"].items():
        tops = {path.rpartition("/")[0] for path in host["refs"]}
        assert {f"streams/refs/cfs-tags/{top}" for top in ("deployments", "configs")} <= tops, name
        assert "images/refs/cfs-tags/deployments" in tops, name


def test_cfsctl_loses_nothing(cfsctl: Cfsctl) -> None:
    status, lines = run_kit("--", str(cfsctl.program), "--repo", "{repo}", "gc")

    assert status == 0, lines
    assert len(lines) == len(DATA["hosts"])
    assert all("exit 0" in line and "nothing lost" in line for line in lines)


@pytest.mark.parametrize(
    "command",
    [
        ["--repo", "{repo}", "gc", "--no-sysroot"],
        ["--sysroot", "{sysroot}", "gc", "--run", "{run}", "--booted", "{booted}", "--esp", "none", "--grace", "0"],
    ],
    ids=["by refs alone", "with the host"],
)
def test_ours_loses_nothing(command: list[str]) -> None:
    status, lines = run_kit("--", str(PROGRAM), *command)

    assert status == 0, lines
    assert len(lines) == len(DATA["hosts"])


def test_without_the_refs_cfsctl_loses_deployments(cfsctl: Cfsctl, tmp_path: Path) -> None:
    hosts = {name: {**host, "refs": {}} for name, host in DATA["hosts"].items()}
    (tmp_path / "data.json").write_text(json.dumps({"hosts": hosts}))

    status, lines = run_kit("--data", str(tmp_path / "data.json"), "--", str(cfsctl.program), "--repo", "{repo}", "gc")

    assert status == 1
    assert any("LOST" in line for line in lines)


def test_what_is_lost_is_named() -> None:
    status, (line,) = run_kit("--only", "a", "--", "sh", "-c", "rm -r {repo}/objects/00 {repo}/images/[0-9a-f]*; exit 3")

    assert status == 1
    assert "exit 3" in line
    assert "LOST" in line
    assert "images/" in line


@pytest.mark.parametrize("words", [["--only", "nowhere", "--", "true"], ["--", "/no/such/program"], []])
def test_wrong_usage_says_so(words: list[str]) -> None:
    status, lines = run_kit(*words)

    assert status in (1, 2)
    assert lines == []
