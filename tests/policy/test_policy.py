"""``policy`` on a recorded host: what it says is what it does, and what a deployment needs it never drops."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.policy import files
from cfs_tags.policy.retention import Counts
from cfs_tags.policy.rules import Rule, parse
from cli.conftest import Run
from support.peers import Cfsctl

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
KEEP_ONE = '[[rule]]\ntags = ["quay.io/x/*"]\nkeep-last = 1\n'


@pytest.fixture(autouse=True)
def _no_policy_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / "etc.toml"))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(KEEP_ONE)
    return path


def names(run: Run) -> set[str]:
    return {row["name"] for row in run("list", "--json").result if row["home"] != "deployment"}


def verdict(run: Run, *words: str | Path) -> dict[str, list[str]]:
    return {row["name"]: row["reasons"] for row in run("policy", "check", *words, "--json").result}


def test_what_check_drops_is_what_apply_deletes(run: Run, policy: Path, cfsctl: Cfsctl, repo: Path) -> None:
    for number in (1, 2, 10):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
    run("create", "quay.io/x/db:1", DB, ok=True)
    before = names(run)
    said = verdict(run, "--file", policy)
    dropped = {name for name, reasons in said.items() if not reasons}
    assert dropped == {"quay.io/x/app:1", "quay.io/x/app:2"}, "of images with one time the later version is the newer"

    assert run("policy", "apply", "--file", policy, "--dry-run", ok=True).out.count("would be deleted") == 2
    assert names(run) == before
    run("policy", "apply", "--file", policy, ok=True)

    assert names(run) == before - dropped
    assert {row["name"].removeprefix("@trash/") for row in run("trash", "--json").result} == dropped
    assert run("policy", "apply", "--file", policy, ok=True).out == "every tag stays\n"
    run("gc", "--no-sysroot", ok=True)
    assert cfsctl(repo, "gc").returncode == 0
    for name in dropped:
        run("restore", name, ok=True)
    assert names(run) == before
    assert run("fsck", "--content").status == 0


def test_what_stays_because_no_rule_can_be_asked_is_named(run: Run, repo: Path, tmp_path: Path, facts: Any) -> None:
    policy = tmp_path / "all.toml"
    policy.write_text('[[rule]]\ntags = ["quay.io/*"]\nkeep-last = 1\n')
    run("create", "elsewhere/app:1", WEB, ok=True)
    stream = repo / "streams" / f"oci-manifest-{facts['apps'][WEB]['manifest']}"
    object_path = stream.resolve()
    object_path.chmod(0o644)
    object_path.write_bytes(b"damaged")
    (repo / "streams/refs/oci/quay.io%2Fgone:1").symlink_to(f"../../oci-manifest-sha256:{'0' * 64}")

    verdicts = verdict(run, "--file", policy)
    said, in_json = (run("policy", "apply", "--file", policy, *words, ok=True) for words in ((), ("--json",)))

    assert (verdicts[WEB], verdicts["quay.io/gone:1"], verdicts["elsewhere/app:1"]) == (["unread"], ["broken"], ["no-rule"])
    (warning,) = in_json.json["warnings"]
    assert (warning["code"], warning["facts"]["names"]) == ("tags-unread", [WEB, "quay.io/gone:1"])
    assert said.out == "every tag stays\n"
    assert "quay.io/gone:1" in said.err
    assert WEB in said.err


def test_no_policy_drops_nothing(run: Run) -> None:
    before = names(run)

    assert run("policy", "apply", ok=True).out == "every tag stays\n"
    assert set(verdict(run)[WEB]) == {"no-rule"}
    assert names(run) == before


@pytest.mark.parametrize(
    "text", ["rule", "[[rule]]\ntags='*'\nkeep-lasst=1", "x" * ((1 << 20) + 1)], ids=["torn", "misspelt", "long"]
)
@pytest.mark.parametrize("place", ["repository", "system"])
def test_a_policy_that_cannot_be_read_drops_nothing(place: str, text: str, run: Run, repo: Path, tmp_path: Path) -> None:
    run("create", "quay.io/x/app:1", WEB, ok=True)
    path = repo / "cfs-tags/policy.toml" if place == "repository" else tmp_path / "etc.toml"
    path.write_text(text)
    (tmp_path / "etc.toml" if place == "repository" else repo / "cfs-tags/policy.toml").write_text(KEEP_ONE)
    before = names(run)

    said = run("policy", "apply")

    assert said.status != 0
    assert str(path) in said.err
    assert names(run) == before


def test_rules_of_the_repository_come_before_those_of_the_system(run: Run, repo: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
        run("create", f"quay.io/y/app:{number}", WEB, ok=True)
    (tmp_path / "etc.toml").write_text(KEEP_ONE + KEEP_ONE.replace("/x/", "/y/"))
    (repo / "cfs-tags/policy.toml").write_text(KEEP_ONE.replace("= 1", "= 2"))

    stay = {name for name, reasons in verdict(run).items() if reasons}

    assert {name for name in stay if "/x/" in name or "/y/" in name} == {
        "quay.io/x/app:2",
        "quay.io/x/app:3",
        "quay.io/y/app:3",
    }


def test_what_is_never_dropped(run: Run, call: Run, sysroot: Path, repo: Path, tmp_path: Path) -> None:
    places = ("--boot", sysroot / "boot", "--esp", "none", "--run", sysroot / "run", "--booted", "none")
    call("--sysroot", sysroot, "migrate", *places, ok=True)
    deployed = next(row["digest"] for row in run("list", "--json").result if row["owner"] == "bootc")
    run("create", "quay.io/os:1", f"@{deployed}", ok=True)
    run("create", "leased:1", DB, "--expires", "7d", ok=True)
    (repo / "streams/refs/oci/gone:1").symlink_to(f"../../oci-manifest-sha256:{'00' * 32}")
    path = tmp_path / "all.toml"
    path.write_text('[[rule]]\ntags = "*"\nkeep-tags = "nothing"\ngroup-by = "rule"\n')

    said = verdict(run, "--file", path, "--allow-empty-group")

    assert said["quay.io/os:1"] == ["deployed"]
    assert said["leased:1"] == ["lease"]
    assert said["gone:1"] == ["broken"]
    assert {tuple(reasons) for name, reasons in said.items() if name.startswith("localhost/bootc-")} == {("bootc",)}
    assert [name for name, reasons in said.items() if not reasons] == [DB, WEB]


def test_an_app_that_a_deployment_is_bound_to_stays(run: Run, repo: Path, tmp_path: Path, web: str) -> None:
    place = repo / f"streams/refs/cfs-tags/bound/{'0' * 128}"
    place.mkdir(parents=True)
    (place / "quay.io%2Fapps%2Fweb:1").symlink_to(f"../../../../oci-manifest-{web}")
    path = tmp_path / "all.toml"
    path.write_text('[[rule]]\ntags = "*"\nkeep-tags = "nothing"\ngroup-by = "rule"\n')

    assert verdict(run, "--file", path, "--allow-empty-group")[WEB] == ["bound"]


def test_a_rule_that_would_leave_nothing_of_a_group_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[rule]]\ntags = "quay.io/*"\nkeep-tags = "*:latest"\n')
    before = names(run)

    said = run("policy", "apply", "--file", path)

    assert said.status == 4
    assert "quay.io/apps/db" in said.err
    assert names(run) == before
    run("policy", "apply", "--file", path, "--allow-empty-group", ok=True)
    assert names(run) == before - {WEB, DB}


def test_a_tag_counts_from_its_last_move_where_the_rule_says_so(run: Run, tmp_path: Path) -> None:
    for name in ("quay.io/x/app:2", "quay.io/x/app:1"):
        run("create", name, WEB, ok=True)
    path = tmp_path / "p.toml"
    path.write_text(f'{KEEP_ONE}time = "logged"\n')

    rows = {row["name"]: row for row in run("policy", "check", "--file", path, "--json").result}

    assert rows["quay.io/x/app:1"]["time"] >= rows["quay.io/x/app:2"]["time"] > "2026"
    assert rows["quay.io/apps/web:1"]["reasons"] == ["no-rule"]


def test_wrong_use_is_an_error_of_usage(run: Run, tmp_path: Path) -> None:
    assert run("policy", "prune").status == 2
    assert run("policy", "check", "--file", tmp_path / "none").status == 3


def test_the_policy_to_begin_with_keeps_everything_until_its_rule_is_no_comment(run: Run) -> None:
    text = run("policy", "init", ok=True).out
    written = "\n".join(line.removeprefix("# ") if "=" in line or "[" in line else line for line in text.splitlines())

    assert parse(text.encode(), "p").rules == ()
    assert parse(written.encode(), "p").keep_for == 7 * 86400
    assert parse(written.encode(), "p").keep_log == 90 * 86400
    assert parse(written.encode(), "p").rules == (
        Rule("p", 1, ("quay.io/org/app:*",), Counts(3, daily=7, within=timedelta(days=30)), ("*:latest",), good=2),
    )


def test_a_pipe_in_the_place_of_a_policy_holds_nobody_up_and_is_not_an_empty_one(run: Run, repo: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "etc.toml", repo / "cfs-tags/policy.toml"):
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        said = run("delete", WEB)
        assert said.status != 0
        assert str(path) in said.err
        path.unlink()
    run("resolve", WEB, ok=True)
