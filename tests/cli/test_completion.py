"""Completion in the shell, as the shells ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import shellingham

if TYPE_CHECKING:
    from cli.conftest import Run

WEB = "quay.io/apps/web:1"
DB = "quay.io/apps/db:2"


class Shell:
    """Asks as the scripts of ``--show-completion`` do."""

    def __init__(self, call: Run, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.call = call
        self.repo = repo
        self.monkeypatch = monkeypatch

    def _ask(self, **settings: str) -> str:
        with self.monkeypatch.context() as environment:
            for name, value in settings.items():
                environment.setenv(name, value)
            environment.setenv("COMP_WORDS", settings.get("COMP_WORDS", ""))
            environment.setenv("COMP_CWORD", settings.get("COMP_CWORD", ""))
            return self.call().out

    def bash(self, *words: str) -> list[str]:
        """The words as bash cuts them, the last one incomplete."""
        every = ["cfs-tag", "--repo", str(self.repo), *words]
        answer = self._ask(_CFS_TAG_COMPLETE="complete_bash", COMP_WORDS="\n".join(every), COMP_CWORD=str(len(every) - 1))
        return answer.split()

    def zsh(self, line: str) -> str:
        return self._ask(_CFS_TAG_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=f"cfs-tag --repo {self.repo} {line}")

    def fish(self, line: str) -> list[str]:
        return self._ask(
            _CFS_TAG_COMPLETE="complete_fish",
            _TYPER_COMPLETE_ARGS=f"cfs-tag --repo {self.repo} {line}",
            _TYPER_COMPLETE_FISH_ACTION="get-args",
        ).split()


@pytest.fixture
def shell(call: Run, repo: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(call, repo, monkeypatch)


@pytest.mark.parametrize(
    "words",
    [
        ["show"],
        ["resolve"],
        ["delete"],
        ["delete", "x"],
        ["rename"],
        ["create", "new"],
        ["list"],
        ["list", "--points-at"],
        ["log"],
    ],
    ids=" ".join,
)
def test_names_of_tags_are_completed_where_a_tag_is_wanted(shell: Shell, words: list[str]) -> None:
    assert shell.bash(*words, "quay") == [DB, WEB]
    assert shell.bash(*words, "quay.io/apps/w") == [WEB]
    assert shell.bash(*words, "nothing") == []


def test_bash_gets_what_stands_behind_the_colon_where_it_cuts(shell: Shell, run: Run) -> None:
    run("create", "quay.io/apps/web:2", WEB, ok=True)

    assert shell.bash("show", "quay.io/apps/web", ":") == ["1", "2"]
    assert shell.bash("show", "quay.io/apps/web", ":", "2") == ["2"]
    assert shell.bash("delete", "quay.io/apps/web", ":", "1", "quay.io/apps/d") == [DB]
    assert shell.bash("list", "--points-at", "=", "quay.io/apps/d") == [DB]
    assert shell.bash("list", "--points-at", "=", "quay.io/apps/web", ":") == ["1", "2"]


def test_a_repository_that_bash_has_cut_is_found(shell: Shell, repo: Path) -> None:
    shell.repo = Path("/nonexistent")

    assert shell.bash("show", "quay") == []
    assert shell.bash("--repo", "=", str(repo), "show", "quay.io/apps/w") == [WEB]


def test_other_shells_get_whole_names(shell: Shell) -> None:
    assert shell.fish("show quay") == [DB, WEB]
    assert r"quay.io/apps/web\\:1" in shell.zsh("show quay")


def test_deleted_tags_are_completed_for_restore(shell: Shell, run: Run) -> None:
    run("delete", WEB, "--keep-for", "1h", ok=True)

    assert shell.bash("restore", "quay.io/apps/w") == [WEB]
    assert shell.bash("show", "quay.io/apps/w") == []
    assert shell.bash("resolve", "@trash") == []


def test_commands_and_keys_are_completed(shell: Shell) -> None:
    assert {"resolve", "rename", "restore"} <= set(shell.bash("re"))
    assert shell.bash("rena") == ["rename"]
    assert shell.bash("list", "--sort", "d") == ["digest"]


def test_names_that_a_shell_could_run_are_not_offered(shell: Shell, repo: Path, web: str) -> None:
    for name in ("q$(id)", "q;id", "q`id`", "q\nid", "q id", "q'x", 'q"x', "q|x", "q\x1b[31m", "q*", "-q", "~q", "q&", "q(x)"):
        os.symlink(f"../../oci-manifest-{web}", repo / "streams/refs/oci" / name)

    assert shell.bash("show", "q") == [DB, WEB]
    assert shell.fish("show q") == [DB, WEB]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["list", "--owner", ""], ["app", "bootc", "deployment", "pin", "foreign"]),
        (["list", "--format", "pod"], ["podman", "podman-json"]),
        (["show", WEB, "--raw", "c"], ["config"]),
        (["export", WEB, "oci:x", "--compress", ""], ["none", "gzip", "zstd"]),
        (["lookup", "b"], ["booted"]),
    ],
    ids=" ".join,
)
def test_values_are_completed(shell: Shell, words: list[str], offered: list[str]) -> None:
    assert shell.bash(*words)[: len(offered)] == offered


@pytest.mark.parametrize(
    "words", [["lookup"], ["bind"], ["retire"], ["create", "--deployment"], ["deployments", "--booted"]], ids=" ".join
)
def test_deployments_are_completed_before_they_have_refs(shell: Shell, facts: Any, words: list[str]) -> None:
    booted = facts["booted"]

    assert shell.bash(*words, booted[:5]) == [booted]


@pytest.mark.parametrize("damage", ["nothing", "file", "meta"])
def test_without_a_repository_completion_offers_and_prints_nothing(
    shell: Shell, tmp_path: Path, repo: Path, damage: str
) -> None:
    shell.repo = tmp_path / "absent"
    if damage == "file":
        shell.repo.write_text("")
    elif damage == "meta":
        (repo / "meta.json").write_text("{")
        shell.repo = repo

    assert shell.bash("show", "") == []


def test_the_environment_names_the_repository_too(shell: Shell, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFS_TAG_REPO", str(repo))
    monkeypatch.setenv("_CFS_TAG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cfs-tag\nshow\nquay")
    monkeypatch.setenv("COMP_CWORD", "2")

    assert shell.call().out.split() == [DB, WEB]


@pytest.mark.parametrize(
    ("started_by", "own", "expected"),
    [
        ("bash", "/bin/zsh", "bash"),
        ("zsh", "", "zsh"),
        ("sh", "/usr/bin/fish", "fish"),  # one that has no completion, as where a script asks
        (None, "/bin/bash", "bash"),  # as where an editor or a service asks
        (None, "", None),
        ("tcsh", "/bin/sh", None),
    ],
)
def test_the_script_is_that_of_the_shell_that_asks_or_the_users_own(
    call: Run, monkeypatch: pytest.MonkeyPatch, started_by: str | None, own: str, expected: str | None
) -> None:
    def detect() -> tuple[str, str]:
        if started_by is None:
            raise shellingham.ShellDetectionFailure
        return started_by, f"/bin/{started_by}"

    monkeypatch.setattr(shellingham, "detect_shell", detect)
    monkeypatch.setenv("SHELL", own)

    said = call("--show-completion")

    if expected is None:
        assert said.status == 2
        assert "_CFS_TAG_COMPLETE=source_bash" in said.err
    else:
        assert said.status == 0
        assert f"_CFS_TAG_COMPLETE=complete_{expected}" in said.out.replace('"', "").replace("env ", "")


def test_a_program_that_no_shell_started_prints_the_script_of_the_users_own(tmp_path: Path) -> None:
    """Its parent has ended: it is a child of the first process of the system, or of one that stands in for that."""
    told = tmp_path / "told"
    program = """if True:
        import os, sys, time
        parent = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == parent:
            time.sleep(0.01)
        os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 1)
        os.execv(sys.executable, [sys.executable, "-m", "cfs_tags", "--show-completion"])
    """
    command = [sys.executable, "-c", program, str(told)]
    subprocess.run(command, env={**os.environ, "SHELL": "/bin/bash"}, check=True, stdout=subprocess.DEVNULL)

    deadline = time.monotonic() + 20
    while not (told.exists() and told.read_text().rstrip().endswith("cfs-tag")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "complete_bash" in told.read_text()
