"""What the peers leave is healthy: nothing is found that makes a check fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fsck.damage import APP, OTHER, check, codes, failing, old_headers
from support.images import (
    Cfsctl,
    Layer,
    app_image,
    base_layer,
    build_image,
    directory,
    file,
    hardlink,
    host_image,
    pull_image,
    random_bytes,
    skopeo_copy,
    static_image,
    symlink,
    umoci_image,
    umoci_truncated_image,
    whiteout,
)
from support.peers_beside import hold_exclusive, hold_shared
from support.tars import RawLayer
from support.trees import tree

HOSTS = sorted(path.name.removesuffix(".tar.gz") for path in (Path(__file__).parent.parent / "data" / "hosts").glob("*.tar.gz"))


@pytest.mark.parametrize("name", HOSTS)
def test_a_recorded_host_is_healthy_before_and_after_collection(
    bootc_host: Callable[[str], Path], cfsctl: Cfsctl, name: str
) -> None:
    repo = bootc_host(name) / "composefs"

    assert failing(repo, content=True) == []
    cfsctl(repo, "gc")
    assert failing(repo, content=True) == []


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"], indirect=True)
def test_what_cfsctl_and_this_program_made_is_healthy(repo: Path, cfsctl: Cfsctl) -> None:
    report = check(repo, content=True)

    assert report.findings == ()
    assert report.checked.content == report.checked.objects == len(list((repo / "objects").glob("*/*")))
    said = json.loads(cfsctl(repo, "fsck", "--json").stdout)
    assert (report.checked.streams, report.checked.images) == (said["streams_checked"], said["images_checked"])


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"], indirect=True)
def test_processes_find_the_same(repo: Path) -> None:
    (repo / "streams/refs/oci/gone").symlink_to("../../oci-manifest-sha256:" + "0" * 64)

    one, two = check(repo, content=True), check(repo, content=True, jobs=3)

    assert one.findings == two.findings
    assert one.checked == two.checked


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"], indirect=True)
def test_streams_with_old_headers_are_healthy(repo: Path, cfsctl: Cfsctl) -> None:
    old_headers(repo)

    cfsctl(repo, "fsck")
    assert failing(repo, content=True) == []


def test_nothing_is_written(repo: Path) -> None:
    before = tree(repo)

    check(repo, content=True)

    assert tree(repo) == before


def test_what_is_left_by_untag_and_collection_is_healthy(repo: Path, cfsctl: Cfsctl) -> None:
    cfsctl(repo, "oci", "untag", APP)
    assert failing(repo, content=True) == []
    cfsctl(repo, "gc")
    assert failing(repo, content=True) == []
    cfsctl(repo, "oci", "untag", OTHER)
    cfsctl(repo, "gc")
    assert failing(repo, content=True) == []


def test_every_kind_of_file_and_compression_is_healthy(new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path) -> None:
    repo = new_repo()
    layout = tmp_path / "layout"
    first = Layer(
        [
            *map(directory, ("usr", "usr/lib", "usr/empty")),
            file("usr/empty-file"),
            file("usr/inline", b"x" * 64),
            file("usr/outside", b"x" * 65),
            file("usr/block", random_bytes("block", 4096)),
            file("usr/large", random_bytes("large", 3_000_000)),
            file("usr/lib/ünïcode", random_bytes("unicode", 100)),
            file("usr/attributes", random_bytes("attributes", 100)).with_xattrs(user__x=b"value"),
            hardlink("usr/hard", "usr/outside"),
            symlink("usr/soft", "outside"),
        ],
        "none",
    )
    second = Layer([directory("usr"), whiteout("usr/block"), file("usr/more", random_bytes("more", 200))], "zstd")
    pull_image(cfsctl, repo, build_image(layout, "kinds", [first, second]), "kinds:1")
    pull_image(cfsctl, repo, build_image(layout, "empty", [Layer([directory("usr")])]), "empty:1")
    static = static_image(layout)
    assert cfsctl(repo, "oci", "pull", f"oci:{layout}:static", "static", check=False).returncode != 0
    assert (repo / f"streams/oci-manifest-{static.manifest_digest}").is_symlink()

    assert failing(repo, content=True) == []


def test_any_number_of_zeros_may_follow_the_end_of_a_tar(repo: Path, cfsctl: Cfsctl, tmp_path: Path) -> None:
    """As it is padded to the block of a tape; in a stream they take next to no room."""
    layers = [base_layer(), RawLayer(base_layer("padded").tar + bytes(100 << 20))]
    pull_image(cfsctl, repo, build_image(tmp_path / "padded", "padded", layers), "padded")

    assert failing(repo, content=True) == []


def test_two_manifests_with_one_config_are_healthy(new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path) -> None:
    repo = new_repo()
    layout = tmp_path / "layout"
    host = host_image(layout, "41.1")
    pull_image(cfsctl, repo, host, "first", bootable=True)
    again = build_image(layout, "again", host.layers, config=host.config, annotations={"made": "again"})
    assert again.config_digest == host.config_digest
    pull_image(cfsctl, repo, again, "second", bootable=True)

    assert failing(repo, content=True) == []
    cfsctl(repo, "gc")
    report = check(repo, content=True)
    assert [one for one in report.findings if one.fails] == []


def test_images_that_skopeo_and_umoci_made_are_healthy(
    new_repo: Callable[..., Path], cfsctl: Cfsctl, skopeo: Path, umoci: Path, tmp_path: Path
) -> None:
    repo = new_repo()
    layout = tmp_path / "layout"

    def change(root: Path) -> None:
        (root / "usr").mkdir()
        (root / "usr/file").write_bytes(random_bytes("umoci", 500))

    umoci_image(umoci, layout, "umoci", change, tmp_path / "work")
    cfsctl(repo, "oci", "pull", f"oci:{layout}:umoci", "umoci")
    app = app_image(layout, "app")
    skopeo_copy(skopeo, app.source, f"oci:{tmp_path / 'zstd'}:app", "--dest-compress-format=zstd")
    cfsctl(repo, "oci", "pull", f"oci:{tmp_path / 'zstd'}:app", "zstd")
    content = tmp_path / "content"
    content.mkdir()
    (content / "file").write_bytes(random_bytes("cut", 700))
    umoci_truncated_image(umoci, tmp_path / "cut", "cut", content)
    cfsctl(repo, "oci", "pull", f"oci:{tmp_path / 'cut'}:cut", "cut", check=False)

    assert failing(repo, content=True) == []


def test_foreign_things_at_the_top_are_no_finding(repo: Path) -> None:
    (repo / "bootc/storage").mkdir(parents=True)
    (repo / "notes.txt").write_text("mine")
    (repo / "objects/README").write_text("mine")

    assert check(repo).findings == ()


def test_refs_of_others_are_healthy_where_they_lead_somewhere(repo: Path) -> None:
    for path, target in (("ostree/os/stable", "../../../"), ("other", "../")):
        ref = repo / "streams/refs" / path
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.symlink_to(target + next((repo / "streams").glob("oci-layer-*")).name)

    assert failing(repo) == []


def test_a_repository_without_metadata_is_healthy(repo: Path) -> None:
    (repo / "meta.json").unlink()

    report = check(repo)

    assert codes(report.findings) == {"no-metadata": ["meta.json"]}


def test_a_pull_may_be_at_work_meanwhile(repo: Path, cfsctl: Cfsctl) -> None:
    with hold_shared(cfsctl, repo):
        assert check(repo).findings == ()


def test_a_collector_at_work_is_waited_for(repo: Path) -> None:
    from cfs_tags import Repository
    from cfs_tags.errors import LockTimeout
    from cfs_tags.fsck.check import fsck

    with hold_exclusive(repo), Repository.open(repo) as opened, pytest.raises(LockTimeout):
        fsck(opened, timeout=0.05)


def test_an_empty_repository_is_healthy(new_repo: Callable[..., Path]) -> None:
    assert check(new_repo(), content=True).findings == ()
