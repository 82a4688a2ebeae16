"""The hosts that the real bootc 1.16.9 wrote (``tests/data/hosts``), and the one of ``examples/``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.peers import Cfsctl
from support.trees import Node, copy_tree, tree

if TYPE_CHECKING:
    from cli.conftest import Run, Said

HOSTS = Path(__file__).parent.parent / "data/hosts"
DAMAGED = ("a", "b", "e", "g2", "h", "i3", "w", "w2")
LIVES = ("life-staged", "life-finalized", "life-rebooted", "life-rolled-back")
EXAMPLE = json.loads((HOSTS.parent.parent.parent / "examples/host.json").read_text())


def facts_of(name: str) -> Any:
    return EXAMPLE if name == "example" else json.loads((HOSTS / f"{name}.json").read_text())


class Recorded:
    """A recorded host and the calls of ``cfs-tag`` on it."""

    def __init__(self, name: str, root: Path, call: Run) -> None:
        self.name, self.root, self.repo = name, root, root / "composefs"
        self.facts = facts_of(name)
        self._call = call

    def on(self, *words: str, ok: bool = True) -> Said:
        options = ("--run", str(self.root / "run"), "--booted", self.facts["booted"], "--esp", "none")
        return self._call("--sysroot", self.root, words[0], *options, *words[1:], ok=ok)

    def outside(self) -> dict[str, Node]:
        """Everything but our own state."""
        return {path: node for path, node in tree(self.root).items() if not f"{path}/".startswith("composefs/cfs-tags/")}

    def rows(self) -> dict[str, Any]:
        return {row["id"]: row for row in self.on("deployments", "--json").result["deployments"]}


@pytest.fixture(params=[*DAMAGED, *LIVES, "example"])
def recording(request: pytest.FixtureRequest, recorded: Callable[[str], Path], call: Run) -> Recorded:
    return Recorded(request.param, recorded(request.param), call)


def manifests_of(recording: Recorded) -> dict[str, str]:
    """Deployment to manifest, as bootc (or the notes of the recording) knew it."""
    facts = recording.facts
    if "deployments" in facts:
        return {name: one["manifest"] for name, one in facts["deployments"].items()}
    if "images" in facts:
        return {one["boot_image"]: one["manifest"] for one in facts["images"]}
    return {one["verity"]: one["digest"] for one in facts["bootc_status"] if one is not None}


@pytest.mark.parametrize("name", LIVES)
def test_staged_booted_and_rollback_are_those_of_bootc_status(name: str, recorded: Callable[[str], Path], call: Run) -> None:
    host = Recorded(name, recorded(name), call)
    said = host.facts["bootc_status"]

    rows = host.rows().values()

    ours = [
        next(
            ({"verity": row["id"], "digest": row["manifest"], "image": row["image"]} for row in rows if row["state"] == state),
            None,
        )
        for state in ("staged", "booted", "rollback")
    ]
    assert ours == said


def test_every_deployment_is_a_row(recording: Recorded) -> None:
    rows = recording.rows()

    assert set(rows) == set(manifests_of(recording))
    assert rows[recording.facts["booted"]]["state"] == "booted"
    assert all(finding["advice"] for row in rows.values() for finding in row["health"])


def test_every_look_up_finds_the_manifest(recording: Recorded) -> None:
    """Also where bootc's own status fails (``a``), or where its collector does not see the deployment (``h``, ``i3``)."""
    for deployment, manifest in manifests_of(recording).items():
        found = recording.on("lookup", deployment, "--json").result

        assert (found["manifest"], found["ambiguous"]) == (manifest, False)
        for part, digest in (("manifest", manifest), ("config", found["config"])):
            data = recording.on("lookup", deployment, "--raw", part).raw
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest


def contents(repo: Path) -> dict[str, set[str]]:
    objects = {path.parent.name + path.name for path in (repo / "objects").glob("??/*")}
    links = {top: {path.name for path in (repo / top).iterdir() if path.is_symlink()} for top in ("streams", "images")}
    return {"objects": objects, **links}


def test_after_migrating_cfsctl_collects_nothing_of_any_deployment(recording: Recorded, cfsctl: Cfsctl) -> None:
    """The same whether bootc removed its tags or not."""
    before = contents(recording.repo)
    said = recording.on("migrate", "--json").result
    assert [(row["result"], row["lost"]) for row in said["deployments"]] == [("migrate", 0)] * len(manifests_of(recording))
    for tag in (recording.repo / "streams/refs/oci").glob("localhost%2Fbootc-*"):
        tag.unlink()
    cfsctl.assert_healthy(recording.repo)

    cfsctl(recording.repo, "gc")

    after = contents(recording.repo)
    assert after["streams"] == before["streams"]
    assert set(manifests_of(recording)) <= after["images"]
    for deployment, manifest in manifests_of(recording).items():
        inspected = cfsctl.json(recording.repo, "oci", "inspect", f"@{manifest}")
        assert inspected["composefs_boot_erofs"] == deployment
        for one in cfsctl(recording.repo, "image-objects", deployment).stdout.split():
            assert one.removeprefix("sha512:") in after["objects"]
    assert {row["ref"] for row in recording.rows().values()} == {"complete"}
    cfsctl.assert_healthy(recording.repo)


def test_undo_leaves_everything_outside_our_state_as_it_was(recording: Recorded) -> None:
    before = recording.outside()
    recording.on("migrate", "--write-origin")
    assert recording.outside() != before

    recording.on("migrate", "--undo")

    assert recording.outside() == before


def test_collecting_undoing_and_collecting_again_keeps_what_a_collection_keeps_without_us(
    recording: Recorded, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    without = copy_tree(recording.repo, tmp_path / "without")
    cfsctl(without, "gc")
    recording.on("migrate")
    cfsctl(recording.repo, "gc")

    recording.on("migrate", "--undo")
    cfsctl(recording.repo, "gc")

    assert contents(recording.repo) == contents(without)


def test_migrating_twice_changes_nothing(recording: Recorded) -> None:
    recording.on("migrate", "--write-origin")
    before = times(recording.root), tree(recording.root)

    said = recording.on("migrate", "--write-origin", "--json").result

    assert {row["result"] for row in said["deployments"]} == {"complete"}
    assert (said["refs"], said["origins"]) == ([], [])
    assert (times(recording.root), tree(recording.root)) == before


def times(root: Path) -> dict[str, int]:
    """When each entry was changed last."""
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


def test_dry_runs_change_nothing(recording: Recorded) -> None:
    before = times(recording.root), tree(recording.root)

    recording.on("migrate", "--dry-run", "--write-origin")
    recording.on("retire", "--dry-run")
    recording.on("deployments")

    assert (times(recording.root), tree(recording.root)) == before
    recording.on("migrate", "--write-origin")
    migrated = times(recording.root), tree(recording.root)

    recording.on("migrate", "--undo", "--dry-run")

    assert (times(recording.root), tree(recording.root)) == migrated
