"""Hooks: what they are told, what they can refuse, and what they cannot do however they are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.repo.transaction import hooks
from cli.conftest import Run
from support.interrupt import kill_after
from support.trees import tree

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "hooks.d"
    for name in ("pre", "post"):
        (where / name).mkdir(parents=True)
    monkeypatch.setattr(hooks, "_DIRECTORY", str(where))
    return where


def hook(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def names(run: Run) -> set[str]:
    return {row["name"] for row in run("list", "--json").result}


def test_they_are_told_what_moves(home: Path, run: Run, web: str, db: str, tmp_path: Path, repo: Path) -> None:
    for when in ("pre", "post"):
        hook(home / when / "tell", f'echo "$1" >>{tmp_path}/asked; cat >{tmp_path}/{when}.json')
    run("create", "a/b:1", WEB, ok=True)
    run("create", "a/b:1", DB, "--force", "--reason", "passed", ok=True)

    told = {when: json.loads((tmp_path / f"{when}.json").read_text()) for when in ("pre", "post")}

    assert (tmp_path / "asked").read_text().split() == ["pre", "post"] * 2
    assert told["pre"] == told["post"] | {"when": "pre"}
    assert told["post"]["moves"] == [
        {"ref": "streams/refs/oci/a%2Fb:1", "name": "a/b:1", "action": "move", "old": web, "new": db}
    ]
    assert (told["post"]["repository"], told["post"]["reason"]) == (str(repo), "passed")
    assert "cfs-tag" in told["post"]["by"]


@pytest.fixture
def db(facts: Any) -> str:
    return str(facts["apps"][DB]["manifest"])


def test_one_that_refuses_stops_the_transaction(home: Path, run: Run, repo: Path, tmp_path: Path) -> None:
    run("create", "before:1", WEB, ok=True)
    hook(home / "pre/10-no", 'echo "releases stay" >&2; exit 3')
    hook(home / "pre/20-never", f"touch {tmp_path}/called")
    hook(home / "post/tell", f"touch {tmp_path}/told")
    before = tree(repo / "streams"), tree(repo / "images")

    for words in (("create", "x:1", WEB), ("delete", WEB), ("update", "--stdin")):
        said = run(*words, "--json", input=b"delete before:1\ncreate x:1 quay.io/apps/web:1\n")
        assert said.status == 4
        error = said.json["error"]
        assert error["code"] == "hook-refused"
        assert error["facts"] == {"hook": f"{home}/pre/10-no", "reason": "exit status 3: releases stay"}

    assert (tree(repo / "streams"), tree(repo / "images")) == before
    assert not (tmp_path / "called").exists()
    assert not (tmp_path / "told").exists()
    assert run("fsck").status == 0


def test_a_collection_that_may_not_retire_collects_nothing(home: Path, call: Run, sysroot: Path, repo: Path) -> None:
    hook(home / "pre/no", "exit 1")
    objects = tree(repo / "objects")

    assert call("--sysroot", sysroot, "gc", "--esp", "none", "--run", "none", "--booted", "none").status == 4
    assert tree(repo / "objects") == objects


def test_one_that_fails_afterwards_is_a_warning(home: Path, run: Run, tmp_path: Path) -> None:
    hook(home / "post/10-bad", "echo oh; kill -9 $$")
    hook(home / "post/20-good", f"touch {tmp_path}/told")

    said = run("create", "x:1", WEB, "--json")

    assert said.status == 0
    assert [(one["code"], one["facts"]["reason"]) for one in said.json["warnings"]] == [("hook-failed", "signal 9: oh")]
    assert "x:1" in names(run)
    assert (tmp_path / "told").exists()
    assert "warning: hook " in run("delete", "x:1", ok=True).err


def test_one_that_hangs_is_killed_with_all_that_it_started(
    home: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hooks.PATIENCE, "pre", 0.5)
    hook(home / "pre/hang", f"sleep 60 & echo $! >{tmp_path}/child; wait")
    begun = time.monotonic()

    said = run("create", "x:1", WEB, "--json")

    assert time.monotonic() - begun < 5
    assert said.json["error"]["facts"]["reason"] == "it took longer than 0.5 seconds"
    assert "x:1" not in names(run)
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if not os.path.exists(f"/proc/{child}") or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the hook started is still there")


def test_what_it_leaves_running_holds_no_lock(home: Path, run: Run, tmp_path: Path) -> None:
    hook(home / "pre/leave", f"(exec </dev/null >/dev/null 2>&1; sleep 20) & echo $! >{tmp_path}/child")
    try:
        run("create", "x:1", WEB, ok=True)
        (home / "pre/leave").unlink()
        run("delete", "x:1", "--lock-timeout", "1", ok=True)
        assert run("gc", "--no-sysroot", "--lock-timeout", "1").status == 0
    finally:
        os.kill(int((tmp_path / "child").read_text()), 9)


@pytest.mark.parametrize("words", ["create x:1 TAG", "rename TAG x:1", "delete TAG", "pin TAG", "import LAYOUT new:1"])
def test_when_they_are_told_afterwards_nothing_is_locked(words: str, home: Path, run: Run, repo: Path, tmp_path: Path) -> None:
    hook(home / "post/tell", f"flock --nonblock --exclusive {repo} echo free >>{tmp_path}/told")
    run("export", DB, f"oci:{tmp_path}/layout:1", ok=True)

    run(*words.replace("TAG", WEB).replace("LAYOUT", f"oci:{tmp_path}/layout").split(), ok=True)

    assert (tmp_path / "told").read_text() == "free\n"


def test_of_what_it_says_no_more_is_kept_than_is_shown(home: Path, run: Run, tmp_path: Path) -> None:
    hook(home / "pre/long", f"readlink /proc/$$/fd/2 >{tmp_path}/told; head -c 64000000 /dev/zero | tr '\\0' x && exit 3")

    said = run("create", "x:1", WEB, "--json")

    assert said.json["error"]["facts"]["reason"] == f"exit status 3: {'x' * 1000}"
    assert (tmp_path / "told").read_text().startswith("pipe:"), "what is not read takes no memory"


@pytest.mark.parametrize("left", ["sleep 20", "yes", "exec yes 2>/dev/null >&2"])
def test_nobody_waits_for_what_it_leaves_running(left: str, home: Path, run: Run, tmp_path: Path) -> None:
    hook(home / "pre/leave", f"({left}) & echo $! >{tmp_path}/child; echo bad; exit 1")
    begun = time.monotonic()
    try:
        said = run("create", "x:1", WEB, "--json")
        assert time.monotonic() - begun < 5
        assert said.json["error"]["facts"]["reason"].startswith("exit status 1: ")
    finally:
        with suppress(ProcessLookupError):
            os.kill(int((tmp_path / "child").read_text()), 9)


def test_one_that_closes_its_output_is_waited_for(home: Path, run: Run, tmp_path: Path) -> None:
    hook(home / "pre/quiet", f"exec >&- 2>&-; sleep 0.3; touch {tmp_path}/done; exit 4")
    assert run("create", "x:1", WEB, "--json").json["error"]["facts"]["reason"] == "exit status 4"
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("next_one", [("create", "y:1", WEB), ("delete", "absent:1"), ("create", "x:1", DB, "--force")])
def test_of_what_another_command_finishes_that_one_tells_them(
    next_one: tuple[str, ...], home: Path, run: Run, web: str, db: str, repo: Path, tmp_path: Path
) -> None:
    """A command is killed at each of its changes to the disk: who moves refs, or finds them moved, tells it, once."""
    hook(home / "post/tell", f"cat >>{tmp_path}/told")
    run("create", "x:1", WEB, ok=True)
    finished = 0
    for number in range(40):
        run("create", "x:1", WEB, "--force", ok=True)
        (tmp_path / "told").unlink(missing_ok=True)
        stopped = kill_after(number, lambda: run("create", "x:1", DB, "--force", "--reason", "first"))
        run(*next_one)
        assert run("resolve", "x:1", ok=True).out.strip() in (web, db)
        lines = (tmp_path / "told").read_text().splitlines() if (tmp_path / "told").exists() else []
        told = [move for line in map(json.loads, lines) for move in line["moves"] if move["name"] == "x:1"]
        moves = [row for row in run("log", "x:1", "--json").result if row["transaction"]]
        assert len(told) <= 1
        finished += bool(told)
        if told:
            assert (told[0]["old"], told[0]["new"]) == (web, db)
            assert moves[0]["new"] == db
        if not stopped:
            break
    assert finished > 1


def test_one_may_read_the_repository(home: Path, run: Run, repo: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "cfs-tag"
    hook(home / "pre/look", f"{program} --repo {repo} resolve {WEB} >{tmp_path}/found")

    run("create", "x:1", WEB, ok=True)

    assert (tmp_path / "found").read_text().startswith("sha256:")


def test_a_great_document_to_one_that_does_not_read_it(home: Path, run: Run) -> None:
    hook(home / "pre/deaf", "exit 0")
    lines = "".join(f"create {'n' * 200}/{number}:1 {WEB}\n" for number in range(3000))

    run("update", "--stdin", input=lines.encode(), ok=True)


@pytest.mark.parametrize("open_to_others", ["pre/free", "pre", "."])
def test_one_that_others_could_have_written_is_not_run(open_to_others: str, home: Path, run: Run, tmp_path: Path) -> None:
    hook(home / "pre/free", f"touch {tmp_path}/called")
    (home / open_to_others).chmod(0o777)

    said = run("create", "x:1", WEB, "--json")

    assert said.json["error"]["code"] == "hook-refused"
    assert "others can write" in said.json["error"]["facts"]["reason"]
    assert not (tmp_path / "called").exists()


def through_a_link(home: Path, place: Path) -> Path:
    """A link to a link in the open directory to a hook that only its owner can write."""
    hook(place.parent / "real", f"touch {home.parent}/called")
    (place / "link").symlink_to(place.parent / "real")
    (home / "pre/free").symlink_to(place / "link")
    return place


def in_a_directory(home: Path, place: Path) -> Path:
    """A hook whose directory, which only its owner can write, stands in the open one."""
    (place / "below").mkdir()
    hook(place / "below/real", f"touch {home.parent}/called")
    (home / "pre/free").symlink_to(place / "below/real")
    return place


def by_way_of(home: Path, place: Path) -> Path:
    """The link goes through the open directory and out of it again."""
    hook(home.parent / "real", f"touch {home.parent}/called")
    (home / "pre/free").symlink_to(f"../../{place.name}/../real")
    return place


def above(home: Path, place: Path) -> Path:
    """The directory above all hooks is open."""
    hook(home / "pre/free", f"touch {home.parent}/called")
    return home.parent


@pytest.mark.parametrize("arrange", [through_a_link, in_a_directory, by_way_of, above])
def test_one_is_not_run_where_others_could_have_chosen_what_stands_there(
    arrange: Callable[[Path, Path], Path], home: Path, run: Run, tmp_path: Path
) -> None:
    place = tmp_path / "open"
    place.mkdir()
    arrange(home, place).chmod(0o777)

    said = run("create", "x:1", WEB, "--json")

    assert said.json["error"]["code"] == "hook-refused"
    assert "others can write" in said.json["error"]["facts"]["reason"]
    assert not (tmp_path / "called").exists()


def test_links_by_a_safe_way_are_run_and_those_to_nothing_refuse(home: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    hook(tmp_path / "programs/real", f"touch {tmp_path}/called")
    (tmp_path / "programs/link").symlink_to("./real")
    (home / "pre/10").symlink_to("../../programs/link")
    run("create", "x:1", WEB, ok=True)
    assert (tmp_path / "called").exists()

    for target in ("absent", "20"):
        (home / "pre/20").symlink_to(target)
        assert run("create", "y:1", WEB, "--json").json["error"]["code"] == "hook-refused"
        (home / "pre/20").unlink()


def test_leases_have_their_names(home: Path, run: Run, tmp_path: Path) -> None:
    hook(home / "post/tell", f"cat >>{tmp_path}/told")
    run("create", "a/leased:1", WEB, "--expires", "1d", ok=True)
    run("delete", "a/leased:1", ok=True)
    run("create", "a/leased:2", WEB, "--expires", "1s", ok=True)
    time.sleep(2.1)
    run("gc", "--no-sysroot", ok=True)

    told = [json.loads(line)["moves"] for line in (tmp_path / "told").read_text().splitlines()]

    assert [(move["name"], move["action"]) for (move,) in told] == [
        ("a/leased:1", "create"),
        ("a/leased:1", "delete"),
        ("a/leased:2", "create"),
        ("a/leased:2", "expire"),
    ]


def test_the_example_of_the_docs_protects_tags_and_leases(home: Path, run: Run) -> None:
    page = (Path(__file__).parents[2] / "docs/unattended.md").read_text()
    example = page.partition("```sh\n#!/bin/sh\n")[2].partition("```")[0]
    names_of_releases = [f"quay.io/org/app:release-{number}" for number in range(3)]
    run("create", names_of_releases[0], WEB, ok=True)
    run("create", names_of_releases[1], WEB, "--expires", "1d", ok=True)
    run("create", names_of_releases[2], WEB, "--expires", "1s", ok=True)
    run("create", "quay.io/org/app:other", WEB, "--expires", "1d", ok=True)
    hook(home / "pre/protect", example)

    for name in names_of_releases[:2]:
        for words in (("delete", name), ("rename", name, "away:1")):
            said = run(*words, "--json")
            assert said.json["error"]["facts"]["reason"] == "exit status 1: releases stay"
    run("create", names_of_releases[1], WEB, "--expires", "2d", "--force", ok=True)
    run("delete", "quay.io/org/app:other", ok=True)
    time.sleep(2.1)
    run("gc", "--no-sysroot", ok=True)
    assert names(run) >= set(names_of_releases[:2])
    assert names_of_releases[2] not in names(run), "its end came, and nobody deleted it"


def test_a_guard_that_may_not_be_executed_refuses(home: Path, run: Run) -> None:
    hook(home / "pre/guard", "exit 0").chmod(0o644)
    error = run("create", "x:1", WEB, "--json").json["error"]
    assert (error["code"], error["facts"]["hook"]) == ("hook-refused", f"{home}/pre/guard")
    assert "not executable" in error["facts"]["reason"]

    (home / "pre/guard").rename(home / "post/tell")
    said = run("create", "x:1", WEB, "--json")
    assert said.status == 0
    assert [one["code"] for one in said.json["warnings"]] == ["hook-failed"]


@pytest.mark.parametrize("made", ["a program", "a pipe", "a link to nothing", "a link to itself"])
@pytest.mark.parametrize("when", ["pre", "post", ""])
def test_where_a_directory_of_guards_should_be_something_else_refuses(when: str, made: str, home: Path, run: Run) -> None:
    place = home / when
    for path in (home / "pre", home / "post") if not when else (place,):
        path.rmdir()
    if not when:
        home.rmdir()
    match made:
        case "a program":
            hook(place, "exit 1")
        case "a pipe":
            os.mkfifo(place)
        case "a link to nothing":
            place.symlink_to("absent")
        case _:
            place.symlink_to(place.name)

    said = run("create", "x:1", WEB, "--json")
    if when == "post":
        assert said.status == 0
        assert [one["code"] for one in said.json["warnings"]] == ["hook-failed"]
    else:
        assert said.json["error"]["code"] == "hook-refused"
        assert str(home) in said.json["error"]["facts"]["hook"]


def test_the_path_of_the_repository_is_whole(
    home: Path, call: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook(home / "post/tell", f"cat >{tmp_path}/told")
    monkeypatch.chdir(repo.parent)

    call("--repo", repo.name, "create", "x:1", WEB, ok=True)

    assert json.loads((tmp_path / "told").read_text())["repository"] == str(repo)


def test_what_is_no_file_is_left_alone_and_a_program_that_cannot_run_refuses(home: Path, run: Run) -> None:
    (home / "pre/folder").mkdir()
    run("create", "x:1", WEB, ok=True)

    hook(home / "pre/bad", "").write_text("#!/no/such/interpreter\n")
    assert run("create", "x:2", WEB, "--json").json["error"]["code"] == "hook-refused"


def test_a_dry_run_and_what_changes_nothing_call_none(home: Path, run: Run, tmp_path: Path) -> None:
    run("create", "x:1", WEB, ok=True)
    hook(home / "pre/called", f"touch {tmp_path}/called")

    run("delete", "x:1", "--dry-run", ok=True)
    run("create", "x:1", WEB, ok=True)

    assert not (tmp_path / "called").exists()


@ROOT_ONLY
def test_in_another_users_repository_none_runs_as_root(repo: Path, tmp_path: Path, sysroot: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    subprocess.run(["chown", "-R", "65534:65534", repo], check=True)
    where = tmp_path / "hooks.d/pre"
    where.mkdir(parents=True)
    seen = tmp_path / "seen"
    seen.mkdir(mode=0o777)
    seen.chmod(0o777)
    hook(where / "who", f"id -u >{seen}/id; grep Cap /proc/self/status >{seen}/caps")
    program = (
        "import sys; from cfs_tags.repo.transaction import hooks; hooks._DIRECTORY = sys.argv[1];"
        "from cfs_tags.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    words = [sys.executable, "-c", program, tmp_path / "hooks.d", "--repo", repo, "create", "x:1", WEB]

    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert (seen / "id").read_text() == "65534\n"
    assert not any(int(line.split()[1], 16) for line in (seen / "caps").read_text().splitlines() if "Bnd" not in line)


# -- the journal -------------------------------------------------------------------------------------------------------


def test_what_goes_to_the_journal_is_one_object_a_line(home: Path, run: Run) -> None:
    hook(home / "post/bad", "echo 'two\nlines'; exit 1")
    wrong = run("--log-format", "json", "delete", "absent")
    warned = run("create", "x:1", WEB, "--log-format", "json")

    (error,) = map(json.loads, wrong.err.splitlines())
    assert (wrong.status, error["level"], error["code"], error["facts"]["name"]) == (3, "error", "tag-not-found", "absent")
    (warning,) = map(json.loads, warned.err.splitlines())
    assert (warning["level"], warning["code"]) == ("warning", "hook-failed")
    assert warning["schema"] == 1
    assert warning["time"].endswith("Z")
    assert run("--log-format", "xml", "list").status == 2
    assert run("--log-format", "text", "delete", "absent").err.startswith("cfs-tag: ")


@pytest.mark.parametrize("link", ["etc", "etc/hooks.d", "etc/hooks.d/pre"])
def test_a_guard_behind_a_link_that_leads_nowhere_is_not_absent(
    link: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "_DIRECTORY", str(tmp_path / "etc/hooks.d"))
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to("/nowhere")

    said = run("create", "x:1", WEB, "--json")

    assert (said.status, said.json["error"]["code"]) == (4, "hook-refused")
