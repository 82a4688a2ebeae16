"""Content that is gone although all links are there: a newer bootc removes the objects of files below /boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cfs_tags.formats import fsverity
from cfs_tags.values import Algorithm
from cli.conftest import Run, Said, call  # noqa: F401  (call is a fixture here too)
from deployments.conftest import Hosts, On, fill_three
from support.garbage import content, link_of, names, object_paths, settle
from support.images import Layer, build_image, file, random_bytes
from support.peers import Cfsctl
from support.sysroots import Host

WEB = "quay.io/apps/web:1"


class Lost(NamedTuple):
    """A file, the deployments and apps that have it, and the object of its content."""

    file: str
    deployments: tuple[str, ...]
    apps: tuple[str, ...]
    object: str


def content_of(host: Host, name: str) -> Lost:
    """Who has a file by this name with the content that it has in the first image with it."""
    images = {deployment: made.image for deployment, made in host.pool.images.items()} | dict(host.pool.apps)
    wanted = next(
        entry.content for image in images.values() for layer in image.layers for entry in layer.entries if entry.name == name
    )
    having = [
        key
        for key, image in images.items()
        if any(entry.content == wanted for layer in image.layers for entry in layer.entries)
    ]
    deployments = tuple(key for key in having if key in host.pool.images)
    apps = tuple(key for key in having if key in host.pool.apps)
    return Lost(name, deployments, apps, str(fsverity.measure(wanted, Algorithm.SHA512)))


def removed(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.unlink()  # its bytes are those of other tests, too
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.unlink()
    path.mkdir()


def directory_removed(path: Path) -> None:
    parent = path.parent
    path.unlink()
    others = [other for other in parent.iterdir() if other.name != path.name]
    if not others:
        parent.rmdir()


@pytest.fixture
def within(call: Run) -> On:  # noqa: F811
    def run(host: Host, *words: str | Path, ok: bool = False) -> Said:
        return call("--repo", host.repo, *words, ok=ok)

    return run


FILES = ("boot/extra.txt", "usr/share/os", "usr/lib/modules/6.1.0/vmlinuz", "usr/bin/web", "usr/share/runtime")


@pytest.fixture(params=FILES)
def lost(request: pytest.FixtureRequest, three: Host) -> Lost:
    found = content_of(three, request.param)
    assert found.deployments or found.apps
    return found


@pytest.fixture(params=[removed, emptied, replaced, directory_removed])
def spoil(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return request.param  # type: ignore[no-any-return]


def test_fsck_names_refs_and_files(three: Host, on: On, within: On, lost: Lost, spoil: Callable[[Path], None]) -> None:
    on(three, "migrate", ok=True)
    spoil(content(three.repo, lost.object))
    said = within(three, "fsck", "--json")
    assert said.status == 6
    found = {one["path"]: one for one in said.json["result"]["findings"] if one["code"] == "content-missing"}
    manifests = [three.pool.images[name].manifest for name in lost.deployments]
    manifests += [three.pool.apps[tag].manifest_digest for tag in lost.apps]
    assert set(found) == {f"streams/oci-manifest-{digest}" for digest in manifests}
    for one in found.values():
        assert one["severity"] == "error"
        assert lost.file in one["message"]
        assert "import" in one["advice"]
    for tag in lost.apps:
        assert tag in found[f"streams/oci-manifest-{three.pool.apps[tag].manifest_digest}"]["message"]
    for name in lost.deployments:
        deployed = three.pool.images[name]
        message = found[f"streams/oci-manifest-{deployed.manifest}"]["message"]
        assert f"localhost/bootc-{deployed.manifest}" in message
        assert deployed.id in message


def test_the_health_of_deployments_says_so(three: Host, on: On, lost: Lost, spoil: Callable[[Path], None]) -> None:
    on(three, "migrate", ok=True)
    before = {row["id"]: row["health"] for row in on(three, "deployments", "--json").result["deployments"]}
    spoil(content(three.repo, lost.object))
    rows = on(three, "deployments", "--json").result["deployments"]
    for row in rows:
        mine = [one for one in row["health"] if one["code"] == "content-missing"]
        assert [one for one in row["health"] if one not in mine] == before[row["id"]]
        assert bool(mine) == (row["id"] in {three.id(name) for name in lost.deployments})
        assert all(lost.file in one["message"] for one in mine)


def test_no_new_name_is_made_for_it_and_show_says_so(
    three: Host, on: On, within: On, lost: Lost, spoil: Callable[[Path], None]
) -> None:
    targets = [f"@{three.pool.images[name].manifest}" for name in lost.deployments] + list(lost.apps)
    assert all(within(three, "show", target, "--json").result["missing"] == [] for target in targets)
    spoil(content(three.repo, lost.object))
    before = names(three.repo, "streams/refs/oci")
    for target in targets:
        said = within(three, "create", "new", target)
        assert said.status == 4
        assert lost.file in said.err
        [missing] = within(three, "show", target, "--json").result["missing"]
        assert lost.file in missing
        assert lost.file in within(three, "show", target).out
    for name in lost.deployments:
        said = within(three, "create", "--deployment", three.id(name), f"@{three.pool.images[name].manifest}")
        assert said.status == 4
        assert lost.file in said.err
    assert names(three.repo, "streams/refs/oci") == before
    whole = next(tag for tag in three.pool.apps if tag not in lost.apps) if len(lost.apps) < 2 else None
    if whole is not None:
        within(three, "create", "whole", whole, ok=True)


def test_migrating_keeps_what_is_there_and_says_so(three: Host, on: On, spoil: Callable[[Path], None]) -> None:
    lost = content_of(three, "boot/extra.txt")
    spoil(content(three.repo, lost.object))
    ids = {three.id(name) for name in lost.deployments}
    for results in ({"migrate"}, {"damaged"}):  # before its refs are there, and with them
        said = on(three, "migrate", "--json")
        rows = {row["id"]: row for row in said.json["result"]["deployments"]}
        assert {rows[name]["result"] for name in ids} == results
        assert all(lost.file in rows[name]["reason"] for name in ids)
        assert all(lost.file not in row["reason"] for name, row in rows.items() if name not in ids)
        assert said.status == (4 if results == {"damaged"} else 0)
    assert lost.file in on(three, "migrate", "--dry-run").out


@pytest.mark.parametrize("gone", [removed, directory_removed])
def test_a_collection_warns_and_leaves_the_rest_of_the_image(
    three: Host, hosts_of: Hosts, on: On, lost: Lost, gone: Callable[[Path], None]
) -> None:
    whole = fill_three(hosts_of())
    for host in (whole, three):
        on(host, "migrate", ok=True)
        (host.repo / "streams/refs/oci/quay.io%2Fapps%2Fdb:1").unlink()  # something to collect
    settle()
    assert on(whole, "gc", "--json").json["warnings"] == []
    gone(content(three.repo, lost.object))
    settle()
    for one in ("--dry-run",), ():
        said = on(three, "gc", "--json", *one)
        assert said.status == 0
        warnings = [warning for warning in said.json["warnings"] if warning["code"] == "content-missing"]
        assert warnings
        assert all(lost.file in warning["facts"]["what"] for warning in warnings)
        refs = {ref for warning in warnings for ref in warning["facts"]["refs"]}
        for name in lost.deployments:
            assert f"streams/refs/cfs-tags/deployments/{three.id(name)}" in refs
        assert ("streams/refs/oci/quay.io%2Fapps%2Fweb:1" in refs) == (WEB in lost.apps)
        assert said.json["result"]["objects"] > 0
    for name in lost.deployments:
        assert set(three.pool.images[name].streams) <= names(three.repo, "streams")
        assert {three.id(name), three.pool.images[name].plain} <= set(object_paths(three.repo))
    assert three.repo.joinpath(f"streams/oci-manifest-{three.pool.apps[WEB].manifest_digest}").is_symlink()
    assert set(object_paths(three.repo)) == set(object_paths(whole.repo)) - {lost.object}, "what a whole host keeps stays here"
    assert on(three, "gc", "--dry-run").out.startswith("0 objects")


def test_a_whole_host_is_not_warned_about(three: Host, on: On, within: On) -> None:
    on(three, "migrate", ok=True)
    assert on(three, "gc", "--json").json["warnings"] == []
    assert within(three, "fsck", "--json").status == 0


def test_an_app_that_lacks_content_is_not_bound(three: Host, on: On, tmp_path: Path, cfsctl: Cfsctl) -> None:
    """The quadlet of a bound app stands in the deployment's image; what the repository has of the app is not whole."""
    from cfs_tags import Repository
    from cfs_tags.host.bound import _whole
    from cfs_tags.values import Digest

    lost = content_of(three, "usr/bin/web")
    digest = Digest.parse(three.pool.apps[WEB].manifest_digest)
    with Repository.open(three.repo) as repo:
        assert _whole(repo, digest) == (digest, "")
        removed(content(three.repo, lost.object))
        found, reason = _whole(repo, digest)
    assert found is None
    assert lost.file in reason


def test_files_are_named_however_the_tar_says_their_names(
    three: Host, on: On, within: On, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    """Long names are in headers of their own, and some files have the same content."""
    parents = ["usr/share" + "/directory-with-a-name" * depth for depth in range(1, 9)]
    long = f"{parents[-1]}/file"
    data = random_bytes("twice", 700)
    layer = Layer(
        [file(long, data), file("usr/share/again", data), file("usr/share/odd\udcff name\n", random_bytes("odd", 900))]
    )
    image = build_image(tmp_path / "layout", "long", [*three.pool.apps[WEB].layers[:1], layer])
    within(three, "import", f"oci:{tmp_path / 'layout'}:long", "long", ok=True)
    for content_of_it, name in ((data, long), (random_bytes("odd", 900), "usr/share/odd")):
        path = content(three.repo, str(fsverity.measure(content_of_it, Algorithm.SHA512)))
        whole = path.read_bytes()
        path.unlink()
        [missing] = within(three, "show", "long", "--json").result["missing"]
        assert name in missing or "usr/share/again" in missing
        said = within(three, "fsck")
        assert "\x1b" not in said.out
        assert name in said.out or "usr/share/again" in said.out
        path.write_bytes(whole)
    link_of(three.repo, "streams/refs/oci/other", f"oci-manifest-{image.manifest_digest}")
    assert within(three, "show", "other", "--json").result["missing"] == []
