"""Journals and logs that this program did not write: set aside or passed over, named by fsck, in the way of no command."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

from support.stock import leftovers
from support.trees import tree

if TYPE_CHECKING:
    from cli.conftest import Run

WEB = "quay.io/apps/web:1"
ID = "ab" * 8
HALF = "\ud800"
LINK = "../../oci-manifest-sha256:" + "a" * 64
COMMANDS = (
    ["create", "new", WEB],
    ["log"],
    ["log", "new"],
    ["create", "new", WEB, "--force", "--reason", "again"],
    ["delete", "new", "--keep-for", "1h"],
    ["restore", "new"],
    ["gc", "--no-sysroot"],
    ["list"],
)


def journal(*changes: Any, **more: Any) -> bytes:
    document = {"transaction": ID, "note": [None, None], "changes": [list(change) for change in changes], **more}
    return json.dumps(document).encode()


def made(path: str, new: Any = LINK, old: Any = None, action: Any = "create") -> tuple[Any, ...]:
    return path, old, new, action


JOURNALS: dict[str, bytes] = {
    "half a character in a path": journal(made(f"streams/refs/oci/{HALF}")),
    "half a character in a link": journal(made("streams/refs/oci/x", HALF)),
    "half a character in an old link": journal(made("streams/refs/oci/x", None, HALF, "delete")),
    "half a character in an action": journal(made("streams/refs/oci/x", action=HALF)),
    "half a character in a reason": json.dumps(
        {"transaction": ID, "note": [HALF, None], "changes": [made("streams/refs/oci/x")]}
    ).encode(),
    "3,000 folders": journal(made("streams/refs/" + "d/" * 3000 + "x")),
    "a name of 300 bytes": journal(made("streams/refs/oci/" + "n" * 300)),
    "a name of 200 characters and 400 bytes": journal(made("streams/refs/oci/" + "é" * 200)),
    "a link of 5,000 bytes": journal(made("streams/refs/oci/x", "x" * 5000)),
    "a NUL in a link": journal(made("streams/refs/oci/x", "a\0b")),
    "a path through a tag": journal(made("streams/refs/oci/quay.io%2Fapps%2Fweb:1/x")),
    "a path through a tag, with an old value": journal(made("streams/refs/oci/quay.io%2Fapps%2Fweb:1/x", None, LINK)),
    "a number for a path": journal((1, None, LINK, "create")),
    "too few members of a change": journal(("streams/refs/oci/x",)),
    "links that do not fit": journal(made("streams/refs/oci/x"), links=[[1, 2], [3, 4]]),
    "links that are no numbers": journal(made("streams/refs/oci/x", None, LINK), links=[["a", {}]]),
    "a number of a link that no number can be": journal(made("streams/refs/oci/x", None, LINK), links=[[1e400, 0]]),
    "rows that are no texts": journal(made("streams/refs/oci/x"), command="x", rows=[[1, [2], {}]]),
    "a command that is a list": journal(made("streams/refs/oci/x"), command=["x"]),
    "another transaction": journal(made("streams/refs/oci/x"), transaction="cd" * 8),
    "a transaction that leads away": journal(made("streams/refs/oci/x"), transaction="../x"),
    "no changes at all": b'{"transaction":"abababababababab","note":[null,null]}',
    "a number": b"17",
    "3,000 lists": b"[" * 3000 + b"]" * 3000,
    "a number of a million digits": b"9" * 1_000_000,
    "bytes that are no text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("suffix", ["json", "back"])
@pytest.mark.parametrize("what", JOURNALS)
def test_a_forged_journal_stops_no_command_and_changes_nothing(what: str, suffix: str, repo: Path, run: Run) -> None:
    run("create", "first", WEB, ok=True)
    run("gc", "--no-sysroot", ok=True)
    before = {path: node for path, node in tree(repo, ["cfs-tags"]).items() if node.kind != "dir"}
    path = repo / f"cfs-tags/journal/{ID}.{suffix}"
    path.write_bytes(JOURNALS[what])
    said = run("fsck", "--json")
    assert f"cfs-tags/journal/{ID}.{suffix}" in {one["path"] for one in said.json["result"]["findings"]}

    for words in COMMANDS:
        run(*words, ok=True)
    run("delete", "new", ok=True)

    assert leftovers(repo) == []
    assert {path: node for path, node in tree(repo, ["cfs-tags"]).items() if node.kind != "dir"} == before
    kept = os.listdir(repo / "cfs-tags/quarantine") if (repo / "cfs-tags/quarantine").is_dir() else []
    found = {one["path"] for one in run("fsck", "--json").json["result"]["findings"]}
    assert {f"cfs-tags/quarantine/{name}" for name in kept} <= found


@pytest.mark.parametrize("directory", ["journal", "reflog"])
@pytest.mark.parametrize("kind", ["pipe", "link", "sparse", "socket"])
def test_what_is_no_file_holds_nothing_up(kind: str, directory: str, repo: Path, run: Run) -> None:
    run("create", "first", WEB, ok=True)
    name = f"{ID}.json" if directory == "journal" else f"{crc32(b'streams/refs/oci/new') & 0xFF:02x}"
    path = repo / "cfs-tags" / directory / name
    path.unlink(missing_ok=True)
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to("/etc/passwd"),
        "sparse": lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 38),
        "socket": lambda: os.mknod(path, 0o140644),
    }
    make[kind]()
    passwd = Path("/etc/passwd").read_bytes()

    for words in COMMANDS:
        run(*words, ok=True)

    assert Path("/etc/passwd").read_bytes() == passwd
    assert leftovers(repo) == []
    found = " ".join(one["path"] + one["message"] for one in run("fsck", "--json").json["result"]["findings"])
    assert name in found or not os.path.lexists(path)


# -- the log -----------------------------------------------------------------------------------------------------------


def line(**facts: Any) -> bytes:
    entry = {
        "ref": "streams/refs/oci/new",
        "old": None,
        "new": LINK,
        "action": "create",
        "time": "2026-01-01T00:00:00.000000Z",
        "transaction": "1",
        **facts,
    }
    body = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(body), body)


LINES: dict[str, bytes] = {
    "no time": line(time=None),
    "no action": line(action=None),
    "no transaction": line(transaction=None),
    "no ref": line(ref=None),
    "a number for a time": line(time=17),
    "half a character in a ref": line(ref=f"streams/refs/oci/{HALF}"),
    "half a character in a link": line(new=HALF),
    "half a character in a reason": line(reason=HALF),
    "half a character in a lease": line(ref=f"streams/refs/cfs-tags/leases/{HALF}/new"),
    "a NUL in a lease": line(ref="streams/refs/cfs-tags/leases/a\0b/new"),
    "a NUL in a link": line(new="a\0b", old="c\0d"),
    "a link of 5,000 bytes": line(new="x" * 5000),
    "3,000 folders": line(ref="streams/refs/cfs-tags/leases/" + "d/" * 3000 + "new"),
    "a name of 300 bytes": line(ref="streams/refs/oci/" + "n" * 300),
    "a ref outside": line(ref="../../outside"),
    "more than there is": line(more=1),
    "3,000 lists": b"%08x %s\n" % (crc32(b"[" * 3000 + b"]" * 3000), b"[" * 3000 + b"]" * 3000),
}


@pytest.mark.parametrize("what", LINES)
def test_a_forged_line_is_passed_over_and_counted(what: str, repo: Path, run: Run) -> None:
    run("create", "first", WEB, ok=True)
    path = repo / f"cfs-tags/reflog/{crc32(b'streams/refs/oci/new') & 0xFF:02x}"
    with path.open("ab") as log:
        log.write(LINES[what])

    for words in COMMANDS:
        run(*words, ok=True)

    found = [one["message"] for one in run("fsck", "--json").json["result"]["findings"] if one["code"] == "damaged-reflog"]
    # a ref may stand deeper than any path may be
    assert found == ([] if what == "3,000 folders" else [f"1 lines cannot be read: {path.name}"])


def test_holes_of_a_log_are_not_read(repo: Path, run: Run) -> None:
    """64 GiB that take no disk: neither memory nor time, and what is written between holes is read."""
    run("create", "new", WEB, ok=True)
    for number in range(256):
        with (repo / f"cfs-tags/reflog/{number:02x}").open("ab") as log:
            log.truncate(log.tell() + (255 << 20))
    run("create", "new", WEB, "--private", "--force", ok=True)
    tracemalloc.start()

    said = run("log", "new")
    rows = run("log")

    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert said.status == rows.status == 0
    assert "create" in said.out
    assert run("fsck", "--json").status in (0, 6)
    run("delete", "new", ok=True)
    assert "delete" in run("log", "new").out


def test_a_log_that_is_larger_than_any_is_set_aside_and_a_new_one_begun(
    repo: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfs_tags.repo import reflog

    monkeypatch.setattr(reflog, "_MAX_FILE", 1 << 20)
    run("create", "new", WEB, ok=True)
    path = repo / f"cfs-tags/reflog/{crc32(b'streams/refs/oci/new') & 0xFF:02x}"
    path.write_bytes(path.read_bytes() + b"x" * (2 << 20))

    run("delete", "new", ok=True)

    assert "delete" in run("log", "new").out
    assert path.stat().st_size < 1 << 20
    assert any(name.startswith(f"reflog-{path.name}") for name in os.listdir(repo / "cfs-tags/quarantine"))
