"""The recorded host of ``examples/`` is what its README says, in the eyes of the real cfsctl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.peers import Cfsctl
from support.trees import unpack

EXAMPLES = Path(__file__).parent.parent / "examples"
FACTS = json.loads((EXAMPLES / "host.json").read_text())


@pytest.fixture(scope="module")
def sysroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("host")
    unpack(EXAMPLES / "host.tar.gz", target)
    return target


def test_it_is_small() -> None:
    assert (EXAMPLES / "host.tar.gz").stat().st_size < 400_000


def test_cfsctl_checks_lists_and_would_collect_it(cfsctl: Cfsctl, sysroot: Path) -> None:
    cfsctl.assert_healthy(sysroot / "composefs")


def test_its_tags_are_those_of_bootc_and_of_the_apps(cfsctl: Cfsctl, sysroot: Path) -> None:
    manifests = [facts["manifest"] for facts in FACTS["deployments"].values()]

    assert cfsctl.tags(sysroot / "composefs") == {
        **{f"localhost/bootc-{manifest}": manifest for manifest in manifests},
        **{tag: facts["manifest"] for tag, facts in FACTS["apps"].items()},
    }


@pytest.mark.parametrize("role", ["booted", "staged", "rollback"])
def test_a_deployment_is_named_by_its_boot_image(cfsctl: Cfsctl, sysroot: Path, role: str) -> None:
    facts = FACTS["deployments"][FACTS[role]]

    images = cfsctl.images_of(sysroot / "composefs", f"localhost/bootc-{facts['manifest']}")

    assert images == (facts["plain_image"], FACTS[role])
    assert (facts["plain_image"] == FACTS[role]) is (role == "booted")


def test_the_rollback_deployment_is_known_by_its_imginfo_alone(sysroot: Path) -> None:
    for role in ("booted", "staged", "rollback"):
        home = sysroot / "state" / "deploy" / FACTS[role]
        origin = (home / f"{FACTS[role]}.origin").read_text()

        assert ("manifest_digest" in origin) is (role != "rollback")
        assert (home / f"{FACTS[role]}.imginfo").exists() is (role == "rollback")


def test_the_staged_deployment_waits_beside_the_boot_entries(sysroot: Path) -> None:
    entries = {name: sorted((sysroot / "boot/loader" / name).iterdir()) for name in ("entries", "entries.staged")}
    ids = {name: [path.read_text().partition("composefs=?")[2].split()[0] for path in paths] for name, paths in entries.items()}

    assert ids["entries"] == [FACTS["rollback"], FACTS["booted"]]
    assert ids["entries.staged"] == [FACTS["booted"], FACTS["staged"]]
    assert json.loads((sysroot / "run/composefs/staged-deployment").read_text())["depl_id"] == FACTS["staged"]


def test_apps_share_a_layer_and_deployments_another() -> None:
    apps = [set(facts["layers"]) for facts in FACTS["apps"].values()]
    hosts = [set(facts["layers"]) for facts in FACTS["deployments"].values()]

    assert len(set.intersection(*apps)) == 1
    assert len(set.intersection(*hosts)) == 1
