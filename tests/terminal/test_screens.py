"""What people see on a terminal, as recorded screens: ``recorded/NAME.txt`` has a command on terminals of several sizes.

``CFS_TAGS_UPDATE_SCREENS=1`` writes the files anew: read the difference, and commit it with the change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.images import app_image
from support.terminal import Shown, show
from support.trees import copy_tree

RECORDED = Path(__file__).parent / "recorded"
SIZES = [(40, 24), (80, 24), (120, 40), (200, 50)]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?=Z)")
DISK = re.compile(r"[\d.]+ .iB of [\d.]+ .iB free")
PAGE = re.compile(r"(?<=page.html, )[\d.]+")  # as large as the library that draws it
STAMP = re.compile(r"\d{8}T\d{6}(?=Z)")
CREATED = "2026-01-01T00:00:00"  # of the recorded images

LATER = 3.5 * 24 * 3600

WEB = "quay.io/apps/web:1"
SHARED = "7e3d50334ee361e16b4c866dbecec933e7ceb62c3456d6cca083efc67a67890c"  # a layer of both app images
PLACES = ("--esp", "none", "--run", "none", "--booted", "none")
HOST = ("--sysroot", "host")

COMMANDS: dict[str, tuple[str, ...]] = {
    "status": (*HOST, "status", *PLACES),
    "status-broken": ("--sysroot", "broken", "status", *PLACES[:2], "--run", "broken/run", "--booted", "c7658ba3f073"),
    "deployments-broken": ("--sysroot", "broken", "deployments", *PLACES),
    "list": (*HOST, "list"),
    "list-long": (*HOST, "list", "--long"),
    "list-nothing": (*HOST, "list", "nothing*"),
    "show": (*HOST, "show", WEB),
    "why": (*HOST, "why", "@deployment/4b7d9f8b"),
    "why-shared": (*HOST, "why", f"sha256:{SHARED}"),
    "df": (*HOST, "df", *PLACES, "--without", WEB),
    "diff": (*HOST, "diff", WEB, "quay.io/apps/db:2"),
    "diff-stat": (*HOST, "diff", "@deployment/4b7d9f8b", WEB, "--stat"),
    "deployments": (*HOST, "deployments", *PLACES),
    "lookup": (*HOST, "lookup", "4b7d9f8b", *PLACES),
    "log": (*HOST, "log"),
    "log-of-a-tag": (*HOST, "log", "app"),
    "log-of-the-repository": (*HOST, "log", "--action", "check", "--action", "migrate", "--since", "4 days ago"),
    "migrate-dry-run": ("--sysroot", "new-host", "migrate", "--dry-run", *PLACES),
    "why-file": (*HOST, "why", WEB, "--path", "/usr/share/app-runtime"),
    "trash": (*HOST, "trash"),
    "gc-dry-run": (*HOST, "gc", "--dry-run", *PLACES),
    "fsck": (*HOST, "fsck"),
    "retire-dry-run": (*HOST, "retire", "--dry-run", *PLACES),
    "bind-dry-run": (*HOST, "bind", "--dry-run", *PLACES),
    "report": (*HOST, "report", "page.html", *PLACES),
    "policy-check": (*HOST, "policy", "check"),
    "serve-list": (*HOST, "serve", "--list"),
    "wrong-command": (*HOST, "lst"),
    "wrong-option": (*HOST, "list", "--lnog"),
    "no-such-tag": (*HOST, "show", "quay.io/apps/wbe"),
    "refused": (*HOST, "create", WEB, "quay.io/apps/db:2"),
    "help": ("--help",),
    "help-of-a-command": ("resolve", "--help"),
}


@pytest.fixture(scope="session")
def migrated(_example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``host``, a migrated host, in which a tag was made, moved, deleted with a reason, and made again;
    and with ``broken``, one that is not migrated, with two damaged origins and a tag that leads nowhere."""
    place = tmp_path_factory.mktemp("terminal")
    copy_tree(_example, place / "new-host")
    host = copy_tree(_example, place / "host")
    for words in (
        ("migrate", *PLACES),
        ("create", "app", WEB),
        ("create", "app", "quay.io/apps/db:2", "--force", "--reason", "a newer one that was asked for in the ticket"),
        ("delete", "app", "--keep-for", "90d", "--reason", "no longer needed"),
        ("create", "app", WEB, "--expires", "90d"),
        ("fsck", "--content"),
    ):
        assert show(["--sysroot", host, *words]).status == 0
    broken = copy_tree(_example, place / "broken")
    origins = sorted((broken / "state/deploy").glob("*/*.origin"))
    origins[0].write_bytes(b"\0\0\n" + origins[0].read_bytes())
    origins[1].write_bytes(bytes(100))
    os.symlink(f"../../oci-manifest-sha256:{'0' * 64}", broken / "composefs/streams/refs/oci/quay.io%2Fapps%2Fold:1")
    return place


def stable(text: str) -> str:
    """Times that are not the content of an image become noon of the same day, in as many characters."""
    text = TIME.sub(lambda found: found[0] if found[0] == CREATED else "2026-07-01T12:00:00", text)
    text = PAGE.sub("4.5", text)
    text = DISK.sub("52.5 GiB of 252.0 GiB free", text)
    return STAMP.sub("20260701T120000", text)


def framed(words: Sequence[str], shown: Shown, columns: int, lines: int, note: str = "") -> str:
    """A screen that a person can read: a rule as wide as the terminal, and a bar before each line."""
    title = f"-- {columns}x{lines}{note} "
    command = f"$ cfs-tag {' '.join(words)}"
    body = [f"|{line}".rstrip() for line in shown.text.splitlines()]
    return "\n".join([command, " " + title.ljust(columns, "-"), *body, f"exit {shown.status}", ""])


def compare(name: str, text: str) -> None:
    path = RECORDED / f"{name}.txt"
    if os.environ.get("CFS_TAGS_UPDATE_SCREENS") == "1":
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_looks_as_recorded(name: str, migrated: Path) -> None:
    words = COMMANDS[name]
    later = LATER if "log" in words else 0.0  # ages that are the same however long the tests take
    screens = [framed(words, show(words, columns=c, lines=n, cwd=migrated, stable=stable, later=later), c, n) for c, n in SIZES]

    compare(name, "\n".join(screens))


@pytest.mark.parametrize("name", ["list-long", "why", "deployments"])
def test_other_terminals_get_less_and_the_same_words(name: str, migrated: Path) -> None:
    words = COMMANDS[name]
    worlds = {
        " without colour": {"NO_COLOR": "1"},
        " dumb": {"TERM": "dumb"},
        " in the C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    }
    screens = []
    for note, env in worlds.items():
        shown = show(words, cwd=migrated, env=env, stable=stable)
        if "C" not in note:
            assert b"\x1b" not in shown.raw
        else:
            assert shown.raw.isascii()
        screens.append(framed(words, shown, 80, 24, note))

    compare(f"{name}-elsewhere", "\n".join(screens))


def test_every_recorded_screen_is_of_a_test() -> None:
    names = {*COMMANDS, *(f"{name}-elsewhere" for name in ("list-long", "why", "deployments"))}

    assert {path.stem for path in RECORDED.iterdir()} == names


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_line_of_a_table_is_wider_than_the_terminal_but_for_one_word(migrated: Path, columns: int) -> None:
    """A word that is too long stands alone in its line, so that the terminal alone breaks it."""
    for name in ("list", "list-long", "log", "deployments", "df", "trash", "serve-list", "retire-dry-run"):
        # what it says without a lack of room; days later, so that ages are the same however long the tests take
        wide = show(COMMANDS[name], columns=1000, cwd=migrated, later=LATER).text
        words = set(stable(wide).split())
        shown = show(COMMANDS[name], columns=columns, lines=200, cwd=migrated, later=LATER)
        for line in shown.raw.decode().split("\r\n"):
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip()
            if plain.startswith(("Live:", "Garbage:", "Without:", "    cfs-tag ")) or ": " in plain or "  --" in plain:
                continue  # a sentence, which a terminal breaks where it ends, or a command, which is copied
            assert len(plain) <= columns or " " not in plain.strip(), (name, plain)
            shown_words = {word for word in stable(plain).split() if set(word) - set("█░")}  # bars are as long as fits
            assert shown_words - words <= {"NAME", "NOTES", "REASON", "HEALTH", "ref"}, "words are whole"


def test_an_import_shows_how_far_it_is_and_nothing_stays(migrated: Path, tmp_path: Path) -> None:
    host = copy_tree(migrated / "host", tmp_path / "host")
    image = app_image(tmp_path / "layout", "x", size=3 << 20)
    shown = show(["--sysroot", host, "import", image.source, "quay.io/x:1"], cwd=tmp_path)

    assert shown.status == 0
    assert shown.frames
    assert all(re.fullmatch(r"Importing [━╸╺ ]+ +\d+% of 3\.\d MiB .*", frame) for frame in shown.frames), shown.frames
    assert "Importing" in "".join(shown.frames)
    assert "Importing" not in shown.text
    assert not shown.cursor_is_hidden


def test_who_deletes_into_the_trash_is_told_why_nothing_comes_free(migrated: Path, tmp_path: Path) -> None:
    host = copy_tree(migrated / "host", tmp_path / "host")

    def said(*words: str) -> list[str]:
        return show(["--sysroot", "host", *words], columns=120, cwd=host.parent).text.splitlines()

    assert said("delete", WEB, "--keep-for", "7d")[1:] == [
        f"kept in the trash, with what it leads to (ends in 1 week): 'cfs-tag --sysroot host restore {WEB}' brings it",
        "  back",
    ]
    assert said("gc", *PLACES)[-1] == "2 deleted tags in the trash still keep content: 'cfs-tag --sysroot host trash'"
    said("delete", f"@trash/{WEB}", "@trash/app")
    assert said("trash") == ["nothing is in the trash"]
    assert "trash" not in "".join(said("gc", *PLACES))
