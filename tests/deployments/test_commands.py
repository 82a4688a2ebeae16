"""``deployments``, ``lookup``, ``migrate`` and ``retire`` as commands: text, piped text, JSON, exit status."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.sysroots import BOOTC, Host
from support.trees import tree

if TYPE_CHECKING:
    from cli.conftest import Run
    from deployments.conftest import On

ROOT = Path(__file__).parent.parent.parent


def test_piped_every_digest_is_whole_and_on_one_line(on: On, three: Host) -> None:
    said = on(three, "deployments", ok=True)

    heading, *rows = said.lines[:4]
    assert heading.split() == ["STATE", "DEPLOYMENT", "IMAGE", "VERSION", "MANIFEST", "REF", "HEALTH"]
    assert [row.split()[0] for row in rows] == ["booted", "staged", "rollback"]
    assert rows[0].split()[1:] == [
        three.id("same"),
        three.pool.images["same"].reference,
        "same",
        three.pool.images["same"].manifest,
        "none",
        "no-ref",
    ]


def test_every_finding_is_a_line_with_advice(on: On, three: Host) -> None:
    said = on(three, "deployments", ok=True)

    migrate = f"'cfs-tag --sysroot {three.root} migrate'"
    assert f"{three.id('same')[:12]}: it has no deployment ref: {migrate} makes it" in said.lines
    assert f"{three.id('old')[:12]}: its origin names no manifest: {migrate} finds it" in said.lines


@pytest.fixture
def live(three: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The machine runs from this host: its kernel, its /run, and nothing mounted."""
    from cfs_tags.formats.boot import paths
    from cfs_tags.host import mounts, sysroot

    monkeypatch.setattr(sysroot, "_same", lambda one, other: (one, other) == (str(three.root), "/sysroot"))
    monkeypatch.setattr(sysroot, "_text", lambda path: f"composefs={three.id('same')}" if path == "/proc/cmdline" else None)
    monkeypatch.setattr(mounts, "TABLE", os.devnull)
    monkeypatch.setattr(sysroot, "_efi_variable", lambda name: None)
    monkeypatch.setattr(paths, "RUN", str(three.root / "run"))
    return three


STATES = {"@booted": "same", "@rollback": "old", "@staged": "new"}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("migrated", [False, True], ids=["without refs", "with refs"])
def test_a_state_is_a_name_wherever_a_name_is_taken(call: Run, live: Host, tmp_path: Path, state: str, migrated: bool) -> None:
    def run(*words: str | Path) -> Any:
        return call("--sysroot", live.root, *words, "--json", ok=True).result

    digest, deployment = live.pool.images[STATES[state]].manifest, live.id(STATES[state])
    if migrated:
        run("migrate", "--esp", "none")
    assert run("resolve", state)["digest"] == digest
    assert run("show", state)["digest"] == digest
    assert run("create", "tag", state)["tags"][0]["new"] == digest
    assert [row["digest"] for row in run("list", "--points-at", state)][-1] == digest
    assert run("why", state)["live"]
    assert run("export", state, f"oci:{tmp_path}/out:x")["original_digest"] == digest
    assert run("lookup", state, "--esp", "none")["id"] == deployment
    assert run("create", "--deployment", state)["deployment"] == deployment
    assert run("log", state)[0]["action"] in ("migrate", "create")
    assert run("df", "--without", state, "--esp", "none")["without"] is not None
    said = call("--sysroot", live.root, "update", "--stdin", "--json", input=f"move tag {state} {digest}\n".encode(), ok=True)
    assert said.result["tags"][0]["done"] == "unchanged"


def test_a_state_that_no_deployment_has_is_not_found(call: Run, host: Host) -> None:
    said = call("--sysroot", host.root, "show", "@booted", "--json")
    assert (said.status, said.json["error"]["code"]) == (3, "target-not-found")


def test_on_a_terminal_the_table_fits(three: Host) -> None:
    leader, follower = pty.openpty()
    words = [sys.executable, "-c", "import sys; from cfs_tags.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    environment = {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "160", "LC_ALL": "C.UTF-8"}
    command = [*words, "--sysroot", str(three.root), "deployments", *three.options]
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    said = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        if not data:
            break
        said += data
    os.close(leader)

    assert process.wait() == 0
    table = said.decode().splitlines()[:4]
    assert three.id("same")[:12] in table[1]
    assert three.id("same")[:13] not in table[1]


def test_no_deployment_is_no_error(on: On, host: Host) -> None:
    assert on(host, "deployments", "--json").result["deployments"] == []
    assert on(host, "migrate", "--json").result["deployments"] == []
    assert on(host, "retire", "--json").result == {"dry_run": False, "adopted": [], "deployments": []}


def test_a_repository_without_a_sysroot_says_so(call: Run, host: Host, tmp_path: Path) -> None:
    (host.root / "state/deploy").rmdir()

    for command in (("deployments",), ("lookup", "booted"), ("migrate",), ("retire",)):
        said = call("--repo", host.repo, *command, "--json")

        assert said.status == 3
        assert said.json["error"]["code"] == "sysroot-not-found"


def test_the_sysroot_of_a_bootc_repository_is_found(call: Run, three: Host) -> None:
    said = call("--repo", three.repo, "deployments", "--json", ok=True)

    assert len(said.json["result"]["deployments"]) == 3


def test_image_only_rows_are_no_failure_and_unresolved_ones_are(on: On, three: Host) -> None:
    (three.repo / "streams" / f"oci-manifest-{three.pool.images['old'].manifest}").unlink()
    three.untag(BOOTC + three.pool.images["old"].manifest)
    said = on(three, "migrate", "--dry-run")
    assert (said.status, "image only" in said.out) == (0, True)
    (three.repo / "images" / three.id("new")).unlink()

    for words in (("--dry-run",), ("--dry-run", "--json"), ()):
        assert on(three, "migrate", *words).status == 4


def test_a_dry_run_of_migrate_says_the_same_and_changes_nothing(on: On, three: Host) -> None:
    before = tree(three.root)

    dry = on(three, "migrate", "--write-origin", "--dry-run", "--json").result
    assert tree(three.root) == before
    done = on(three, "migrate", "--write-origin", "--json").result

    assert (dry.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert dry == done


def test_a_dry_run_of_undo_says_the_same_and_changes_nothing(on: On, three: Host) -> None:
    on(three, "migrate", "--write-origin", ok=True)
    before = tree(three.root)

    dry = on(three, "migrate", "--undo", "--dry-run", "--json").result
    assert tree(three.root) == before
    done = on(three, "migrate", "--undo", "--json").result

    assert dry["undone"] == done["undone"]


def test_the_proof_is_in_the_answer(on: On, three: Host) -> None:
    """Of ``old`` and ``new`` bootc would keep the manifest only where it can match it; the refs keep all of it."""
    rows = {row["id"]: row for row in on(three, "migrate", "--json").result["deployments"]}

    for name in ("same", "new"):
        assert rows[three.id(name)]["kept_before"] == rows[three.id(name)]["kept_after"]
    old = rows[three.id("old")]
    assert old["kept_before"] < old["kept_after"]
    assert {row["lost"] for row in rows.values()} == {0}


def test_options_that_exclude_each_other_are_refused(on: On, three: Host) -> None:
    assert on(three, "migrate", "--undo", "--write-origin").status == 2
    assert on(three, "migrate", "--undo", "--manifest", "a=b").status == 2


@pytest.mark.parametrize("grace", ["-1", "soon", "5", "1y"])
def test_a_grace_that_is_no_duration_is_a_usage_error(on: On, three: Host, grace: str) -> None:
    assert on(three, "retire", f"--grace={grace}").status == 2


@pytest.mark.parametrize("word", ["abc", "f" * 128, "ab" * 70])
def test_retiring_what_has_no_ref_is_not_found(on: On, three: Host, word: str) -> None:
    assert on(three, "retire", "--dry-run", "--", word).status == 3


def test_an_empty_word_names_no_ref_not_even_the_only_one(on: On, host: Host) -> None:
    """As a script says it whose variable is not set."""
    host.deploy("same")
    on(host, "migrate", ok=True)
    host.undeploy("same")

    assert on(host, "retire", "--grace", "0", "--", "").status == 2
    assert on(host, "retire", "--grace", "0", "--", "booted").status == 2
    said = on(host, "retire", "--grace", "0", "--json", "--", f"@deployment/{host.id('same')[:8]}").result
    assert [row["result"] for row in said["deployments"]] == ["retired"]


def test_an_error_in_json_is_one_document(on: On, three: Host) -> None:
    said = on(three, "lookup", "f" * 128, "--json")

    assert (said.status, said.err) == (3, "")
    assert json.loads(said.raw)["error"]["code"] == "target-not-found"


def test_the_reason_and_the_deed_are_in_the_log(on: On, call: Run, three: Host) -> None:
    on(three, "migrate", "--reason", "refs decide from now on", ok=True)

    said = call("--repo", three.repo, "log", f"@deployment/{three.id('old')}", "--json", ok=True)

    assert "refs decide from now on" in said.out
    assert "migrate" in said.out
