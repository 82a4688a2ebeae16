"""What a host can look like, and what is said about each: the row, the look-up, the migration.

Each case is a sysroot around a repository that the real cfsctl filled; after migrating, the real ``cfsctl gc`` collects,
with all tags of bootc's gone first, and what must be kept is looked for without the product's help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from support.peers import Cfsctl
from support.sysroots import BOOTC, Host
from support.trees import Node, tree

if TYPE_CHECKING:
    from deployments.conftest import Hosts, On


def row_of(on: On, host: Host, deployment: str) -> Any:
    rows = on(host, "deployments", "--json", ok=True).json["result"]["deployments"]
    return next(row for row in rows if row["id"] == deployment)


def codes(row: Any) -> set[str]:
    return {finding["code"] for finding in row["health"]}


class Case(NamedTuple):
    """How the deployment of one image looks, and what is said about it.

    ``result`` and ``source`` are those of ``migrate``; ``found`` is whether the look-up finds the image's own manifest;
    ``kept_before`` is whether anything keeps the manifest before migrating: a tag, or bootc's own reckoning.
    """

    make: Callable[[Host], object]
    state: str
    health: set[str]
    source: str
    result: str = "migrate"
    image: str = "old"
    pool: str = "sha512"
    found: bool = True
    status: int = 0
    kept_before: bool = True


def deploy(name: str, **how: Any) -> Callable[[Host], None]:
    def make(host: Host) -> None:
        host.deploy(name, **how)
        host.deploy("same") if name != "same" else None
        host.boot_entries(*dict.fromkeys(["same", name]))
        host.boot("same")

    return make


def then(*steps: Callable[[Host], object]) -> Callable[[Host], None]:
    def make(host: Host) -> None:
        for step in steps:
            step(host)

    return make


def without_manifest(host: Host) -> None:
    (host.repo / "streams" / f"oci-manifest-{host.pool.images['old'].manifest}").unlink()
    host.untag(BOOTC + host.pool.images["old"].manifest)


def gone_with_manifest(host: Host) -> None:
    """What a collection leaves of an image that nothing but its EROFS image kept."""
    without_manifest(host)
    (host.repo / "streams" / f"oci-config-{host.pool.images['old'].image.config_digest}").unlink()


def only_boot_entry(host: Host) -> None:
    host.deploy("same")
    host.boot_entries("same", "old")
    host.boot("same")


def no_entry(host: Host) -> None:
    host.deploy("same")
    host.deploy("old")
    host.boot_entries("same")
    host.boot("same")


def staged(host: Host) -> None:
    host.deploy("same")
    host.deploy("old")
    host.boot_entries("same")
    host.boot_entries("old", "same", staged=True)
    host.stage("old")
    host.boot("same")


def with_uki(host: Host) -> None:
    host.deploy("same")
    host.deploy("old")
    host.boot_entries("same")
    host.ukis("old")
    host.boot("same")


def grub_of_ukis(host: Host) -> None:
    host.deploy("same")
    host.deploy("old")
    host.grub("same", "old")
    host.ukis("same", "old")
    host.boot("same")


def another_systems_entry(host: Host) -> None:
    only_boot_entry(host)
    gone_with_manifest(host)
    (host.repo / "images" / host.id("old")).unlink()


CASES = {
    "origin with digest": Case(deploy("old"), "rollback", {"no-ref"}, "origin"),
    "origin with digest, boot image is the plain image": Case(deploy("same"), "booted", {"no-ref"}, "origin", image="same"),
    "origin without digest": Case(deploy("old", digest=False), "rollback", {"no-ref", "origin-without-digest"}, "image"),
    "origin without digest, boot image is the plain image": Case(
        deploy("same", digest=False), "booted", {"no-ref", "origin-without-digest"}, "image", image="same"
    ),
    "origin without digest, with imginfo": Case(
        deploy("old", digest=False, imginfo=True), "rollback", {"no-ref", "origin-without-digest"}, "image"
    ),
    "origin missing": Case(
        then(deploy("old"), lambda host: host.origin("old").unlink()), "other", {"no-ref", "origin-missing"}, "image"
    ),
    "origin unreadable": Case(deploy("old", origin=b"\xff[origin]\n"), "rollback", {"no-ref", "origin-unreadable"}, "image"),
    "origin empty": Case(deploy("old", origin=b""), "rollback", {"no-ref", "origin-without-digest", "origin-odd"}, "image"),
    "no boot entry": Case(no_entry, "other", {"no-ref", "no-boot-entry"}, "origin"),
    "no state directory": Case(only_boot_entry, "other", {"no-ref", "no-state"}, "image"),
    "staged": Case(staged, "staged", {"no-ref"}, "origin"),
    "manifest stream gone": Case(
        then(deploy("old"), without_manifest),
        "rollback",
        {"no-ref", "manifest-gone"},
        "none",
        "image-only",
        found=False,
    ),
    "manifest stream gone, with imginfo": Case(
        then(deploy("old", digest=False, imginfo=True), without_manifest),
        "rollback",
        {"no-ref", "origin-without-digest"},
        "none",
        "image-only",
        found=False,
    ),
    "EROFS image gone": Case(
        then(deploy("old"), lambda host: (host.repo / "images" / host.id("old")).unlink()),
        "rollback",
        {"no-ref", "image-gone"},
        "origin",
        "nothing",
        status=4,
    ),
    "another system's boot entry": Case(
        another_systems_entry, "other", {"no-ref", "no-state", "image-gone"}, "none", "not-here", found=False
    ),
    "untagged, origin with digest": Case(
        then(deploy("old"), lambda host: host.untag_bootc()), "rollback", {"no-ref"}, "origin"
    ),
    "untagged, origin without digest": Case(
        then(deploy("old", digest=False), lambda host: host.untag_bootc()),
        "rollback",
        {"no-ref", "origin-without-digest"},
        "image",
        kept_before=False,
    ),
    "two tags": Case(
        then(
            deploy("old", digest=False),
            lambda host: host.tag("quay.io/example/host-old:latest", host.pool.images["old"].manifest),
        ),
        "rollback",
        {"no-ref", "origin-without-digest"},
        "image",
    ),
    "config without its name in streams/": Case(
        then(deploy("old"), lambda host: (host.repo / "streams" / host.pool.images["old"].streams[1]).unlink()),
        "rollback",
        {"no-ref"},
        "origin",
    ),
    "UKI alone": Case(with_uki, "other", {"no-ref"}, "origin"),
    "UKIs started by GRUB": Case(grub_of_ukis, "rollback", {"no-ref"}, "origin"),
    "sha256": Case(deploy("old"), "rollback", {"no-ref"}, "origin", pool="sha256"),
    "sha256, origin without digest": Case(
        deploy("old", digest=False), "rollback", {"no-ref", "origin-without-digest"}, "image", pool="sha256"
    ),
    "old splitstream headers": Case(deploy("old"), "rollback", {"no-ref"}, "origin", pool="old headers"),
    "old splitstream headers, origin without digest": Case(
        deploy("old", digest=False), "rollback", {"no-ref", "origin-without-digest"}, "image", pool="old headers"
    ),
}


@pytest.fixture(params=CASES, ids=lambda name: str(name).replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def made(case: Case, hosts_of: Hosts) -> Host:
    host = hosts_of(case.pool)
    case.make(host)
    return host


def test_the_row_says_state_ref_and_health(on: On, made: Host, case: Case) -> None:
    before = tree(made.root)

    row = row_of(on, made, made.id(case.image))

    assert (row["state"], row["ref"], codes(row)) == (case.state, "none", case.health)
    assert all(finding["message"] and finding["advice"] for finding in row["health"])
    assert tree(made.root) == before


def test_a_boot_directory_that_was_not_read_is_no_sign_that_nothing_boots_it(on: On, hosts_of: Hosts) -> None:
    host = hosts_of()
    deploy("old")(host)

    said = on(host, "deployments", "--boot", str(host.root / "absent"), "--json")

    assert {code for row in said.result["deployments"] for code in codes(row)} >= {"boot-entry-unknown"}
    assert "no-boot-entry" not in said.out


def test_the_look_up_names_manifest_and_source(on: On, made: Host, case: Case) -> None:
    deployed = made.pool.images[case.image]

    said = on(made, "lookup", deployed.id, "--json")
    result = said.json["result"]

    assert said.status == (0 if case.found else 4)
    assert (result["manifest"], result["ambiguous"]) == (deployed.manifest if case.found else None, False)
    assert result["source"] == case.source
    if case.found:
        assert result["config"] == deployed.image.config_digest
        assert result["version"] == case.image
        assert [layer["diff_id"] for layer in result["layers"]] == deployed.image.diff_ids


def test_migrating_keeps_it_whole_through_a_collection_by_cfsctl(on: On, cfsctl: Cfsctl, made: Host, case: Case) -> None:
    said = on(made, "migrate", "--json")

    rows = {row["id"]: row for row in said.json["result"]["deployments"]}
    row = rows[made.id(case.image)]
    assert (row["result"], said.status) == (case.result, case.status)
    assert {row["lost"] for row in rows.values()} == {0}

    made.untag_bootc()
    if case.result != "nothing":
        cfsctl.assert_healthy(made.repo)
    cfsctl(made.repo, "gc")

    if case.result in ("migrate", "image-only"):
        assert made.missing(case.image, image_only=case.result == "image-only") == []
        shown = row_of(on, made, made.id(case.image))
        assert shown["ref"] == {"migrate": "complete", "image-only": "image-only"}[case.result]
        assert (shown["manifest"] if case.result == "migrate" else None) == row["manifest"]
    for tag in made.pool.apps:
        assert made.missing_of_app(tag) == []


def test_undoing_right_away_leaves_everything_as_it_was_and_loses_nothing(on: On, made: Host, case: Case) -> None:
    before = everything_but_our_state(made)
    on(made, "migrate")
    migrated = everything_but_our_state(made)

    said = on(made, "migrate", "--undo")

    assert said.status == (0 if case.kept_before else 4), said
    # a name that a config got back stays: its content needs it
    mended = f"composefs/streams/{made.pool.images[case.image].streams[1]}"
    after = {path: node for path, node in everything_but_our_state(made).items() if path in before or path != mended}
    assert after == (before if case.kept_before else migrated)


def everything_but_our_state(host: Host) -> dict[str, Node]:
    return {path: node for path, node in tree(host.root).items() if not f"{path}/".startswith("composefs/cfs-tags/")}


def test_without_a_migration_the_same_collection_loses_what_bootc_alone_kept(cfsctl: Cfsctl, hosts_of: Hosts) -> None:
    """The other side: the cases above show something only if collecting takes what has no ref."""
    host = hosts_of()
    deploy("old")(host)
    host.untag_bootc()

    cfsctl(host.repo, "gc")

    assert len(host.missing("old")) > 5
