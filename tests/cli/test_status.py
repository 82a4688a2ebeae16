"""``cfs-tag status``: one screen, and a command for each thing that is wrong."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from cfs_tags.cli.main import COMMANDS

if TYPE_CHECKING:
    from cli.conftest import Run

ROOT = Path(__file__).parent.parent.parent
WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
PLACES = ("--run", "none", "--booted", "none", "--esp", "none")


@pytest.fixture
def status(call: Run, sysroot: Path) -> Callable[..., Any]:
    def result(*words: str) -> Any:
        return call("--sysroot", sysroot, "status", *PLACES, *words, "--json", ok=True).result

    return result


def problems(result: Any) -> dict[str, str | None]:
    return {one["code"]: one["command"] for one in result["problems"]}


def shown(call: Run, sysroot: Path, *words: str) -> str:
    return call("--sysroot", sysroot, *words, "status", *PLACES, ok=True).out


def test_the_document_is_as_its_schema_says(call: Run, sysroot: Path, repo: Path, run: Run) -> None:
    schema = json.loads((ROOT / "docs/schema/status.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    run("create", "lent", WEB, "--expires", "1d", ok=True)
    os.symlink("../../oci-manifest-sha256:" + "0" * 64, repo / "streams/refs/oci/dangling")
    os.symlink("nowhere", repo / "streams/refs/other")

    for words in (("--sysroot", sysroot, "status", *PLACES), ("--sysroot", sysroot, "status")):
        document = call(*words, "--json", ok=True).json
        assert [error.message for error in validator.iter_errors(document)] == []


def test_every_command_that_is_proposed_can_be_run_as_it_stands(
    call: Run, sysroot: Path, repo: Path, run: Run, status: Any
) -> None:
    origins = sorted((sysroot / "state/deploy").glob("*/*.origin"))
    origins[0].write_bytes(b"\0\0\0\n")
    os.symlink("../../oci-manifest-sha256:" + "0" * 64, repo / "streams/refs/oci/a name; rm -rf")
    os.symlink(
        f"../../{os.path.basename(os.readlink(repo / 'streams/refs/oci/quay.io%2Fapps%2Fweb:1'))}",
        repo / "streams/refs/oci/.symlink-x",
    )

    for _ in range(3):  # what one command mends, another may show
        commands = {one["command"] for one in status()["problems"] if one["command"] is not None}
        for command in sorted(commands):
            program, *words = shlex.split(command)
            assert program == "cfs-tag"
            assert set(words) & set(COMMANDS)
            call(*words, ok=True)
    left = {one["code"] for one in status()["problems"] if one["command"] is not None}
    assert left == set(), "and then nothing is left that a command could mend"


def test_a_host_before_and_after_it_is_migrated(call: Run, sysroot: Path, status: Any) -> None:
    before = status()
    assert problems(before)["no-ref"] == f"cfs-tag --sysroot {sysroot} migrate --esp none --run none --booted none"
    assert before["tags"]["bootc"] == {"shared": 3, "broken": 0}
    assert "deployment" not in before["tags"]

    call("--sysroot", sysroot, "migrate", "--write-origin", *PLACES, ok=True)

    after = status()
    assert after["problems"] == []
    assert after["tags"]["deployment"] == {"deployment": 3, "broken": 0}
    assert "Nothing is wrong." in shown(call, sysroot)


def test_space_is_live_in_three_parts_and_garbage(call: Run, sysroot: Path, status: Any) -> None:
    space = status()["space"]
    df = call("--sysroot", sysroot, "df", *PLACES, "--json", ok=True).result

    assert space["measured"]
    assert space["live"] == df["live"]
    parts = [space[name] for name in ("deployments_alone", "apps_alone", "shared")]
    assert space["live"] == {key: sum(part[key] for part in parts) for key in ("objects", "bytes")}
    assert space["file_system"]["free_bytes"] <= space["file_system"]["bytes"]


def test_a_pin_of_an_image_of_an_app_makes_it_nobody_elses(call: Run, sysroot: Path, status: Any) -> None:
    before = status()["space"]
    call("--sysroot", sysroot, "pin", WEB, ok=True)

    pinned = status()["space"]
    assert {**pinned, "file_system": None} == {**before, "file_system": None}, "free space is anybody's"

    call("--sysroot", sysroot, "delete", WEB, ok=True)
    after = status()["space"]
    assert (after["live"], after["apps_alone"]) == (before["live"], before["apps_alone"]), "the pin keeps it alone now"


def test_space_of_many_objects_is_measured_when_it_is_asked_for(call: Run, sysroot: Path, status: Any) -> None:
    (sysroot / "composefs/objects/00").mkdir(exist_ok=True)
    for number in range(3600):  # a directory of three that are looked at: the repository is taken for a large one
        (sysroot / f"composefs/objects/00/{number:0126x}").touch()

    result = status()
    assert result["space"]["measured"] is False
    assert result["space"]["live"] is None
    assert "--space measures it" in shown(call, sysroot)
    assert status("--space")["space"]["measured"]


def test_a_collection_is_not_waited_for(call: Run, sysroot: Path, status: Any) -> None:
    import fcntl

    fd = os.open(sysroot / "composefs", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert status()["space"]["measured"] is False
        said = call("--sysroot", sysroot, "status", *PLACES, "--space", "--lock-timeout", "0.1", "--json")
        assert said.status == 5
    finally:
        os.close(fd)


def test_a_repository_without_a_host_has_no_deployments(call: Run, repo: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(repo, alone, symlinks=True)
    for path in (alone / "streams/refs/oci").glob("localhost%2F*"):
        path.unlink()

    said = call("--repo", alone, "status", ok=True)
    assert "2 of apps" in said.out
    assert "STATE" not in said.out
    assert call("--repo", alone, "status", "--json", ok=True).result["sysroot"] is None


def test_a_damaged_origin_leaves_what_is_known_of_the_deployment(call: Run, sysroot: Path, status: Any, run: Run) -> None:
    whole = {row["id"]: row for row in status()["deployments"]}
    names = sorted(whole)
    origins = [sysroot / f"state/deploy/{name}/{name}.origin" for name in names]
    origins[0].write_bytes(b"\0\0\n" + origins[0].read_bytes())
    origins[1].write_bytes(b"\0" * 100)
    origins[2].unlink()
    run("create", "os:here", f"@{whole[names[2]]['manifest']}", ok=True)

    rows = {row["id"]: row for row in status()["deployments"]}
    for name in names:
        assert rows[name]["version"] == whole[name]["version"]
        assert rows[name]["created"] == whole[name]["created"]
        assert rows[name]["manifest"] == whole[name]["manifest"]
        assert {one["code"] for one in rows[name]["health"]} & {"origin-unreadable", "origin-missing"}
    assert rows[names[0]]["image"] == whole[names[0]]["image"], "the line with the image could still be read"
    assert rows[names[1]]["image"] is None
    assert rows[names[2]]["image"] == "os:here", "a tag that names the same"


def test_many_broken_tags_are_a_few_lines(call: Run, sysroot: Path, repo: Path) -> None:
    for number in range(1000):
        os.symlink("../../oci-manifest-sha256:" + "0" * 64, repo / f"streams/refs/oci/broken:{number}")

    said = shown(call, sysroot)
    assert "! and 995 more" in said
    assert len(said.splitlines()) < 40
