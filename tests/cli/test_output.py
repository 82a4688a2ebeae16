"""How things are printed: foreign text, pipes, terminals, and outputs that fail."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cfs_tags.cli.screen import layout

if TYPE_CHECKING:
    from cli.conftest import Run

WEB = "quay.io/apps/web:1"
ROOT = Path(__file__).parent.parent.parent
EVIL = "evil\x1b]0;owned\x07\x1b[31m\n[red]x[/red]\r\u202e\x9b1m:sparkles:"
ESCAPED = "evil\\x1b]0;owned\\x07\\x1b[31m\\n[red]x[/red]\\r\\u202e\\x9b1m:sparkles:"

LISTING = [["list"], ["list", "--long"], ["list", "--format", "{name} {ref} {link} {problem}"], ["log"], ["trash"]]


@pytest.fixture
def evil(repo: Path, run: Run, web: str) -> str:
    """A tag whose name, like its reason and the links of other tags, would like to talk to the terminal."""
    os.symlink(f"../../oci-manifest-{web}", repo / "streams/refs/oci" / EVIL.replace("/", "%2F"))
    os.symlink("/\x1b[31m", repo / "streams/refs/oci/link")
    run("rename", EVIL, "x", "--reason", EVIL, ok=True)
    run("delete", "x", "--keep-for", "1h", "--reason", EVIL, ok=True)
    os.symlink(f"../../oci-manifest-{web}", repo / "streams/refs/oci" / EVIL.replace("/", "%2F"))
    return EVIL


def program(repo: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cfs_tags.cli.main", "--repo", str(repo), *words]


def on_terminal(repo: Path, *words: str, columns: int = 80) -> str:
    """What a terminal of that width gets."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        program(repo, *words),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONUTF8": "1"},
    )
    os.close(theirs)
    data = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:
            break
        if not more:
            break
        data += more
    os.close(ours)
    assert process.wait(timeout=30) == 0, data
    return data.decode()


def without_styles(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# -- foreign text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [*LISTING, ["show", EVIL]], ids=" ".join)
def test_foreign_text_is_one_escaped_line(run: Run, evil: str, words: list[str]) -> None:
    said = run(*words, ok=True)

    assert all(character == "\n" or character.isprintable() for character in said.out)
    assert "[31m" not in said.out or "\\x1b[31m" in said.out
    if words[0] in ("show", "list"):
        assert ESCAPED in said.out


@pytest.mark.parametrize("words", [["resolve", f"{EVIL}x"], ["create", EVIL, WEB], ["list", "--sort", EVIL], [EVIL]])
def test_foreign_text_in_errors_is_escaped(run: Run, words: list[str]) -> None:
    said = run(*words)

    assert said.status in (2, 3)
    assert all(character == "\n" or character.isprintable() for character in said.err)
    assert len(said.err.splitlines()) <= 2


@pytest.mark.parametrize("words", [["list"], ["list", "--long"], ["list", "--all"], ["log"], ["show", EVIL]], ids=" ".join)
def test_json_is_printable_ascii_with_the_exact_names(run: Run, evil: str, words: list[str]) -> None:
    said = run(*words, "--json")

    text = said.raw.decode("ascii")
    assert text[:-1].isprintable()
    if words[0] != "log":
        assert evil in names(said.json)
    else:
        assert evil in [entry["reason"] for entry in said.json["result"]]


def names(document: dict[str, object]) -> list[str]:
    result = document["result"]
    rows = result if isinstance(result, list) else [result]
    return [row["name"] for row in rows]


def test_json_escapes_astral_characters_as_pairs(run: Run) -> None:
    run("create", "app-\U0001f389é", WEB, ok=True)

    said = run("list", "app-*", "--json")
    assert b"app-\\ud83c\\udf89\\u00e9" in said.raw
    assert said.result[0]["name"] == "app-\U0001f389é"
    assert "name_bytes" not in said.result[0]


@pytest.mark.parametrize("words", LISTING[:2], ids=" ".join)
def test_a_terminal_gets_no_foreign_escapes_and_no_markup(repo: Path, evil: str, words: list[str]) -> None:
    text = on_terminal(repo, *words, columns=250)

    assert ESCAPED in without_styles(text)
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert "\x9b" not in text


# -- pipes and terminals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [*LISTING, ["show", WEB], ["resolve", WEB], ["--help"], ["list", "--help"]], ids=" ".join)
def test_piped_output_has_no_escape_codes(run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS"):
        monkeypatch.setenv(name, "1")

    said = run(*words, ok=True)

    assert b"\x1b" not in said.raw
    assert said.err == ""


def test_digests_are_whole_when_piped_and_short_on_a_terminal(repo: Path, run: Run, web: str) -> None:
    assert web in run("list", WEB, ok=True).out

    text = without_styles(on_terminal(repo, "list", WEB))
    assert web not in text
    assert web[:19] in text


def test_a_collection_shows_how_far_it_is_on_a_terminal_alone(repo: Path, run: Run) -> None:
    shown = on_terminal(repo, "gc")
    assert re.search(r"Collecting.* 100%", without_styles(shown)), "how much of how much"
    assert without_styles(shown).rstrip().splitlines()[-1].endswith("stay"), "and it is gone afterwards"
    assert "Collecting" not in on_terminal(repo, "gc", "--dry-run")
    assert json.loads(on_terminal(repo, "gc", "--json"))["command"] == "gc"

    piped = run("gc")
    assert "Collecting" not in piped.out + piped.err
    assert "\x1b" not in piped.out + piped.err


def test_rows_are_the_same_whatever_the_width_of_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    narrow = run("list", "--long", ok=True).raw
    monkeypatch.setenv("COLUMNS", "200")

    assert run("list", "--long", ok=True).raw == narrow


TABLES = [["list"], ["list", "--long"], ["log"], ["log", WEB], ["df"], ["serve", "--list"], ["trash"], ["deployments"]]
SENTENCES = re.compile("not read: |  --|Live: |Garbage: |[0-9a-f]{12}: |[0-9]+ of [0-9]+ have ")


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_a_table_fits_the_terminal_but_for_words_that_are_longer(repo: Path, run: Run, words: list[str], columns: int) -> None:
    run("delete", WEB, "--keep-for", "1h", "--reason", "a reason that takes more than the room that there is", ok=True)

    for line in without_styles(on_terminal(repo, *words, columns=columns)).split("\r\n"):
        assert len(line) <= columns or " " not in line.strip() or SENTENCES.match(line), line


@pytest.mark.parametrize("columns", [20, 80])
@pytest.mark.parametrize("words", TABLES[:3], ids=" ".join)
def test_every_name_stands_on_a_terminal_in_one_piece(repo: Path, run: Run, facts: Any, words: list[str], columns: int) -> None:
    names = [f"localhost/bootc-{image['manifest']}" for image in facts["deployments"].values()]
    for name in names:
        run("create", f"{name}-x", name, "--owner", "bootc", ok=True)

    shown = without_styles(on_terminal(repo, *words, columns=columns)).split()
    assert {f"{name}-x" for name in names} <= set(shown)


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_no_column_is_left_out_of_a_narrow_terminal(repo: Path, run: Run, columns: int) -> None:
    headings = {"NAME", "DIGEST", "OWNER", "HOME", "CREATED", "PLATFORM", "LAYERS"}

    assert headings <= set(without_styles(on_terminal(repo, "list", "--long", columns=columns)).split())


def test_a_deployment_is_named_on_a_terminal_as_a_command_takes_it(repo: Path, run: Run, call: Run, sysroot: Path) -> None:
    call("--sysroot", sysroot, "migrate", "--esp", "none", "--run", "none", "--booted", "none", ok=True)

    listed = without_styles(on_terminal(repo, "list", "@deployment/*"))
    name = next(word for word in listed.split() if word.startswith("@deployment/"))
    assert len(name) == len("@deployment/") + 12
    assert run("resolve", name, ok=True).out.startswith("sha256:")


def test_a_chain_is_a_line_for_each_step_on_a_terminal(repo: Path, run: Run, web: str) -> None:
    assert f"ref streams/refs/oci/quay.io%2Fapps%2Fweb:1 -> manifest oci-manifest-{web}" in run("why", WEB, ok=True).lines

    lines = on_terminal(repo, "why", WEB).split("\r\n")
    assert lines[:2] == ["ref streams/refs/oci/quay.io%2Fapps%2Fweb:1", f"  manifest oci-manifest-{web[:19]}"]


def test_no_colour_means_no_styles(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" in on_terminal(repo, "list")
    monkeypatch.setenv("NO_COLOR", "1")

    assert "\x1b" not in on_terminal(repo, "list")


def test_a_remark_is_wrapped_between_words_below_its_heading() -> None:
    lines = layout(("NAME", "NOTES"), [("a", "one two three four five six seven")], 26)

    assert lines == ["NAME  NOTES", "a     one two three four", "      five six seven"]


def test_wide_characters_take_two_columns() -> None:
    lines = layout(("NAME", "OWNER"), [("\u6f22\u5b57", "x"), ("e\u0301", "y")], 40)

    assert lines == ["NAME  OWNER", "\u6f22\u5b57  x", "e\u0301     y"]


# -- outputs that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["list"], ["show", WEB, "--raw", "manifest"], ["list", "--json"], ["--version"], ["--help"], ["list", "-h"]]
)
def test_a_full_disk_is_an_error_and_no_traceback(repo: Path, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            program(repo, *words), stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=30, check=False
        )

    assert done.returncode == 1
    assert done.stderr.startswith("cfs-tag: cannot write to standard output: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", ["list", "list --json", f"show {WEB}", f"create x {WEB}", "list --help", "resolve absent"])
def test_a_closed_output_is_an_error_and_no_traceback(repo: Path, words: str) -> None:
    command = f"{' '.join(program(repo))} {words} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=30, check=False)

    assert done.returncode == (3 if "absent" in words else 1)
    assert done.stderr.startswith("cfs-tag: ")
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_closed_input_and_errors_are_no_error(repo: Path) -> None:
    command = f"{' '.join(program(repo))} update --stdin <&- 2>&-"
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, cwd=ROOT, timeout=30, check=False)

    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["show", WEB, "--raw", "manifest"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(repo: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            program(repo, *words), stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=30, check=False
        )
    finally:
        os.close(writing)

    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_keeps_its_status_when_nobody_reads_it(repo: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = program(repo, "resolve", "absent", "--json")
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=30, check=False)
    finally:
        os.close(writing)

    assert (done.returncode, done.stderr) == (3, "")


def test_a_locale_that_cannot_show_a_name_is_no_error(repo: Path, run: Run) -> None:
    run("create", "été", WEB, ok=True)

    done = subprocess.run(
        program(repo, "list", "*t*", "--format", "{name}"),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        timeout=30,
        check=False,
    )

    assert done.returncode == 0
    assert b"\\xe9t\\xe9\n" in done.stdout
