"""Where the real cfsctl loses something or leaves something behind, we do not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository, gc, why
from cfs_tags.df import measure
from cfs_tags.errors import BrokenRoots
from cfs_tags.fsck.check import fsck
from cfs_tags.repo import fsops
from fsck.damage import failing
from support.collecting import collect, plan
from support.garbage import (
    add_stream,
    content,
    copy_of,
    link_of,
    manifest_of,
    model,
    names,
    object_of,
    object_paths,
    outside_state,
    parse_stream,
    settle,
)
from support.interrupt import kill_after
from support.peers import Cfsctl
from support.peers_beside import hold_shared
from support.stock import before_call, refs
from support.sysroots import fill_twins

Fresh = Callable[..., Path]
ONE = "streams/refs/oci/one"


def named(repo: Path, object_id: str) -> dict[str, str]:
    return parse_stream(content(repo, object_id).read_bytes(), 64).named


def config_of(repo: Path, tag: str) -> str:
    """The config's splitstream object of a tag."""
    found = named(repo, object_of(repo, f"streams/refs/oci/{tag}"))
    return next(target for key, target in found.items() if key.startswith("config:"))


def refused(path: Path, **options: object) -> BrokenRoots:
    """Neither plan nor run goes on, for the same reasons, and nothing is deleted."""
    before = outside_state(path)
    with pytest.raises(BrokenRoots) as planned:
        plan(path, **options)
    with pytest.raises(BrokenRoots) as done:
        collect(path, **options)
    assert outside_state(path) == before
    assert planned.value.problems == done.value.problems
    assert done.value.status == 6
    return done.value


# -- what is missing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["link", "object"])
def test_a_missing_config_stops_us_and_costs_more_with_cfsctl(fresh: Fresh, cfsctl: Cfsctl, gone: str) -> None:
    mine, theirs = fresh(), fresh()
    for path in (mine, theirs):
        config = config_of(path, "one")
        link = next(name for name in names(path, "streams") if object_of(path, f"streams/{name}") == config)
        (path / "streams" / link).unlink()
        if gone == "object":
            content(path, config).unlink()
    raw = parse_stream(content(fresh(), config).read_bytes(), 64)
    erofs = {target for key, target in raw.named.items() if key.startswith("composefs.image")}
    assert erofs | raw.objects <= set(object_paths(theirs))

    cfsctl(theirs, "--no-upgrade", "gc")

    assert not (erofs | raw.objects) & set(object_paths(theirs)) - set(
        model(theirs, cfsctl, [ONE]).objects if gone == "link" else ()
    )
    if gone == "link":  # the object is there and followed
        collect(mine)
        assert erofs | raw.objects <= set(object_paths(mine))
        return
    error = refused(mine)
    assert [needed for _, needed in error.problems] == [(ONE,)]
    assert config[:12] in error.problems[0][0]


@pytest.mark.parametrize("gone", ["link", "object"])
def test_a_missing_layer_stops_us_and_loses_its_files_with_cfsctl(fresh: Fresh, cfsctl: Cfsctl, gone: str) -> None:
    mine, theirs = fresh(), fresh()
    whole = fresh()
    layers = [target for key, target in named(whole, config_of(whole, "three")).items() if key.startswith("sha256:")]
    own = [one for one in layers if one not in named(whole, config_of(whole, "one")).values()]
    assert len(own) == 1
    files = parse_stream(content(whole, own[0]).read_bytes(), 64).objects
    for path in (mine, theirs):
        link = next(name for name in names(path, "streams") if object_of(path, f"streams/{name}") == own[0])
        (path / "streams" / link).unlink()
        if gone == "object":
            content(path, own[0]).unlink()

    cfsctl(theirs, "--no-upgrade", "gc")

    assert files
    assert not files & set(object_paths(theirs))
    if gone == "link":
        collect(mine)
        assert files <= set(object_paths(mine))
        return
    assert {needed for _, needed in refused(mine).problems} == {("streams/refs/oci/three",)}


def test_all_reasons_are_given_at_once_with_the_refs_that_they_belong_to(repo: Path) -> None:
    content(repo, config_of(repo, "one")).unlink()
    link_of(repo, "streams/refs/also/one", f"oci-manifest-{manifest_of(repo, 'one')}")
    link_of(repo, "streams/refs/oci/dangling", f"oci-manifest-sha256:{'00' * 32}")
    link_of(repo, "images/refs/dangling", "0" * 128)
    (repo / "streams/refs/a-file").write_text("no link")
    (repo / "streams/refs/absolute").symlink_to("/streams/oci-manifest")
    (repo / "streams/refs/nested").symlink_to("oci/one")
    shared = set(named(repo, config_of(repo, "two")).items()) & set(named(repo, config_of(repo, "three")).items())
    runtime = next(target for key, target in sorted(shared) if key.startswith("sha256:"))
    place = content(repo, runtime)
    data = bytearray(place.read_bytes())
    data[:11] = b"NoSplStream"
    place.unlink()
    place.write_bytes(data)
    image = content(repo, object_of(repo, "images/refs/tree/named"))
    image.unlink()
    image.write_bytes(b"no image")

    error = refused(repo)

    found = {needed for _, needed in error.problems}
    assert found >= {
        ("streams/refs/also/one", ONE),
        ("streams/refs/oci/dangling",),
        ("images/refs/dangling",),
        ("streams/refs/a-file",),
        ("streams/refs/absolute",),
        ("streams/refs/nested",),
        ("images/refs/tree/named", "streams/refs/ostree/stable/x86_64"),
    }
    assert any("streams/refs/oci/three" in needed and "streams/refs/oci/two" in needed for needed in found)


@pytest.mark.parametrize("tree", ["streams", "images"])
def test_an_object_longer_than_any_is_refused_before_it_is_read(repo: Path, tree: str) -> None:
    """It may take no room on the disk, and all the memory that there is."""
    ref = {"streams": ONE, "images": "images/refs/tree/named"}[tree]
    place = content(repo, object_of(repo, ref))
    data = place.read_bytes()
    place.unlink()  # the copies share it
    place.write_bytes(data)
    os.truncate(place, 1 << 40)

    (found,) = [message for message, needed in refused(repo).problems if ref in needed]

    assert f"at most {1 << 30} bytes, found {1 << 40} bytes" in found
    with Repository.open(repo) as opened:
        assert any(f"{1 << 40} bytes" in problem for problem in measure(opened).problems)
        assert any(f"{1 << 40} bytes" in problem for problem in why.explain(opened, "two").problems)
        assert [one.code for one in fsck(opened).findings if f"{1 << 40} bytes" in one.message]


def test_a_dangling_ref_stops_cfsctl_for_good_and_us_unless_told_to_go_on(fresh: Fresh, cfsctl: Cfsctl) -> None:
    path = fresh()
    link_of(path, "streams/refs/oci/dangling", f"oci-manifest-sha256:{'00' * 32}")
    (path / ONE).unlink()
    assert cfsctl(path, "--no-upgrade", "gc", check=False).returncode != 0
    refused(path)

    done = collect(path, keep_broken=True)

    assert done.swept.objects > 0
    assert [problem.refs for problem in done.problems] == [("streams/refs/oci/dangling",)]
    (path / "streams/refs/oci/dangling").unlink()
    assert set(object_paths(path)) >= model(path, cfsctl).objects, "streams without a name stay: one may be what it led to"
    collect(path)
    assert set(object_paths(path)) == model(path, cfsctl).objects


def test_what_a_broken_part_still_leads_to_stays_with_keep_broken(repo: Path, cfsctl: Cfsctl) -> None:
    kept = model(repo, cfsctl).objects
    config = config_of(repo, "three")
    lost = {config} | set(named(repo, config).values()) | parse_stream(content(repo, config).read_bytes(), 64).objects
    layers = {target for key, target in named(repo, object_of(repo, "streams/refs/oci/three")).items() if key[:6] == "sha256"}
    files = {one for layer in layers for one in parse_stream(content(repo, layer).read_bytes(), 64).objects}
    content(repo, config).unlink()
    add_stream(repo, "unneeded", objects=[b"x" * 500])
    settle()

    assert plan(repo, keep_broken=True).swept == collect(repo, keep_broken=True).swept

    left = set(object_paths(repo))
    assert kept - lost <= left
    assert layers | files <= left
    assert "unneeded" not in names(repo, "streams")


def test_a_damaged_image_keeps_what_it_still_names(repo: Path, cfsctl: Cfsctl) -> None:
    name = os.path.basename(os.readlink(repo / "images/refs/tree/named"))
    files = model(repo, cfsctl, ["images/refs/tree/named"]).objects
    place = content(repo, object_of(repo, "images/refs/tree/named"))
    data = bytearray(place.read_bytes())
    data[0] ^= 1
    place.unlink()
    place.write_bytes(data)
    for ref in refs(repo):
        if ref != "images/refs/tree/named":
            (repo / ref).unlink()
    settle()
    refused(repo)

    collect(repo, keep_broken=True)

    assert set(object_paths(repo)) == files
    assert names(repo, "images") == {name}


# -- two manifests with one config -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["annotated", "compressed"])
def test_the_first_of_two_manifests_with_one_config_stays_whole(cfsctl: Cfsctl, tmp_path: Path, kind: str) -> None:
    pool = fill_twins(cfsctl, tmp_path, kind, "two")
    second = next(ref for ref in refs(pool.repo) if pool.images["two"].manifest in ref)
    (pool.repo / second).unlink()
    mine, theirs = (copy_of(pool.repo, tmp_path / name) for name in ("mine", "theirs"))
    wanted = model(mine, cfsctl).objects

    cfsctl(theirs, "--no-upgrade", "gc")
    collect(mine)

    assert wanted <= set(object_paths(mine))
    assert wanted - set(object_paths(theirs)), "cfsctl loses the raw config"
    assert collect(mine).swept == gc.Swept()


# -- a kill in the middle ----------------------------------------------------------------------------------------------


def broken_links(repo: Path) -> list[str]:
    return [
        f"{tree}/{name}" for tree in ("streams", "images") for name in names(repo, tree) if not (repo / tree / name).exists()
    ]


def test_a_kill_leaves_broken_links_with_cfsctl_and_none_with_us(fresh: Fresh, cfsctl: Cfsctl) -> None:
    mine, theirs = fresh(), fresh()
    for path in (mine, theirs):
        for tag in ("one", "two", "three"):
            (path / "streams/refs/oci" / tag).unlink()
    # strace is not everywhere: an object that cannot be deleted stops cfsctl where a kill might
    dead = sorted(set(object_paths(theirs)) - model(theirs, cfsctl).objects)
    last = next(one for one in reversed(dead) if one[:2] != dead[0][:2])
    content(theirs, last).unlink()
    content(theirs, last).mkdir()
    assert cfsctl(theirs, "--no-upgrade", "gc", check=False).returncode != 0
    assert broken_links(theirs)
    assert cfsctl(theirs, "--no-upgrade", "fsck", check=False).returncode != 0

    def act() -> None:
        collect(mine)

    number = 0
    while kill_after(number, act):
        assert broken_links(mine) == []
        number = 3 * number + 1
    cfsctl(mine, "--no-upgrade", "fsck")


# -- what is healthy is never refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"])
def test_a_repository_is_fine_after_every_command_of_cfsctl(cfsctl: Cfsctl, tmp_path: Path, algorithm: str) -> None:
    from support.garbage import add_foreign
    from support.images import app_image, build_artifact, host_image, pull_image, static_image

    layout = tmp_path / "layout"
    one, host = app_image(layout, "one"), host_image(layout, "os")
    build_artifact(layout, "sbom", [("text/plain", b"x" * 100)], subject=one)
    repo = tmp_path / "composefs"
    repo.mkdir()
    cfsctl(None, "init", "--insecure", "--algorithm", f"fsverity-{algorithm}-12", repo)
    tree = tmp_path / "tree"
    (tree / "usr").mkdir(parents=True)
    (tree / "usr/file").write_bytes(b"f" * 5000)
    other = tmp_path / "other"
    other.mkdir()
    cfsctl(None, "init", "--insecure", "--algorithm", f"fsverity-{algorithm}-12", other)
    static = static_image(layout)
    layer = host.layers[0]
    boot = tmp_path / "boot"
    boot.mkdir()

    def held() -> None:
        with hold_shared(cfsctl, repo):
            assert failing(repo) == []

    def mounted(*words: str) -> None:
        """Not everywhere may it be mounted: then it fails, and must leave nothing behind all the same."""
        if cfsctl(repo, *words, boot, check=False).returncode == 0:
            subprocess.run(["umount", "-l", boot], check=True)

    steps: list[Callable[[], object]] = [
        lambda: pull_image(cfsctl, repo, one, "one"),
        lambda: cfsctl(repo, "oci", "pull", "--bootable", one.source, "one", check=False),
        lambda: pull_image(cfsctl, repo, host, "os"),
        lambda: pull_image(cfsctl, repo, host, "os", bootable=True),
        lambda: cfsctl(repo, "--erofs-version", "2", "oci", "pull", "--bootable", host.source, "os2", check=False),
        lambda: cfsctl(repo, "oci", "pull", static.source, "static", check=False),
        lambda: cfsctl(repo, "oci", "tag", one.manifest_digest, "again/and%again"),
        lambda: cfsctl(repo, "oci", "untag", "one"),
        lambda: cfsctl(repo, "oci", "import-layer", layer.diff_id, "layers/name", input=layer.tar),
        lambda: cfsctl(repo, "create-image", tree, "some/name"),
        lambda: cfsctl(repo, "create-image", tree),
        lambda: cfsctl(repo, "--erofs-version", "2", "create-image", tree, "version2"),
        lambda: cfsctl(repo, "--erofs-version", "0", "create-image", "--bootable", tree, "version0", check=False),
        lambda: cfsctl(
            repo, "import-image", "imported", input=content(repo, object_of(repo, "images/refs/some/name")).read_bytes()
        ),
        lambda: cfsctl(other, "oci", "copy", "--from", repo, "os", "--name", "copied", check=False),
        lambda: cfsctl(repo, "oci", "prepare-boot", "os", "--bootdir", boot, check=False),
        lambda: cfsctl(repo, "image-objects", "refs/some/name"),
        lambda: cfsctl(repo, "dump-files", "refs/some/name", "/usr/file"),
        lambda: cfsctl(repo, "compute-id", tree),
        lambda: cfsctl(repo, "create-dumpfile", tree),
        lambda: cfsctl(repo, "cat", f"oci-layer-{layer.diff_id}", check=False),
        lambda: cfsctl(repo, "images"),
        lambda: held(),
        lambda: mounted("mount", "refs/some/name"),
        lambda: mounted("oci", "mount", "os"),
        lambda: cfsctl(repo, "gc"),
        lambda: cfsctl(repo, "gc", "-r", "nothing"),
        lambda: cfsctl(repo, "fsck"),
        lambda: cfsctl(repo, "oci", "fsck"),
        lambda: cfsctl(repo, "oci", "untag", "again/and%again"),
        lambda: cfsctl(repo, "oci", "untag", "os"),
    ]
    for step in steps:  # prepare-boot makes a state directory beside the repository
        step()
        for path in (repo, other):
            plan(path, no_sysroot=True)
            assert failing(path, content=True) == []
    pull_image(cfsctl, repo, one, "one")
    cfsctl(repo, "create-image", tree, "tree/named")
    add_foreign(repo)
    plan(repo, no_sysroot=True)
    settle()
    theirs = copy_of(repo, tmp_path / "theirs")
    collect(repo, no_sysroot=True)
    cfsctl(theirs, "--no-upgrade", "gc")
    assert outside_state(repo) == outside_state(theirs)


@pytest.mark.parametrize("host", ["a", "b", "e", "g2", "h", "i3", "w", "w2"])
def test_the_repositories_of_recorded_hosts_are_collected_as_cfsctl_does(
    bootc_host: Callable[[str], Path], cfsctl: Cfsctl, tmp_path: Path, host: str
) -> None:
    mine = bootc_host(host) / "composefs"
    theirs = copy_of(mine, tmp_path / "theirs")
    cfsctl(theirs, "gc")
    settle()
    collect(mine, no_sysroot=True)
    assert outside_state(mine) == outside_state(theirs)


# -- races -------------------------------------------------------------------------------------------------------------


def test_an_object_that_is_written_after_the_marks_stays(repo: Path) -> None:
    (repo / ONE).unlink()
    made: list[Path] = []

    def write() -> None:
        made.append(repo / "objects/aa" / ("b" * 126))
        made[0].parent.mkdir(exist_ok=True)
        made[0].write_bytes(b"unlinked as yet")

    with before_call("remove", write):
        done = collect(repo)

    assert done.swept.objects > 0
    assert made[0].exists()
    settle()
    collect(repo)
    assert not made[0].exists()


def test_the_lock_is_kept_until_nobody_deletes_any_more(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in one thread stops the collection; the others may delete under the lock alone."""
    from threading import Event
    from time import sleep

    for tag in ("one", "two", "three"):
        (repo / "streams/refs/oci" / tag).unlink()
    original = fsops.remove
    failed = Event()
    without_lock = []

    with Repository.open(repo, write=True) as opened:
        from cfs_tags.repo.lock import Lock

        lock = Lock.of(opened.fd, ".", opened.path)

        def remove(dir_fd: int, path: str) -> None:
            if "/" in path:
                return original(dir_fd, path)
            if not failed.is_set():
                failed.set()
                raise OSError(5, "Input/output error")
            sleep(0.01)
            if lock.mode != "exclusive":
                without_lock.append(path)
            return original(dir_fd, path)

        monkeypatch.setattr(fsops, "remove", remove)
        with pytest.raises(Exception, match="Input/output error"):
            gc.collect(opened)
        sleep(0.3)
    assert without_lock == []
