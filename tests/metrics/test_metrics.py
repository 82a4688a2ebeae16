"""``metrics``: what it says is what the other commands say, in a form that Prometheus' own parser reads."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cfs_tags import Repository
from cli.conftest import Run

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
STOPPED = ("--esp", "none", "--run", "none", "--booted", "none")


def parsed(text: str) -> dict[Any, float]:
    """Figures by name, or by name and the value of the label."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            name = sample.name.removeprefix("cfs_tags_")
            found[(name, *sample.labels.values()) if sample.labels else name] = sample.value
    return found


@pytest.fixture
def figures(call: Run, sysroot: Path) -> Any:
    def read(*words: str | Path) -> dict[Any, float]:
        return parsed(call("--sysroot", sysroot, "metrics", *STOPPED, *words, ok=True).out)

    return read


def test_they_say_what_the_commands_say(figures: Any, call: Run, run: Run, sysroot: Path, repo: Path) -> None:
    run("delete", WEB, "--keep-for", "1d", ok=True)
    (repo / "streams/refs/oci/gone:1").symlink_to(f"../../oci-manifest-sha256:{'00' * 32}")
    found = figures()
    status = call("--sysroot", sysroot, "status", "--space", *STOPPED, "--json").result

    assert found["refs", "app"] == 2
    assert found["refs_broken", "app"] == 1
    assert found["refs", "bootc"] == 3
    assert found["refs_trash"] == 1
    assert found["deployments", "other"] == found["deployments_without_ref"] == 3
    assert found["live_objects"] == status["space"]["live"]["objects"]
    assert found["live_bytes"] == status["space"]["live"]["bytes"]
    assert found["reclaimable_bytes"] == status["space"]["garbage"]["bytes"] > 0
    assert not any("last_" in str(name) for name in found), "nothing was collected or checked yet"


def test_space_is_left_out_where_it_is_not_asked_for(figures: Any) -> None:
    found = figures("--no-space")

    assert found["refs", "bootc"] == 3
    assert not any("bytes" in str(name) for name in found)


def test_they_say_what_was_done_last(figures: Any, call: Run, run: Run, sysroot: Path, repo: Path) -> None:
    begun = time.time() - 1
    freed = call("--sysroot", sysroot, "gc", *STOPPED, "--json").result["bytes"]
    found = figures()
    assert begun < found["last_collection_timestamp_seconds"] <= time.time()
    assert (found["last_collection_failed"], found["last_collection_freed_bytes"]) == (0, freed)
    assert found["deployments_without_ref"] == 0

    (repo / "streams/refs/oci/broken:1").symlink_to(f"../../oci-manifest-sha256:{'00' * 32}")
    assert run("fsck").status == 6
    assert call("--sysroot", sysroot, "maintain", *STOPPED).status != 0
    later = figures()
    assert later["last_check_findings", "error"] > 0
    assert later["last_collection_timestamp_seconds"] == found["last_collection_timestamp_seconds"]
    assert later["last_collection_failed"] == 1
    assert [later["last_maintenance_failed", step] for step in ("adopt", "policy", "collect", "check")] == [0, 0, 1, 0]

    (repo / "streams/refs/oci/broken:1").unlink()
    call("--sysroot", sysroot, "maintain", *STOPPED, ok=True)
    mended = figures()
    assert mended["last_collection_timestamp_seconds"] > found["last_collection_timestamp_seconds"]
    assert mended["last_collection_failed"] == mended["last_maintenance_failed", "collect"] == 0


def test_numbers_in_the_log_that_no_figure_can_have_are_none(figures: Any, run: Run, repo: Path) -> None:
    run("gc", "--no-sysroot", ok=True)
    log = repo / "cfs-tags/reflog/order"
    line = json.dumps(json.loads(log.read_bytes().splitlines()[-1][9:]) | {"facts": {"bytes": int("9" * 309)}}).encode()
    log.write_bytes(log.read_bytes() + b"%08x %s\n" % (crc32(line), line))
    assert figures("--no-space")["last_collection_freed_bytes"] == 0


def test_a_file_is_written_whole_or_stays_as_it_was(figures: Any, call: Run, sysroot: Path, tmp_path: Path) -> None:
    home = tmp_path / "collector"
    home.mkdir()
    file = home / "cfs-tags.prom"
    file.write_text("before")
    command = ("--sysroot", sysroot, "metrics", *STOPPED, "--no-space", "--output")

    assert call(*command, file, ok=True).out == ""
    assert parsed(file.read_text()) == figures("--no-space")
    assert file.stat().st_mode & 0o777 == 0o644, "node_exporter is another user"
    assert [path.name for path in home.iterdir()] == ["cfs-tags.prom"]
    assert call(*command, tmp_path / "none" / "x.prom").status == 1
    assert call(*command, f"{home}/").status == 2


def test_what_is_no_file_is_not_replaced_by_one(call: Run, sysroot: Path, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "stdout"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for place in (pipe, link):
        assert call("--sysroot", sysroot, "metrics", *STOPPED, "--no-space", "--output", place).status == 2
    assert (pipe.is_fifo(), link.is_symlink()) == (True, True)


def test_without_the_library_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    said = run("metrics")

    assert said.status == 1
    assert "prometheus-client" in said.err


def test_programs_get_the_same(repo: Path) -> None:
    with Repository.open(repo, esp="none", run="none", booted="none") as opened:
        whole, some = parsed(opened.metrics()), parsed(opened.metrics(space=False))

    assert whole["live_objects"] == 48
    assert some.items() < whole.items()
