"""Deployments that were booted successfully: how that is recorded, and what a policy makes of it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cfs_tags import Repository
from cfs_tags.errors import SystemFailure
from cfs_tags.host.good import GoodBoot, good_boots
from cfs_tags.policy import files
from cfs_tags.repo import images
from cfs_tags.values import Digest
from cli.conftest import Run

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"


@pytest.fixture(autouse=True)
def _no_policy_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / "etc.toml"))


@pytest.fixture
def on_host(call: Run, sysroot: Path) -> Run:
    """Calls the program on the host; its places stand behind the command."""

    def run(*words: str | Path, ok: bool = False, **_: Any) -> Any:
        places = ("--boot", sysroot / "boot", "--esp", "none", "--run", sysroot / "run", "--booted", "none")
        return call("--sysroot", sysroot, *words, *places, ok=ok)

    return run


@pytest.fixture
def deployments(on_host: Run) -> list[dict[str, Any]]:
    return [row for row in on_host("deployments", "--json").result["deployments"] if row["manifest"]]


def write(repo: Path, *boots: GoodBoot) -> None:
    (repo / "cfs-tags").mkdir(exist_ok=True)
    (repo / "cfs-tags/good.json").write_text(json.dumps({"boots": [boot._asdict() for boot in boots]}))


def of(number: int, manifest: str) -> Any:
    return GoodBoot(f"{number:0128x}", manifest, "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z", 1)  # type: ignore[arg-type]


def dropped(run: Run, policy: Path) -> set[str]:
    rows = run("policy", "check", "--file", policy, "--allow-empty-group", "--json").result
    return {row["name"] for row in rows if not row["reasons"]}


def test_a_good_boot_is_recorded_with_its_manifest_and_counted(
    on_host: Run, run: Run, repo: Path, deployments: list[dict[str, Any]]
) -> None:
    first, second, *_ = deployments

    assert on_host("good-boot", first["id"][:12], "--dry-run", ok=True).out.startswith("would be recorded")
    assert not (repo / "cfs-tags/good.json").exists()
    for row in (first, second, first):
        on_host("good-boot", row["id"][:12], "--reason", "boot complete", ok=True)

    newest, older = run("good-boot", "--list", "--json").result["boots"]
    assert (newest["id"], newest["manifest"], newest["boots"]) == (first["id"], first["manifest"], 2)
    assert (older["id"], older["manifest"], older["boots"]) == (second["id"], second["manifest"], 1)
    assert newest["first"] < older["last"] < newest["last"]
    said = run("log", "--action", "good-boot", "--json").result
    assert [line["facts"]["deployment"] for line in said] == [first["id"], second["id"], first["id"]]
    assert {line["reason"] for line in said} == {"boot complete"}
    assert run("fsck").status == 0
    with Repository.open(repo) as opened:
        assert [boot.id for boot in opened.deployments.good_boots()] == [second["id"], first["id"]]


def test_a_deployment_that_is_not_there_was_not_booted(on_host: Run, repo: Path) -> None:
    assert on_host("good-boot", "00" * 32).status == 3
    assert not (repo / "cfs-tags/good.json").exists()


def test_keep_good_keeps_what_was_booted_well_last(run: Run, repo: Path, tmp_path: Path, web: str, db: str) -> None:
    for name, target in (("1", WEB), ("2", DB), ("3", DB)):
        run("create", f"quay.io/os/fedora:{name}", target, ok=True)
    policy = tmp_path / "p.toml"
    rule = '[[rule]]\ntags = "quay.io/os/*"\n{}\n'

    policy.write_text(rule.format("keep-last = 1"))
    assert dropped(run, policy) == {"quay.io/os/fedora:1", "quay.io/os/fedora:2"}
    write(repo, of(1, web), of(2, f"sha256:{'00' * 32}"))
    assert dropped(run, policy) == {"quay.io/os/fedora:2"}, "the last good one that is still there stays without a word"
    policy.write_text(rule.format("keep-good = 1"))
    assert dropped(run, policy) == {"quay.io/os/fedora:2", "quay.io/os/fedora:3"}
    write(repo, of(1, db), of(2, web))
    assert dropped(run, policy) == set(), "what is never dropped counts for no rule: the one before is the first that counts"
    write(repo, of(1, web), of(2, db))
    assert dropped(run, policy) == set()


def test_the_image_that_a_deployment_still_has_is_the_last_good_one(
    on_host: Run, run: Run, repo: Path, tmp_path: Path, web: str, deployments: list[dict[str, Any]]
) -> None:
    on_host("migrate", ok=True)
    write(repo, of(1, web), of(2, deployments[0]["manifest"]))
    policy = tmp_path / "p.toml"
    policy.write_text('[[rule]]\ntags = "quay.io/*"\nkeep-tags = "nothing"\n')

    assert dropped(run, policy) == {WEB, DB}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boots": [1]}', '{"boots": [{"id": "x"}]}', "\0" * 10, "x" * (1 << 20)])
def test_a_record_that_is_damaged_has_policies_drop_nothing(text: str, run: Run, repo: Path, tmp_path: Path) -> None:
    (repo / "cfs-tags").mkdir(exist_ok=True)
    (repo / "cfs-tags/good.json").write_text(text)
    policy = tmp_path / "p.toml"
    policy.write_text('[[rule]]\ntags = "quay.io/*"\nkeep-tags = "nothing"\n')

    said = run("policy", "apply", "--file", policy, "--allow-empty-group")

    assert said.status == 6, said
    assert "good" in said.err
    assert run("resolve", WEB).status == 0


def test_a_damaged_record_begins_anew(on_host: Run, repo: Path, deployments: list[dict[str, Any]]) -> None:
    (repo / "cfs-tags").mkdir(exist_ok=True)
    (repo / "cfs-tags/good.json").write_text("torn")

    on_host("good-boot", deployments[0]["id"], ok=True)

    with Repository.open(repo) as opened:
        assert [boot.id for boot in good_boots(opened)] == [deployments[0]["id"]]


def test_programs_have_policies_too(repo: Path, tmp_path: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text('[trash]\nkeep-for = "1h"\n[[rule]]\ntags = "quay.io/x/*"\nkeep-last = 1\n')
    with Repository.open(repo, write=True) as opened:
        for number in (1, 2):
            opened.tags.create(f"quay.io/x/app:{number}", WEB)
        assert {row.tag.name for row in opened.policy.check(policy) if not row.reasons} == {"quay.io/x/app:1"}
        assert [row.name for row in opened.policy.apply(policy, dry_run=True)] == ["quay.io/x/app:1"]
        assert opened.tags.get("quay.io/x/app:1") is not None
        assert [row.done for row in opened.policy.apply(policy)] == ["deleted"]
        (kept,) = opened.tags.trash()
        assert kept.ends is not None
        assert opened.policy.apply(policy) == ()
        opened.tags.delete(WEB, keep_for=timedelta(hours=1))


def test_what_may_have_been_booted_well_and_cannot_be_read_has_policies_drop_nothing(
    run: Run, repo: Path, tmp_path: Path, web: str, deployments: list[dict[str, Any]]
) -> None:
    """The record may name the image by its deployment alone."""
    first = deployments[0]
    write(repo, GoodBoot(first["id"], None, "", "", 1))
    for name, target in (("1", f"@{first['manifest']}"), ("2", WEB)):
        run("create", f"quay.io/os/fedora:{name}", target, ok=True)
    policy = tmp_path / "p.toml"
    policy.write_text('[[rule]]\ntags = "quay.io/os/*"\nkeep-last = 1\n')
    assert dropped(run, policy) <= {"quay.io/os/fedora:2"}
    load = images.load
    come: list[Digest] = []

    def once(opened: Any, digest: Digest) -> Any:
        if digest == first["manifest"] and digest not in come:
            come.append(digest)
            raise SystemFailure(operation="read", path="streams", reason="Input/output error", errno=5)
        return load(opened, digest)

    with patch.object(images, "load", once):
        said = run("policy", "apply", "--file", policy)

    assert (said.status, come) == (1, [first["manifest"]])
