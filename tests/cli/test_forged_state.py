"""Files in ``cfs-tags/`` that this program did not write, or not whole: fsck names them, and they stop no command.

A user who may write to the repository may put anything there, and a disk may give back anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli.conftest import Run

COMMANDS = (
    ["list"],
    ["create", "new", "quay.io/apps/web:1"],
    ["log"],
    ["delete", "new"],
    ["gc", "--dry-run", "--no-sysroot"],
    ["restore", "new"],
)
DEEP = b"[" * 3_000 + b"]" * 3_000
HALF = "\ud800"
LONG = "x" * 300


def quarantine_record(ref: str, link: str = "../../oci-manifest-sha256:" + "a" * 64) -> tuple[str, bytes]:
    name = hashlib.sha256(f"{ref}\0{link}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    facts = {"ref": ref, "link": link, "time": "2026-01-01T00:00:00Z", "reason": "?"}
    return f"quarantine/{name}.json", json.dumps(facts).encode()


FORGED: dict[str, tuple[str, bytes]] = {
    "a record with half a character": quarantine_record(f"streams/refs/oci/{HALF}"),
    "a record whose link has half a character": quarantine_record("streams/refs/oci/x", HALF),
    "a record with a name that is too long": quarantine_record(f"streams/refs/oci/{LONG}"),
    "a record that leads outside": quarantine_record("streams/refs/../../../../outside"),
    "a record that is a number": ("quarantine/1.json", b"1"),
    "a record of 3,000 lists": ("quarantine/deep.json", DEEP),
    "a record of not a number": ("quarantine/nan.json", b'{"ref": NaN}'),
    "times that are a list": ("seen.json", b"[]"),
    "times of 3,000 lists": ("seen.json", DEEP),
    "times of a million digits": ("seen.json", b'{"a": ' + b"9" * 1_000_000 + b"}"),
    "times that are no text": ("seen.json", b"\xff\xfe{}"),
    "good boots of 3,000 lists": ("good.json", DEEP),
    "good boots that are no text": ("good.json", b"\xff"),
    "good boots of other fields": ("good.json", b'{"boots": [{"id": 1}]}'),
    "good boots of no list": ("good.json", b"{}"),
    "times that are text": ("seen.json", b'{"a": "b"}'),
    "what was maintained, without an end": ("maintain.json", b'{"mark": "'),
    "what was maintained of not a number": ("maintain.json", b'{"marked": NaN}'),
    "a file in the place of the pins": ("pins", b"text"),
    "a migration of 3,000 lists": ("undo/migration.json", DEEP),
    "an empty migration": ("undo/migration.json", b""),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_stops_no_command_and_fsck_names_what_is_wrong(what: str, repo: Path, run: Run) -> None:
    name, data = FORGED[what]
    path = repo / "cfs-tags" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

    for words in (
        ["list"],
        ["create", "new", "quay.io/apps/web:1"],
        ["log"],
        ["delete", "new"],
        ["gc", "--dry-run", "--no-sysroot"],
        ["gc", "--no-sysroot"],
        ["create", "new", "quay.io/apps/web:1"],
    ):
        run(*words, ok=True)
    said = run("fsck", "--json")

    found = {(one["code"], one["path"]) for one in said.json["result"]["findings"]}
    assert ("damaged-state", f"cfs-tags/{name}") in found
    run("maintain", "--no-sysroot", ok=True)


def test_a_directory_for_the_record_of_a_pin_goes_with_the_pin(repo: Path, run: Run) -> None:
    run("pin", "quay.io/apps/web:1", ok=True)
    (record,) = (repo / "cfs-tags/pins").glob("*/pin.json")
    record.unlink()
    (record / "below").mkdir(parents=True)
    (record / "below/file").touch()

    assert str(record.relative_to(repo)) in {one["path"] for one in run("fsck", "--json").json["result"]["findings"]}
    run("unpin", "quay.io/apps/web:1", ok=True)

    assert not list((repo / "cfs-tags/pins").iterdir())


@pytest.mark.parametrize("name", ["seen.json", "good.json", "maintain.json", "undo/migration.json", "quarantine/a.json"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "link", "sparse"])
def test_what_is_no_file_holds_nothing_up(name: str, kind: str, repo: Path, run: Run) -> None:
    path = repo / "cfs-tags" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "link": lambda: path.symlink_to("/etc/passwd"),
        "sparse": lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 36),
    }
    make[kind]()

    for words in (["list"], ["create", "new", "quay.io/apps/web:1"], ["gc", "--dry-run", "--no-sysroot"]):
        run(*words, ok=True)
    said = run("fsck", "--json")

    assert f"cfs-tags/{name}" in {one["path"] for one in said.json["result"]["findings"]}


@pytest.mark.parametrize("kind", ["socket", "pipe", "directory", "full directory", "link", "dangling link"])
def test_what_is_in_the_place_of_the_lock_file_is_named_and_set_aside(kind: str, repo: Path, run: Run) -> None:
    path = repo / "cfs-tags/refs.lock"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket has at most 107 bytes
            bound.bind(path.name)
            os.chdir(here)
    else:
        make: dict[str, Callable[[], object]] = {
            "pipe": lambda: os.mkfifo(path),
            "directory": path.mkdir,
            "full directory": lambda: (path / "below").mkdir(parents=True),
            "link": lambda: path.symlink_to("/etc/passwd"),
            "dangling link": lambda: path.symlink_to("nowhere"),
        }
        make[kind]()
    assert "cfs-tags/refs.lock" in {one["path"] for one in run("fsck", "--json").json["result"]["findings"]}

    program = [sys.executable, "-m", "cfs_tags", "--repo", repo, "create"]
    writers = [subprocess.Popen([*program, f"new{number}", "quay.io/apps/web:1"]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4

    assert path.is_file()
    assert not path.is_symlink()
    (aside,) = (repo / "cfs-tags/quarantine").iterdir()
    assert f"cfs-tags/quarantine/{aside.name}" in {one["path"] for one in run("fsck", "--json").json["result"]["findings"]}
    assert {f"new{number}" for number in range(4)} <= {one["name"] for one in run("list", "--json").json["result"]}


def test_a_record_of_folders_that_cannot_be_is_kept_and_stops_no_command(repo: Path, run: Run) -> None:
    ref = "streams/refs/" + "d/" * 3_000 + "x"
    name, data = quarantine_record(ref)
    (repo / "cfs-tags/quarantine").mkdir(parents=True)
    (repo / "cfs-tags" / name).write_bytes(data)

    for words in COMMANDS:
        run(*words, ok=True)

    assert ref in {one["path"] for one in run("fsck", "--json").json["result"]["findings"]}
    assert run("restore", ref).status == 4


@pytest.mark.parametrize("refs", [[[HALF, HALF]], [["streams/refs/oci/x", "y"]], "x", [[1]], {"a": 1}])
def test_a_migration_that_cannot_be_is_not_taken_back(refs: object, repo: Path, sysroot: Path, call: Run) -> None:
    path = repo / "cfs-tags/undo/migration.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"refs": refs, "directories": [], "origins": [], "finished": True}))

    said = call("--sysroot", sysroot, "migrate", "--undo", "--esp", "none")

    assert said.status == 6, said
    assert "internal" not in said.err
