"""``cfs-tag fsck`` and ``cfs-tag restore`` as they are typed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.cli.main import main
from fsck.damage import APP, SMALL, drop, flip, relink, stream
from support.images import Cfsctl
from support.trees import tree

GONE = "streams/refs/oci/gone"
LINK = "../../oci-manifest-sha256:" + "0" * 64


def say(repo: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["--repo", str(repo), *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def document(repo: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(say(repo, capsys, *words, "--json")[1])


def test_a_healthy_repository_is_one_line_and_success(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = say(repo, capsys, "fsck", "--content")

    assert (status, err) == (0, "")
    assert out.splitlines() == [out.strip()]
    assert out.endswith("0 errors, 0 warnings, 0 notes\n")


def test_findings_come_with_advice_and_status_6(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relink(repo / GONE, LINK)

    status, out, _ = say(repo, capsys, "fsck")

    assert status == 6
    assert out.splitlines()[0].startswith(f"error: dangling-ref: {GONE}: it leads to streams/oci-manifest-sha256:000")
    assert out.splitlines()[1].startswith("  pull the image again")


def test_notes_alone_are_success(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relink(repo / "cfs-tags/tmp/x", "nowhere")

    status, out, _ = say(repo, capsys, "fsck")

    assert status == 0
    assert out.startswith("note: left-over-file: cfs-tags/tmp/x: ")


def test_json_has_code_severity_path_message_advice_and_whether_it_was_repaired(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relink(repo / GONE, LINK)

    result = document(repo, capsys, "fsck")["result"]

    assert result["ok"] is False
    assert result["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert set(result["checked"]) == {"objects", "content", "streams", "images", "refs"}
    (found,) = result["findings"]
    assert list(found) == ["code", "severity", "path", "message", "advice", "repaired"]
    assert (found["code"], found["severity"], found["path"], found["repaired"]) == ("dangling-ref", "error", GONE, False)


def test_a_path_that_is_not_utf8_is_there_in_bytes(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import base64
    import os

    relink(repo / os.fsdecode(b"streams/refs/oci/\xff"), LINK)

    found = document(repo, capsys, "fsck")["result"]["findings"]

    assert {base64.b64decode(one["path_bytes"]) for one in found} == {b"streams/refs/oci/\xff"}


def test_foreign_text_cannot_talk_to_the_terminal(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relink(repo / "streams/refs/oci/\x1b[31m", "\x1b[2J")

    _, out, _ = say(repo, capsys, "fsck")

    assert "\x1b" not in out


def test_a_repair_is_shown_first_and_done_then(repo: Path, cfsctl: Cfsctl, capsys: pytest.CaptureFixture[str]) -> None:
    relink(repo / GONE, LINK)
    drop(repo / stream(repo, SMALL, "layer"))
    before = tree(repo)

    status, out, _ = say(repo, capsys, "fsck", "--repair", "--dry-run")

    assert status == 0
    assert tree(repo) == before
    assert f"would be taken out: {GONE} -> {LINK}" in out
    assert "would be linked: streams/oci-layer-" in out

    status, out, _ = say(repo, capsys, "fsck", "--repair", "--reason", "collector")

    assert status == 0
    assert f"taken out: {GONE} -> {LINK}" in out
    assert "repaired: dangling-ref" in out
    cfsctl(repo, "gc", "--dry-run")
    assert say(repo, capsys, "fsck")[0] == 0


def test_what_is_left_is_said_with_the_owner_to_be_named(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = "streams/refs/oci/localhost%2Fbootc-gone"
    relink(repo / path, LINK)

    status, out, _ = say(repo, capsys, "fsck", "--repair")

    assert status == 6
    assert f"left: {path}: it belongs to bootc; --owner bootc takes it out" in out
    assert say(repo, capsys, "fsck", "--repair", "--owner", "bootc")[0] == 0


def test_json_of_a_repair_says_what_was_done(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relink(repo / GONE, LINK)

    result = document(repo, capsys, "fsck", "--repair")["result"]

    assert result["ok"] is True
    assert [one["ref"] for one in result["repair"]["quarantined"]] == [GONE]
    assert result["findings"][0]["repaired"] is True


@pytest.mark.parametrize("words", [["--dry-run"], ["--owner", "bootc"], ["--reason", "x"]])
def test_options_of_a_repair_need_one(repo: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    status, _, err = say(repo, capsys, "fsck", *words)

    assert status == 2
    assert f"{words[0]} is for --repair" in err


def test_a_flipped_byte_needs_content(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(max((repo / "objects").glob("*/*"), key=lambda path: path.stat().st_size))

    assert say(repo, capsys, "fsck")[0] == 0
    status, out, _ = say(repo, capsys, "fsck", "--content")
    assert status == 6
    assert "wrong-object-digest" in out


def test_restore_puts_back_what_was_taken_out(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = "streams/refs/ostree/os"
    target = repo / stream(repo, APP, "layer", 1)
    relink(repo / path, f"../../{target.name}")
    link = drop(target)
    objects = repo / "objects" / link.split("/")[-2] / link.split("/")[-1]
    objects.rename(repo.parent / "kept")
    assert say(repo, capsys, "fsck", "--repair", "--owner", "foreign")[0] == 6
    assert not (repo / path).is_symlink()

    assert say(repo, capsys, "restore", path, "--owner", "foreign")[0] == 4
    (repo.parent / "kept").rename(objects)
    target.symlink_to(link)
    assert say(repo, capsys, "restore", path)[0] == 4
    assert say(repo, capsys, "restore", path, "--owner", "foreign", "--dry-run")[0] == 0
    status, out, _ = say(repo, capsys, "restore", path, "--owner", "foreign")

    assert (status, out) == (0, f"restored: {path} -> {target.name} ()\n".replace(" ()", ""))
    assert (repo / path).is_symlink()
    assert list((repo / "cfs-tags/quarantine").iterdir()) == []
    assert say(repo, capsys, "fsck")[0] == 0


def test_restore_of_what_was_never_there_says_so(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(repo, capsys, "restore", "streams/refs/never")[0] == 3


def test_a_bar_is_shown_on_a_terminal(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")

    assert main(["--repo", str(repo), "fsck", "--content"]) == 0
    assert "Checking" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K"), "and it is gone afterwards"
