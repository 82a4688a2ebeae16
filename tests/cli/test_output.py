"""How things are printed: foreign text, pipes, terminals, and outputs that fail."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfs_tags.cli import output, view
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.conftest import Run

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
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
    return [sys.executable, "-m", "cfs_tags", "--repo", str(repo), *words]


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


@pytest.mark.parametrize("form", [["--jsonl"], ["--json"], ["--format", "{name} {digest} {created}"]], ids=lambda form: form[0])
def test_rows_for_programs_are_the_same_whatever_the_width(run: Run, form: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    narrow = run("list", "--long", *form, ok=True).raw
    monkeypatch.setenv("COLUMNS", "200")

    assert run("list", "--long", *form, ok=True).raw == narrow
    assert run("--width", "20", "list", "--long", *form, ok=True).raw == narrow


TABLES = [["list"], ["list", "--long"], ["log"], ["log", WEB], ["df"], ["serve", "--list"], ["trash"], ["deployments"]]
SENTENCES = re.compile(
    "not read: |    cfs-tag |localhost/bootc-…: |[0-9]+ tags?, |  --|Live: |Garbage: |[0-9a-f]{12}: |[0-9]+ of [0-9]+ have "
)


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_a_table_fits_the_terminal_but_for_words_that_are_longer(repo: Path, run: Run, words: list[str], columns: int) -> None:
    run("delete", WEB, "--keep-for", "1h", "--reason", "a reason that takes more than the room that there is", ok=True)

    for line in without_styles(on_terminal(repo, *words, columns=columns)).split("\r\n"):
        assert len(line) <= columns or " " not in line.strip() or SENTENCES.match(line), line


@pytest.mark.parametrize("columns", [20, 80])
@pytest.mark.parametrize("words", [*TABLES[:2], ["log", "--no-trunc"]], ids=" ".join)
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


def test_chains_are_lines_in_a_pipe_and_a_tree_of_names_on_a_terminal(repo: Path, run: Run, web: str) -> None:
    assert f"ref streams/refs/oci/quay.io%2Fapps%2Fweb:1 -> manifest oci-manifest-{web}" in run("why", WEB, ok=True).lines

    lines = on_terminal(repo, "why", WEB).split("\r\n")
    assert lines[0] == f"{WEB} is kept by 1 tag"


def test_a_terminal_gets_ages_sizes_natural_order_and_a_total(repo: Path, run: Run, web: str) -> None:
    for name in ("v28", "v2", "v3"):
        run("create", name, WEB, ok=True)

    heading, *rows = without_styles(on_terminal(repo, "list", columns=120)).rstrip().split("\r\n")
    assert heading.split() == ["NAME", "DIGEST", "AGE", "SIZE", "OWNER", "HOME"]
    assert [row.split()[0] for row in rows[:-2]] == ["quay.io/apps/db:2", WEB, "v2", "v3", "v28"]
    assert re.fullmatch(rf"v2 +{web[:19]} +\d+ \w+ +38\.1 KiB +app +shared *", rows[2])
    assert rows[-2:] == ["localhost/bootc-…: 3 tags of bootc's; --owner bootc lists them", "8 tags"]
    assert run("list", ok=True).lines[-3:] != rows[-5:-2], "a pipe has all names, in the order of their bytes"
    assert [line.split()[0] for line in run("list", ok=True).lines[-3:]] == ["v2", "v28", "v3"]


@pytest.mark.parametrize(
    "more", [["--long"], ["--all"], ["--owner", "bootc"], ["localhost/*"], ["--points-at", "BOOTC"]], ids=" ".join
)
def test_tags_of_bootc_are_in_one_line_unless_they_are_asked_for(repo: Path, facts: Any, more: list[str]) -> None:
    digests = [image["manifest"] for image in facts["deployments"].values()]
    shown = on_terminal(repo, "list", *(f"@{digests[0]}" if word == "BOOTC" else word for word in more))

    assert f"localhost/bootc-{digests[0]}" in shown
    assert "lists them" not in shown


def test_an_empty_list_says_so_on_a_terminal(repo: Path, run: Run) -> None:
    assert on_terminal(repo, "list", "x*", "[red]") == "no tags match 'x*' or '[red]'\r\n"
    assert on_terminal(repo, "pins", "x*") == "no pins match 'x*'\r\n"
    assert run("list", "x*", ok=True).out == "NAME  DIGEST  OWNER  HOME  NOTES\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trash"], "nothing is in the trash"),
        (["log"], "the log has no entries"),
        (["log", "--since", "yesterday"], "no entry of the log fits"),
        (["bind", "--dry-run"], "no deployment is bound to an app image"),
        (["retire", "--dry-run"], "no deployment has a ref"),
        (["serve", "--list", "--allow", "x"], "no tag is served"),
        (["good-boot", "--list"], "no boot is recorded"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_what_finds_nothing_says_so(repo: Path, run: Run, words: list[str], said: str) -> None:
    """Also in a pipe: a heading over nothing looks like an answer that was cut."""
    for link in (repo / "streams").glob("oci-manifest-*"):
        link.unlink()  # so that no deployment is adopted

    assert run(*words, ok=True).out == f"{said}\n"
    assert on_terminal(repo, *words).endswith(f"{said}\r\n")


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_colour_is_what_is_asked_for(repo: Path, run: Run, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    def words(value: str, *rest: str) -> list[str]:
        return ["--color", value, *rest] if before else [*rest, "--color", value]

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b[1mNAME" in run(*words("always", "list"), ok=True).raw
    assert "\x1b[1;31mcfs-tag:" in run(*words("always", "show", "absent")).err
    assert b"\x1b" not in run(*words("auto", "list"), ok=True).raw
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" in on_terminal(repo, *words("auto", "list"))
    assert "\x1b" not in on_terminal(repo, *words("never", "list"))
    assert b"\x1b" not in run("list", ok=True).raw, "and is forgotten afterwards"

    said = run(*words("maybe", "list"), "--json")
    assert (said.status, said.json["error"]["facts"]["argument"]) == (2, "--color")


# -- short and in full -------------------------------------------------------------------------------------------------

DIGEST = "0123456789ab" + "c" * 52
DEPLOYMENT = "0123456789ab" + "d" * 116
SHORTENED = {
    f"names sha256:{DIGEST}": "names sha256:0123456789ab",
    f"'sha256:{DIGEST}'": "'sha256:0123456789ab'",
    f"@sha256:{DIGEST}.": "@sha256:0123456789ab.",
    f"@deployment/{DEPLOYMENT}: kept": "@deployment/0123456789ab: kept",
    f"stream oci-manifest-sha256:{DIGEST}": "stream oci-manifest-sha256:0123456789ab",
    f"{DEPLOYMENT}, {DIGEST}": "0123456789ab, 0123456789ab",
    f"tag localhost/bootc-sha256:{DIGEST}": "tag localhost/bootc-sha256:0123456789ab…",
    f"/x/{DEPLOYMENT}/{DEPLOYMENT}.origin": "/x/0123456789ab…/0123456789ab….origin",
    f"objects/ab/{DEPLOYMENT[:126]}": "objects/ab/0123456789ab…",
    f"app@sha256:{DIGEST}": "app@sha256:0123456789ab…",
    f"0{DIGEST}": f"0{DIGEST}",  # neither of them
}


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("text", "said"), SHORTENED.items())
def test_digests_in_messages_are_short_on_a_terminal(text: str, said: str) -> None:
    view.forget()
    assert view.short(text, _Terminal()) == said
    assert view.short(text, io.StringIO()) == text, "a pipe has everything in full"
    typed = view.short(text, _Terminal(), typed=True)
    assert "…" not in typed, "what is copied into a command line is what a command takes"
    view.want(None, None, whole=True)
    assert view.short(text, _Terminal()) == text
    view.forget()


@pytest.mark.parametrize("words", [["list"], ["show", WEB], ["create", WEB, WEB], ["delete", WEB]], ids=" ".join)
def test_no_trunc_gives_digests_in_full(repo: Path, web: str, words: list[str]) -> None:
    assert web not in on_terminal(repo, *words, "--dry-run" if words[0] in ("create", "delete") else "--width=200")
    assert web in on_terminal(repo, *words, "--no-trunc", "--dry-run" if words[0] in ("create", "delete") else "--width=200")


def test_an_error_is_short_and_its_words_are_whole(repo: Path, run: Run, web: str) -> None:
    said = run("--color", "always", "--width", "40", "create", WEB, DB)
    lines = without_styles(said.err).splitlines()

    assert lines[-1] == "hint: --force moves it all the same"
    assert f"sha256:{web[7:19]}" in said.err
    assert web not in said.err
    assert all(len(line) <= 40 for line in lines)
    assert web in run("create", WEB, DB).err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_width_is_honoured_in_a_pipe(run: Run, web: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = run("list", WEB, ok=True).out
    if how == "environment":
        monkeypatch.setenv("COLUMNS", "50")
    lines = run(*(["--width", "50"] if how == "option" else []), "list", WEB, ok=True).out.splitlines()

    assert all(len(line) <= 50 or " " not in line for line in lines)
    assert "\x1b" not in "".join(lines)
    assert set(whole.split()) - {"NOTES"} <= set(" ".join(lines).split()), "and nothing is left out"


@pytest.mark.parametrize("width", ["0", "19", "10001", "-1"])
def test_a_width_that_is_none_is_refused(run: Run, width: str) -> None:
    said = run("--width", width, "list", "--json")

    assert (said.status, said.json["error"]["facts"]["argument"]) == (2, "--width")


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (7, "1 week"),
        (30, "30 days"),
        (90, "3 months"),
        (1, "1 day"),
        (1.5, "36 hours"),
        (365, "1 year"),
        (1 / 24, "1 hour"),
        (45, "45 days"),
    ],
)
def test_an_end_is_said_in_whole_units_that_are_near_it(days: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "on_terminal", lambda: True)
    end = datetime.fromtimestamp(time.time() + days * 86_400, UTC)

    assert output.ends(f"{end:%Y%m%dT%H%M%SZ}") == f"ends in {said}"


def test_a_listing_counts_pins_apart(repo: Path, run: Run) -> None:
    before = without_styles(on_terminal(repo, "list")).splitlines()[-1]
    run("pin", WEB, ok=True)

    assert without_styles(on_terminal(repo, "list")).splitlines()[-1] == f"{before}, 1 pin"


def test_who_lists_the_trash_is_told_how_it_is_emptied(repo: Path, run: Run) -> None:
    run("delete", WEB, "--keep-for", "7d", ok=True)

    assert " trash empty" in " ".join(without_styles(on_terminal(repo, "trash", columns=300)).split())
    assert "trash empty" not in run("trash").out


def test_who_applies_a_policy_is_told_where_the_tags_are(repo: Path, run: Run) -> None:
    run("create", "x/a:1", WEB, ok=True)
    run("create", "x/a:2", DB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text('[[rule]]\ntags = ["x/*"]\nkeep-last = 1\n')

    check = run("policy", "check", ok=True).out
    assert "no line of this rule keeps it" in check
    shown = without_styles(on_terminal(repo, "policy", "apply", columns=300))
    assert re.search(r"kept in the trash, with what they lead to \(ends in 1 week\): .*restore x/a:\d' brings the first", shown)


def test_a_collection_that_frees_nothing_names_what_else_keeps_content(repo: Path, run: Run) -> None:
    run("gc", "--no-sysroot", ok=True)
    run("pin", WEB, ok=True)

    shown = without_styles(on_terminal(repo, "gc", "--no-sysroot", columns=300))
    assert "1 pin still keeps content: 'cfs-tag" in shown
    assert "pin" not in run("gc", "--no-sysroot", ok=True).out


def test_a_terminal_shows_the_end_of_a_lease_in_words(repo: Path, run: Run) -> None:
    run("create", "lent", WEB, "--expires", "8d", ok=True)

    assert "ends in 8 days" in on_terminal(repo, "list", "lent")
    assert re.search(r"until \d{4}-\d\d-\d\dT", run("list", "lent", ok=True).out)


AGES = {
    -5: "in future",
    0: "now",
    59: "now",
    60: "1 minute",
    3 * 3600: "3 hours",
    86_400: "1 day",
    13 * 86_400: "1 week",
    40 * 86_400: "1 month",
    800 * 86_400: "2 years",
}


@pytest.mark.parametrize(("seconds", "said"), AGES.items())
def test_an_age_is_in_its_largest_unit(seconds: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    then = datetime(2024, 2, 29, 12, tzinfo=UTC)
    monkeypatch.setattr(time, "time", lambda: then.timestamp() + seconds)
    assert output.age("2024-02-29T12:00:00Z") == said
    assert output.age("2024-02-29T14:00:00+02:00") == said


@given(st.none() | st.text(max_size=30))
def test_an_age_of_anything_is_a_word_or_nothing(text: str | None) -> None:
    assert output.age(text).isprintable()


def test_no_colour_means_no_styles(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" in on_terminal(repo, "list")
    monkeypatch.setenv("NO_COLOR", "1")

    assert "\x1b" not in on_terminal(repo, "list")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The lines of a table on a terminal that has so many columns."""

    def shown(headings: tuple[str, ...], rows: list[tuple[str, ...]], columns: int) -> list[str]:
        from cfs_tags.cli import screen

        with monkeypatch.context() as patched:
            patched.setenv("COLUMNS", str(columns))
            patched.setenv("NO_COLOR", "1")
            patched.setattr(sys, "stdout", io.StringIO())
            screen.table(headings, rows)
            return [line.rstrip() for line in sys.stdout.getvalue().splitlines()]

    return shown


def test_a_remark_is_wrapped_between_words_below_its_heading(table: Callable[..., list[str]]) -> None:
    lines = table(("NAME", "NOTES"), [("a", "one two three four five six seven")], 26)

    assert lines == ["NAME  NOTES", "a     one two three four", "      five six seven"]


def test_a_remark_that_has_no_room_beside_its_row_stands_below_it(table: Callable[..., list[str]]) -> None:
    lines = table(("NAME", "NOTES"), [("a-name-of-twenty-six-letters", "one two three four five"), ("b", "")], 28)

    assert lines == ["NAME", "a-name-of-twenty-six-letters", "  NOTES one two three four", "    five", "b"]


def test_columns_that_have_no_room_make_a_record_of_each_row(table: Callable[..., list[str]]) -> None:
    lines = table(("NAME", "DIGEST", "HOME"), [("one", "2" * 13, "x"), ("a" * 22, "3", "y")], 20)

    assert lines == ["NAME   one", "DIGEST 2222222222222", "HOME   x", "", "NAME", "a" * 22, "DIGEST 3", "HOME   y"]


def test_numbers_end_below_each_other(table: Callable[..., list[str]]) -> None:
    assert table(("NAME", "TOTAL"), [("a", "1.0K"), ("b", "100.0K")], 40) == ["NAME   TOTAL", "a       1.0K", "b     100.0K"]


def test_wide_characters_take_two_columns(table: Callable[..., list[str]]) -> None:
    lines = table(("NAME", "OWNER"), [("\u6f22\u5b57", "x"), ("e\u0301", "y")], 40)

    assert lines == ["NAME  OWNER", "\u6f22\u5b57  x", "e\u0301     y"]


ANY_CELL = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=30)


@given(
    cells=st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=30), min_size=5, max_size=5
        )
    ),
    columns=st.integers(1, 130),
)
def test_every_word_of_a_table_is_shown_whole_whatever_it_is(cells: list[list[str]], columns: int) -> None:
    from cfs_tags.cli import screen

    headings = ("NAME", "DIGEST", "TOTAL", "OWNER", "NOTES")
    rows = [[printable(cell) for cell in row] for row in cells]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", str(columns))
        patched.setenv("NO_COLOR", "1")
        patched.setattr(sys, "stdout", io.StringIO())
        screen.table(headings, rows)
        shown = sys.stdout.getvalue().split()
    assert {word for row in rows for cell in row for word in cell.split()} <= {*shown, *headings}


@pytest.mark.parametrize("words", [["list"], ["why", WEB], ["df"], ["gc"], ["fsck"], ["log"], ["show", WEB]], ids=" ".join)
def test_rich_is_not_imported_in_a_pipe(repo: Path, words: list[str]) -> None:
    code = "import sys; from cfs_tags.cli.main import main; main(); sys.exit(any(m.startswith('rich') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "--repo", repo, *words], capture_output=True, cwd=ROOT, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


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


def test_an_error_keeps_its_status_when_the_pipe_is_closed(repo: Path) -> None:
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
