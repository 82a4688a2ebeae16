"""Two manifests with one config: an image that was annotated again, or compressed again.

Pulling the second one bootable writes the config stream again; the first one's manifest stream then names a config object
that no link in ``streams/`` leads to, and collectors that go by links lose what is behind it.  Either may be the deployed
one, and either may be the one pulled last.
"""

from __future__ import annotations

import hashlib
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.peers import Cfsctl
from support.sysroots import BOOTC, Host
from support.trees import tree

if TYPE_CHECKING:
    from deployments.conftest import Hosts, On


class Twins(NamedTuple):
    """``linked`` is whether the link of the config leads to the object that the deployed one's manifest names."""

    host: Host
    deployed: str
    other: str
    linked: bool


COMBINATIONS = list(product(("annotated", "compressed"), ("one", "two", "two rewound"), ("one", "two")))


@pytest.fixture(params=COMBINATIONS, ids=lambda case: f"{case[0]}, {case[1]} pulled last, {case[2]} deployed")
def twins(request: pytest.FixtureRequest, hosts_of: Hosts) -> Twins:
    kind, last, deployed = request.param
    host = hosts_of(f"twins {kind} {last}")
    other = "two" if deployed == "one" else "one"
    host.deploy(deployed)
    host.boot_entries(deployed)
    host.boot(deployed)
    return Twins(host, deployed, other, deployed == {"two rewound": "one"}.get(last, last))


def test_cfsctl_loses_the_config_of_the_one_pulled_first_when_the_other_goes(cfsctl: Cfsctl, twins: Twins) -> None:
    """What a deployment ref is for: a tag on the manifest does not keep it whole."""
    host = twins.host
    host.untag(BOOTC + host.pool.images[twins.other].manifest)

    cfsctl(host.repo, "gc")

    whole = (host.repo / "streams" / f"oci-manifest-{host.pool.images[twins.deployed].manifest}").exists()
    assert whole
    assert ("the config" not in host.missing(twins.deployed)) is twins.linked


def test_the_origin_says_which_of_the_two(on: On, twins: Twins) -> None:
    found = on(twins.host, "lookup", "booted", "--json").result

    assert (found["manifest"], found["source"]) == (twins.host.pool.images[twins.deployed].manifest, "origin")


def test_without_a_digest_in_the_origin_one_config_is_no_ambiguity(on: On, twins: Twins) -> None:
    host = twins.host
    host.origin(twins.deployed).write_text(host.origin(twins.deployed).read_text().partition("[image]")[0])
    host.untag(BOOTC + host.pool.images[twins.other].manifest)

    found = on(host, "lookup", "booted", "--json").result

    assert found["ambiguous"] is False
    assert found["manifest"] == host.pool.images[twins.deployed].manifest
    assert found["config"] == host.pool.images[twins.deployed].image.config_digest


def test_a_migrated_twin_is_whole_after_the_other_is_gone(on: On, cfsctl: Cfsctl, twins: Twins) -> None:
    host = twins.host
    said = on(host, "migrate", "--json", ok=True).result
    assert [row["lost"] for row in said["deployments"]] == [0]
    host.untag_bootc()

    cfsctl(host.repo, "gc")

    assert host.missing(twins.deployed) == []
    config = on(host, "lookup", "booted", "--raw", "config", ok=True).raw
    assert f"sha256:{hashlib.sha256(config).hexdigest()}" == host.pool.images[twins.deployed].image.config_digest
    cfsctl.assert_healthy(host.repo)


def test_an_updater_may_name_either(on: On, twins: Twins) -> None:
    """The older config object may name no boot image; the one that its link leads to now does."""
    host = twins.host

    said = on_repo(on, host, "create", "--deployment", host.id(twins.deployed), f"@{host.pool.images[twins.deployed].manifest}")

    assert said == 0


def test_a_forced_undo_keeps_it_whole_without_any_other_ref(on: On, cfsctl: Cfsctl, twins: Twins) -> None:
    host = twins.host
    on(host, "migrate", ok=True)
    host.untag_bootc()
    host.origin(twins.deployed).write_text("[origin]\n")

    assert on(host, "migrate", "--undo").status == 4
    on(host, "migrate", "--undo", "--force", ok=True)
    cfsctl(host.repo, "gc")

    assert host.missing(twins.deployed) == []
    assert f"migrated/{host.id(twins.deployed)}" in on_json(on, host)


def test_undo_right_away_leaves_everything_as_it_was(on: On, twins: Twins) -> None:
    before = tree(twins.host.repo, exclude=("cfs-tags",))
    on(twins.host, "migrate", ok=True)

    on(twins.host, "migrate", "--undo", ok=True)

    assert tree(twins.host.repo, exclude=("cfs-tags",)) == before


def on_repo(on: On, host: Host, *words: str) -> int:
    from cfs_tags.cli.main import main

    return main(["--repo", str(host.repo), *words])


def on_json(on: On, host: Host) -> set[str]:
    from cfs_tags import Repository
    from cfs_tags.repo import refs

    with Repository.open(host.repo) as repo:
        return {path.rpartition("/")[2].replace("%2F", "/") for path, _ in refs.walk(repo, "streams/refs/cfs-tags/tags")}
