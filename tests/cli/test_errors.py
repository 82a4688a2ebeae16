"""Every error that a command can end with: its code, its exit status, and how it is said; and dry runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cfs_tags import Repository, errors
from cfs_tags.catalogue import CATALOGUE
from cfs_tags.cli import hints
from support.raising import sites
from support.trees import tree

if TYPE_CHECKING:
    from cli.conftest import Run

WEB = "quay.io/apps/web:1"
DB = "quay.io/apps/db:2"
ZEROS = "0" * 64
ROOT = Path(__file__).parent.parent.parent


# -- states of a repository that lead to an error ----------------------------------------------------------------------


def as_it_is(repo: Path) -> None:
    """Nothing is wrong with it."""


def tagged(name: str, target: str) -> Callable[[Path], None]:
    return lambda repo: os.symlink(target, repo / "streams/refs/oci" / name)


def lent(name: str) -> Callable[[Path], None]:
    """A lease whose time is over."""

    def change(repo: Path) -> None:
        directory = repo / "streams/refs/cfs-tags/leases/20200101T000000Z.0"
        directory.mkdir(parents=True)
        os.symlink(f"../../../../oci-manifest-sha256:{ZEROS}", directory / name)

    return change


def two_with_one_prefix(repo: Path) -> None:
    for digit in "12":
        (repo / f"streams/oci-manifest-sha256:aaaaaa{digit * 58}").symlink_to(f"../objects/00/{'0' * 126}")


def stream_is_a_file(repo: Path) -> None:
    (repo / f"streams/oci-manifest-sha256:{ZEROS}").write_text("")


def meta(**changes: Any) -> Callable[[Path], None]:
    def change(repo: Path) -> None:
        document = json.loads((repo / "meta.json").read_text())
        for key, value in changes.items():
            if key == "features":
                value = {**document["features"], **{name.replace("_", "-"): flags for name, flags in value.items()}}
            document[key] = value
        (repo / "meta.json").write_text(json.dumps(document))

    return change


def meta_is_no_json(repo: Path) -> None:
    (repo / "meta.json").write_text("{")


def raw_objects(repo: Path, kind: str) -> list[Path]:
    """The objects that hold the bytes of a manifest or a config."""
    key = b'"layers":' if kind == "manifest" else b'"rootfs":'
    found = [path for path in (repo / "objects").glob("*/*") if path.stat().st_size < 4096]
    return [path for path in found if path.read_bytes().startswith(b"{") and key in path.read_bytes()]


def without_configs(repo: Path) -> None:
    for path in raw_objects(repo, "config"):
        path.unlink()


def with_other_configs(repo: Path) -> None:
    for path in raw_objects(repo, "config"):
        path.write_bytes(path.read_bytes().replace(b"amd64", b"arm64"))


def with_a_logged_tag(repo: Path) -> None:
    with Repository.open(repo, write=True) as opened:
        opened.tags.create("logged", WEB)


# -- one table ---------------------------------------------------------------------------------------------------------

Case = tuple[str, int, Callable[[Path], None], list[str]]

CASES: list[Case] = [
    ("command-line", 2, as_it_is, ["create", "x"]),
    ("command-line", 2, as_it_is, ["list", "--system"]),
    ("command-line", 2, as_it_is, ["no-such-command"]),
    ("command-line", 2, as_it_is, ["list", "--no-such-option"]),
    ("command-line", 2, as_it_is, ["list", "--long=x"]),
    ("command-line", 2, as_it_is, ["--user", "list"]),
    ("command-line", 2, as_it_is, ["list", "--owner", "app", "--all"]),
    ("command-line", 2, as_it_is, ["create", "x", WEB, "--shared", "--private"]),
    ("command-line", 2, as_it_is, ["create", "x", WEB, "--private", "--expires", "1d"]),
    ("command-line", 2, as_it_is, ["update"]),
    ("command-line", 2, as_it_is, ["delete"]),
    ("invalid-argument", 2, as_it_is, ["list", "--sort", "size"]),
    ("invalid-argument", 2, as_it_is, ["list", "--owner", "me"]),
    ("invalid-argument", 2, as_it_is, ["list", "--format", "{secret}"]),
    ("invalid-argument", 2, as_it_is, ["list", "--format", "{name"]),
    ("invalid-argument", 2, as_it_is, ["list", "--format", "{name:>9999999999}"]),
    ("invalid-argument", 2, as_it_is, ["list", "--format", "{name.__class__}"]),
    ("invalid-argument", 2, as_it_is, ["show", WEB, "--raw", "layers"]),
    ("invalid-argument", 2, as_it_is, ["create", "x", WEB, "--lock-timeout", "-1"]),
    ("invalid-argument", 2, as_it_is, ["create", "x", WEB, "--lock-timeout", "nan"]),
    ("invalid-argument", 2, as_it_is, ["create", "x", WEB, "--lock-timeout", "inf"]),
    ("invalid-argument", 2, as_it_is, ["resolve", "@nothing"]),
    ("invalid-argument", 2, as_it_is, ["resolve", "@sha256:abc"]),
    ("invalid-tag-name", 2, as_it_is, ["create", "@x", WEB]),
    ("invalid-tag-name", 2, as_it_is, ["create", "a\x1bb", WEB]),
    ("invalid-tag-name", 2, as_it_is, ["create", "x" * 256, WEB]),
    ("invalid-tag-name", 2, as_it_is, ["rename", WEB, ""]),
    ("invalid-digest", 2, as_it_is, ["create", WEB, DB, "--expect", "latest"]),
    ("invalid-instruction", 2, as_it_is, ["update", "--stdin"]),
    ("ambiguous-name", 2, two_with_one_prefix, ["resolve", "@sha256:aaaaaa"]),
    ("repository-not-found", 3, as_it_is, ["--repo", "/nonexistent/composefs", "list"]),
    ("tag-not-found", 3, as_it_is, ["resolve", "absent"]),
    ("tag-not-found", 3, as_it_is, ["show", "absent"]),
    ("tag-not-found", 3, as_it_is, ["delete", "absent"]),
    ("tag-not-found", 3, as_it_is, ["rename", "absent", "x"]),
    ("tag-not-found", 3, as_it_is, ["restore", "absent"]),
    ("tag-not-found", 3, as_it_is, ["log", "absent"]),
    ("tag-not-found", 3, as_it_is, ["create", "x", "absent"]),
    ("lease-ended", 3, lent("over"), ["resolve", "over"]),
    ("lease-ended", 3, lent("over"), ["rename", "over", "x"]),
    ("target-not-found", 3, as_it_is, ["create", "x", f"@sha256:{ZEROS}"]),
    ("target-not-found", 3, as_it_is, ["resolve", f"@deployment/{ZEROS}"]),
    ("target-not-found", 3, tagged("dangling", f"../../oci-manifest-sha256:{ZEROS}"), ["show", "dangling"]),
    ("target-not-found", 3, tagged("dangling", f"../../oci-manifest-sha256:{ZEROS}"), ["resolve", "--verity", "dangling"]),
    ("reflog-entry-not-found", 3, as_it_is, ["resolve", f"{WEB}@{{7}}"]),
    ("reflog-entry-not-found", 3, as_it_is, ["restore", WEB]),
    ("pin-not-found", 3, as_it_is, ["resolve", "@pin/none"]),
    ("before-the-log", 3, with_a_logged_tag, ["resolve", "logged@{2001-01-01}"]),
    ("invalid-argument", 2, as_it_is, ["resolve", f"{WEB}@{{soon}}"]),
    ("tag-exists", 4, as_it_is, ["create", WEB, DB]),
    ("tag-exists", 4, as_it_is, ["rename", WEB, DB]),
    ("expectation-failed", 4, as_it_is, ["create", WEB, DB, "--expect", "absent"]),
    ("owner-refused", 4, as_it_is, ["create", "localhost/bootc-x", WEB]),
    ("incomplete-target", 4, without_configs, ["create", "x", WEB]),
    ("read-only-repository", 4, meta(features={"read_only_compatible": ["later"]}), ["create", "x", WEB]),
    ("malformed", 6, meta_is_no_json, ["list"]),
    ("bad-ref-link", 6, tagged("absolute", "/etc/passwd"), ["resolve", "absolute"]),
    ("bad-ref-link", 6, tagged("nested", f"oci/{WEB}"), ["create", "x", "nested"]),
    ("not-a-link", 6, stream_is_a_file, ["resolve", f"@sha256:{ZEROS}"]),
    ("missing-object", 6, without_configs, ["show", WEB]),
    ("digest-mismatch", 6, with_other_configs, ["show", WEB]),
    ("digest-mismatch", 6, with_other_configs, ["create", "x", WEB]),
    ("unsupported-version", 7, meta(version=2), ["list"]),
    ("unsupported-feature", 7, meta(features={"incompatible": ["later"]}), ["list"]),
    ("system-failure", 1, as_it_is, ["--repo", "x" * 5000, "list"]),
]

TAG_MODULES = (
    *("main", "session", "options", "output", "changes", "rows", "complete"),
    *("cmd_create", "cmd_delete", "cmd_list", "cmd_log", "cmd_rename", "cmd_resolve", "cmd_restore", "cmd_show"),
    *("cmd_trash", "cmd_update"),
)

ELSEWHERE = {
    "tag-collected": "test_log.py",
    "lock-timeout": "test_a_lock_timeout_names_the_holder",
    "interrupted": "test_an_interrupt_is_reported_without_a_traceback",
    "internal": "test_a_mistake_of_ours_is_one_line",
    "output-failed": "test_output.py",
    "transaction-abandoned": "test_a_transaction_that_was_taken_back_is_a_warning",
    "clock-ahead": "tests/policy/test_clock.py",
    "clock-set-back": "tests/policy/test_clock.py",
    "program-missing": "tests/pins/test_revive.py",
    "lock-conflict": "no command opens a repository twice",
    "name-not-pullable": "tests/apps/test_import_cli.py",
    "target-is-index": "test_a_kept_index_is_no_target_of_a_tag",
    "foreign-owner": "tests/hostile/test_owners.py",
    "open-to-others": "tests/hostile/test_owners.py",
}


def called(run: Run, call: Run, words: list[str], *more: str) -> Any:
    lines = b"frobnicate x\n"
    return (call if words[0].startswith("--") and words[0] != "--user" else run)(*words, *more, input=lines)


@pytest.mark.parametrize(
    ("code", "status", "damage", "words"), CASES, ids=[f"{code}: {' '.join(words)[:40]!r}" for code, _, _, words in CASES]
)
def test_an_error_has_its_code_status_and_two_lines(
    run: Run, call: Run, repo: Path, code: str, status: int, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(repo)

    said = called(run, call, words)
    lines = said.err.splitlines()
    assert (said.status, said.raw) == (status, b"")
    assert lines[0].startswith("cfs-tag: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2

    document = called(run, call, words, "--json")
    assert document.err == ""
    assert document.status == status
    assert document.json.keys() == {"schema", "error"}
    error = document.json["error"]
    assert error.keys() == {"code", "message", "facts", "hint"}
    assert error["code"] == code
    assert error["message"] == lines[0].removeprefix("cfs-tag: ") or "--json" in error["message"]


def test_every_error_that_the_tag_commands_can_raise_is_in_the_table() -> None:
    modules = ["values", "tags/*", "formats/*", "repo/*", *(f"cli/{name}" for name in TAG_MODULES)]
    paths = [path for pattern in modules for path in (ROOT / "cfs_tags").glob(f"{pattern}.py")]
    codes = {site.code for path in paths if path.stem not in ("erofs", "bootc") for site in sites(path)}  # not read by them

    assert codes - {code for code, *_ in CASES} - ELSEWHERE.keys() == set()


def test_the_table_has_the_exit_statuses_of_the_errors() -> None:
    known = {code: getattr(errors, entry.family).status for code, entry in CATALOGUE.items()}

    assert all(known[code] == status for code, status, *_ in CASES)
    assert ELSEWHERE.keys() <= known.keys()


@pytest.mark.parametrize(
    "words",
    [["show", WEB, "--raw", "config", "--json"], ["list", "--json", "--jsonl"], ["log", "--json", "--jsonl"]],
    ids=lambda words: words[0],
)
def test_two_kinds_of_output_exclude_each_other(run: Run, words: list[str]) -> None:
    said = run(*words)

    assert (said.status, said.json["error"]["code"]) == (2, "command-line")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json", "list"], "--json stands behind the command: cfs-tag COMMAND --json"),
    ],
    ids=lambda words: words[0],
)
def test_the_error_for_an_option_on_the_wrong_side_names_its_place(call: Run, words: list[str], said: str) -> None:
    assert call(*words, "--json").json["error"]["message"] == said


def test_the_help_of_the_command_is_named_whose_option_lacks_a_value(run: Run) -> None:
    assert run("create", "--deployment").err.endswith("hint: 'cfs-tag create --help' shows how it is written\n")


def hinted(run: Run, *words: str) -> str:
    """The hint, its commands without the words that say which repository is meant."""
    lines = run(*words).err.splitlines()
    assert len(lines) == 2
    return re.sub(r"cfs-tag --repo \S+", "cfs-tag", lines[1])


def test_a_hint_with_a_command_has_the_names_that_are_known(run: Run, repo: Path, web: str) -> None:
    """It can be typed as it is, whatever is in a name."""
    lent("over it's")(repo)
    assert hinted(run, "resolve", "over it's").endswith(
        f"""still be there: cfs-tag create 'over it'"'"'s' @sha256:{ZEROS} keeps it"""
    )
    assert hinted(run, "resolve", f"{WEB}@{{7}}") == f"hint: 'cfs-tag log {WEB}' shows the entries"
    assert f"'cfs-tag show {WEB}'" in hinted(run, "create", WEB, DB, "--expect", "absent")


@pytest.mark.parametrize("before", [("--repo", "a b"), ("--sysroot", "host"), ()], ids=["repo", "sysroot", "none"])
def test_a_command_in_a_hint_names_the_repository_as_this_one_did(
    before: tuple[str, ...], call: Run, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be typed as it stands; where the environment says which repository is meant, the hint needs no word for it."""
    monkeypatch.chdir(repo.parent.parent)
    os.symlink(repo, "a b")
    if not before:
        monkeypatch.setenv("CFS_TAG_REPO", str(repo))
    here = "".join(f"{word} " for word in map(shlex.quote, before))

    said = call(*before, "show", "nothing-like-it").err.splitlines()[1]
    list_, trash = f"cfs-tag {here}list", f"cfs-tag {here}trash"
    if "'" not in here:
        list_, trash = f"'{list_}'", f"'{trash}'"
    assert said == f"hint: {list_} shows the tags, {trash} deleted ones that are kept"
    assert call(*before, "log", "--json", "nothing-like-it").json["error"]["hint"] == said.removeprefix("hint: ")


def test_a_repository_on_a_read_only_mount_gets_the_line_for_this_command(repo: Path) -> None:
    """On a mount of its own: ``test_read_only.py``."""
    mount = next(str(place) for place in (repo, *repo.parents) if os.path.ismount(place))
    error = errors.RefusedError("read-only-repository", path=str(repo), reason="the file system is mounted read-only")

    said = hints.hint(error, ["--repo", str(repo), "create", "a b", WEB])
    assert said is not None
    _, _, line = said.partition(": ")
    words = shlex.split(line)
    assert words[:4] == ["unshare", "-m", "sh", "-c"]
    typed = ["cfs-tag", "--repo", str(repo), "create", "a b", WEB]
    assert shlex.split(words[4]) == ["mount", "-o", "remount,rw", mount, "&&", *typed], (
        "of a mount that can be written, nothing is known"
    )


def test_no_hint_is_a_template_where_the_value_is_a_fact() -> None:
    """Of the words in capitals that stand for values, those are left that nothing says."""
    open_ones = {"DIR", "ID", "GIB", "SECONDS", "OS", "ARCH", "VARIANT", "NAME", "TARGET", "EXPECTED", "EROFS", "PATTERN"}
    for code, entry in CATALOGUE.items():
        text = hints.ADVICE.get(code) or entry.way_out
        if isinstance(text, str):
            capitals = set(re.findall(r"\b[A-Z]{2,}\b", text)) - {"CFS", "UTF", "SYSROOT"}
            assert capitals <= open_ones, code
            assert "NAME" not in capitals or not {"name", "ref"} & set(entry.names) or code == "invalid-instruction", code


@pytest.mark.parametrize("words", [["rename", WEB, DB], ["create", WEB, DB]], ids=lambda words: words[0])
def test_a_hint_names_options_that_the_command_has(run: Run, words: list[str]) -> None:
    hint = run(*words).err.splitlines()[1]

    help_text = run(words[0], "--help").out
    assert all(word in help_text for word in hint.split() if word.startswith("--"))


@pytest.mark.parametrize("command", [("resolve",), ("create", "x")], ids=lambda command: command[0])
def test_a_hint_about_what_is_booted_names_no_option_of_another_command_alone(run: Run, command: tuple[str, ...]) -> None:
    """Only within a command that has it."""
    text = hinted(run, *command, "@booted")

    assert "@deployment/ID" in text
    assert "--" not in re.sub(r"'cfs-tag deployments [^']*'", "", text)


def test_the_error_for_a_missing_pin_names_similar_ones(run: Run) -> None:
    run("pin", WEB, "--name", "before-upgrade", ok=True)

    for words in (("unpin", "before-upgrde"), ("resolve", "@pin/before-upgrde")):
        assert hinted(run, *words) == "hint: there is before-upgrade"
    assert "'cfs-tag pins'" in hinted(run, "unpin", "other")


@pytest.mark.parametrize(
    ("name", "hint"), [("1f0c9e", "'cfs-tag list'"), (f"app@sha256:{ZEROS}", f"@sha256:{ZEROS}"), ("absent", "'cfs-tag list'")]
)
def test_a_name_that_is_not_there_gets_a_hint_how_it_may_be_meant(run: Run, name: str, hint: str) -> None:
    assert hint in hinted(run, "show", name)


@pytest.mark.parametrize("name", ["quay.io/apps/web", "web:1", "quay.io/app/web:1", "quay.io/apps/wbe:1"])
def test_the_error_for_a_missing_tag_names_similar_ones(run: Run, name: str) -> None:
    assert run("show", name).err.splitlines()[1].startswith(f"hint: there is {WEB}")
    assert run("show", name, "--json").json["error"]["facts"]["near"][0] == WEB


@pytest.mark.parametrize("kept", ["1h", "0"])
def test_the_error_for_a_deleted_tag_says_how_it_comes_back_and_what_it_named(run: Run, web: str, kept: str) -> None:
    run("create", "x:1", WEB, ok=True)
    run("delete", "x:1", "--keep-for", kept, ok=True)

    for words in (("show",), ("why",), ("delete",), ("create", "y:1")):
        said = run(*words, "x:1").err.splitlines()[1]
        assert "restore x:1' brings it back, and x:1@{1} is what it named" in said
    assert run("resolve", "x:1@{1}", ok=True).out.strip() == web


def test_a_word_for_a_number_is_told_in_plain_words(run: Run) -> None:
    assert "'many' is no whole number" in run("log", "--limit", "many").err


def test_a_digest_that_is_none_is_refused_with_its_line(run: Run) -> None:
    said = run("update", "--stdin", "--json", input=f"\nmove {WEB} {DB} sha256:abc\n".encode())

    assert (said.status, said.json["error"]["code"], said.json["error"]["facts"]["line"]) == (2, "invalid-instruction", 2)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("create x absent", "tag-not-found"),
        ("move absent " + WEB, "tag-not-found"),
        ("delete absent", "tag-not-found"),
        (f"create x @sha256:{ZEROS}", "target-not-found"),
        ("create x @sha256:abc", "invalid-argument"),
        (f"create {WEB} {DB}", "tag-exists"),
        (f"delete {WEB} absent", "expectation-failed"),
        (f"verify {WEB} absent", "expectation-failed"),
        (f"create localhost/bootc-x {WEB}", "owner-refused"),
        (f"create @x {WEB}", "invalid-tag-name"),
        (f"create y {WEB}", "invalid-instruction"),
        ("frobnicate x", "invalid-instruction"),
        ("create x", "invalid-instruction"),
    ],
)
def test_the_error_for_an_instruction_names_its_line(run: Run, line: str, code: str) -> None:
    text = f"# first\n\ncreate y {WEB}\n{line}\n".encode()

    error = run("update", "--stdin", "--json", input=text).json["error"]
    assert (error["code"], error["facts"]["line"]) == (code, 4)
    assert error["message"].startswith("line 4")
    assert run("update", "--stdin", input=text).err.startswith("cfs-tag: line 4")


def test_the_error_for_the_root_of_a_system_names_the_option_sysroot(call: Run, sysroot: Path) -> None:
    said = call("--repo", sysroot, "list")

    assert said.status == 3
    assert "--sysroot" in said.err.splitlines()[0]


@pytest.mark.parametrize("text", ["0", "0.5", "5s", "1m30s"])
def test_a_time_out_is_seconds_or_a_duration(run: Run, text: str) -> None:
    run("show", WEB, "--lock-timeout", text, ok=True)


@pytest.mark.parametrize("text", ["", "x", "5x", "m", "-1", "nan", "1 m"])
def test_another_time_out_is_refused_by_its_name(run: Run, text: str) -> None:
    said = run("show", WEB, "--lock-timeout", text, "--json")

    assert (said.status, said.json["error"]["facts"]["argument"]) == (2, "--lock-timeout")


# -- what a table cannot say -------------------------------------------------------------------------------------------


@contextmanager
def held(repo: Path) -> Iterator[None]:
    """The exclusive repository lock, as a collector has it."""
    fd = os.open(repo, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "words",
    [["create", "x", WEB], ["delete", WEB], ["rename", WEB, "x"], ["update", "--stdin"], ["show", WEB]],
    ids=lambda words: words[0],
)
def test_a_lock_timeout_names_the_holder(run: Run, repo: Path, words: list[str]) -> None:
    with held(repo):
        said = run(*words, "--lock-timeout", "0", "--json", input=f"delete {WEB}\n".encode())

    error = said.json["error"]
    assert (said.status, error["code"]) == (5, "lock-timeout")
    assert error["facts"]["holders"][0]["pid"] == os.getpid()
    assert error["facts"]["holders"][0]["mode"] == "exclusive"


def test_the_holder_of_a_lock_is_named_once_after_a_second(repo: Path, run: Run) -> None:
    with held(repo):
        said = run("create", "x", WEB, "--lock-timeout", "1.5")
        assert run("create", "x", WEB, "--lock-timeout", "1.5", "--json").err == ""
        assert len(run("create", "x", WEB, "--lock-timeout", "0.5").err.splitlines()) == 2

    first, *rest = said.err.splitlines()
    assert first.startswith(f"cfs-tag: waiting for the shared lock on {repo}, held by ")
    assert f"(PID {os.getpid()}, exclusive)" in first
    assert [line.partition(" ")[0] for line in rest] == ["cfs-tag:", "hint:"]


@pytest.mark.parametrize("words", [["list"], ["resolve", WEB], ["log"], ["trash"]], ids=lambda words: words[0])
def test_looking_takes_no_lock(run: Run, repo: Path, words: list[str]) -> None:
    with held(repo):
        assert run(*words).status == 0


def test_an_interrupt_is_reported_without_a_traceback(repo: Path) -> None:
    command = [sys.executable, "-m", "cfs_tags", "--repo", str(repo), "create", "x", WEB, "--json"]
    with held(repo), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        before = time.monotonic()
        while not opened(process.pid, repo) and time.monotonic() < before + 20:
            time.sleep(0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()

    assert (process.returncode, err) == (130, "")
    assert json.loads(out)["error"]["code"] == "interrupted"


def opened(pid: int, path: Path) -> bool:
    try:
        return any(os.path.samefile(link, path) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_mistake_of_ours_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfs_tags.tags import names

    def fail(*_: object) -> None:
        raise ZeroDivisionError("\x1b[31mred")

    monkeypatch.setattr(names, "resolve", fail)

    said = run("resolve", WEB)
    assert said.status == 1
    assert said.err.splitlines()[0] == "cfs-tag: internal error: ZeroDivisionError: \\x1b[31mred"
    assert "Traceback" not in said.err
    assert run("resolve", WEB, "--json").json["error"]["code"] == "internal"

    monkeypatch.setenv("CFS_TAG_DEBUG", "1")
    assert "Traceback" in run("resolve", WEB).err


def test_a_transaction_that_was_taken_back_is_a_warning(run: Run, repo: Path, web: str) -> None:
    for directory in ("journal", "tmp", "reflog"):
        (repo / "cfs-tags" / directory).mkdir(parents=True, exist_ok=True)
    change = ["streams/refs/oci/moved", f"../../oci-manifest-{web}", "../../oci-manifest-x", "move"]
    journal = {"transaction": "0011223344556677", "note": [None, None], "changes": [change]}
    (repo / "cfs-tags/journal/0011223344556677.json").write_text(json.dumps(journal))

    (warning,) = run("create", "x:1", WEB, "--json").json["warnings"]

    assert warning["code"] == "transaction-abandoned"
    assert warning["facts"]["transaction"] == "0011223344556677"


# -- dry runs ----------------------------------------------------------------------------------------------------------

WRITING = [
    ["create", "x", WEB],
    ["create", WEB, DB, "--force"],
    ["create", WEB, DB],
    ["create", "x", WEB, "--expires", "1h"],
    ["create", "x", "absent"],
    ["delete", WEB, DB],
    ["delete", WEB, "--keep-for", "1h"],
    ["delete", "absent"],
    ["delete", "absent", "--missing-ok"],
    ["rename", WEB, "x"],
    ["rename", WEB, DB],
    ["restore", WEB],
    ["restore", "absent"],
    ["update", "--stdin"],
    ["update", "--json-lines"],
]


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_a_dry_run_writes_nothing_and_ends_as_the_run_would(run: Run, repo: Path, words: list[str]) -> None:
    lines = {"--stdin": f"delete {WEB}\nmove {DB} {WEB}\n", "--json-lines": '{"verb": "delete", "name": "absent"}'}
    text = lines.get(words[-1], "").encode()
    before = tree(repo)

    with held(repo):  # nor does it take a lock
        dry = run(*words, "--dry-run", "--json", "--lock-timeout", "0", input=text)
    assert tree(repo) == before

    real = run(*words, "--json", input=text)
    assert dry.status == real.status
    if real.status == 0:
        assert dry.result["dry_run"] is True
        assert without_times(dry.result["tags"]) == without_times(real.result["tags"])
        assert len(dry.result["changes"]) == len(real.result["changes"])
    else:
        assert dry.raw == real.raw


def without_times(tags: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(tag["name"], tag["done"], tag["old"], tag["new"], tag["home"]) for tag in tags]


@pytest.mark.parametrize(
    "words", [["list", "--all", "--long"], ["show", WEB], ["resolve", WEB], ["log"], ["trash"]], ids=lambda words: words[0]
)
@pytest.mark.parametrize("damage", [as_it_is, lambda repo: (repo / "meta.json").unlink()], ids=["with-meta", "without-meta"])
def test_reading_writes_nothing(run: Run, repo: Path, words: list[str], damage: Callable[[Path], None]) -> None:
    damage(repo)
    before = tree(repo)

    assert run(*words).status == 0

    assert tree(repo) == before


def test_a_dry_run_says_what_would_be(run: Run, web: str) -> None:
    assert run("create", "x", WEB, "--dry-run", ok=True).out == f"would be created: x -> {web}\n"
    assert run("create", WEB, WEB, "--dry-run", ok=True).out == f"unchanged: {WEB} -> {web}\n"
    assert run("rename", WEB, "x", "--dry-run", ok=True).out == f"would be renamed: {WEB} -> x\n"


def test_digests_in_the_table_are_those_of_the_objects(repo: Path, web: str) -> None:
    """The helpers of the table find what they damage."""
    manifests = raw_objects(repo, "manifest")
    assert web.removeprefix("sha256:") in {hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests}
    assert len(raw_objects(repo, "config")) == len(manifests)
