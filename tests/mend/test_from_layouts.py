"""``fsck --repair --from``: what is lost comes back from a source that has it, and nothing else is fetched."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.apps.importing.choose import Options
from cfs_tags.cli.main import main
from cfs_tags.repo import beneath, fsops, images
from cfs_tags.values import Digest
from fsck.damage import flip
from mend.conftest import Repair
from support.images import app_image, base_layer, build_index, host_image, pull_image
from support.importing import export_image, import_image
from support.mending import Layers, assert_whole, build, everything, layers, objects
from support.peers import Cfsctl
from support.stock import hard_copy
from support.trees import tree

SEED = int(os.environ.get("CFS_TAGS_SEED", "0"))

# -- what is judged ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", range(12))
def test_what_is_lost_at_random_comes_back_and_only_layers_that_lack_something_are_fetched(
    attempt: int, repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl
) -> None:
    """1 % of all objects, and as many again of the splitstreams and links, which are few here."""
    whole = Layers(repo)
    chance = random.Random(SEED + attempt)
    candidates = everything(repo)
    streams = [path for path in candidates if path.is_symlink() or path.read_bytes()[:11] == b"SplitStream"]
    lost = {*chance.sample(candidates, max(1, len(candidates) // 100)), *chance.sample(streams, 1 + attempt % 4)}
    for path in lost:
        path.unlink()
    lacking = whole.lacking(repo)

    done = repair(repo, "--from", f"oci:{layout}")

    assert_whole(cfsctl, repo)
    assert done["mended"]["left"] == []
    fetched = sum(one["bytes"] for one in done["mended"]["fetched"])
    assert fetched <= 1.2 * sum(lacking.values()), (fetched, lacking)
    print(f"attempt {attempt}: {len(lost)} lost, {fetched} bytes fetched, layers that lacked something {sum(lacking.values())}")


def test_what_an_artifact_consists_of_comes_back_like_a_layer(repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl) -> None:
    whole = Layers(repo)
    (lost,) = (path for path in objects(repo) if path.read_bytes() == b"signed" * 20)
    lost.unlink()
    lacking = whole.lacking(repo)

    done = repair(repo, "--from", f"oci:{layout}")

    assert list(lacking.values()) == [120]
    assert {one["digest"]: one["size"] for one in done["mended"]["layers"]} == lacking
    assert_whole(cfsctl, repo)


def test_each_object_and_each_link_alone_comes_back(
    repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    before = tree(repo, ("cfs-tags",))
    chance = random.Random(SEED)
    for number, path in enumerate(chance.sample(everything(repo), 25)):
        damaged = hard_copy(repo, tmp_path / f"{number}")
        (damaged / path.relative_to(repo)).unlink()
        repair(damaged, "--from", f"oci:{layout}")
        assert_whole(cfsctl, damaged)
        after = tree(damaged, ("cfs-tags",))
        assert {name for name in before if name.startswith(("streams/refs", "images/")) and name not in after} == set()


def test_tags_alone_are_enough(repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl) -> None:
    """All content is gone; the EROFS image of the deployment is made again with the id that its ref says."""
    for path in everything(repo):
        path.unlink()
    done = repair(repo, "--from", f"oci:{layout}")
    assert done["mended"]["left"] == []
    assert_whole(cfsctl, repo)
    with Repository.open(repo) as opened:
        deployment = next((repo / "images/refs/cfs-tags/deployments").iterdir()).name
        assert deployment in opened.image("localhost/os").erofs.values()


@pytest.mark.parametrize("attempt", range(3))
def test_with_content_what_has_wrong_bytes_is_fetched_too(
    attempt: int, repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl
) -> None:
    """But for splitstreams that cfsctl has compressed in its own way: new ones come in their place, and a collection takes the
    old."""
    candidates = [path for path in objects(repo) if path.stat().st_size and path.read_bytes()[:11] != b"SplitStream"]
    for path in random.Random(SEED + attempt).sample(candidates, 5):
        flip(path, path.stat().st_size // 2)
    done = repair(repo, "--content", "--from", f"oci:{layout}")
    assert done["mended"]["left"] == []
    wrong = [one for one in done["findings"] if one["code"] == "wrong-object-digest"]
    assert len(wrong) == 5
    assert all(one["repaired"] for one in wrong)
    assert_whole(cfsctl, repo)


@pytest.mark.parametrize("version", [1, 2])  # cfsctl 0.9.4 makes no repository for version 0
def test_an_erofs_image_with_wrong_bytes_is_made_again_and_replaced_when_the_new_one_is_on_disk(
    version: int, tmp_path: Path, repair: Repair, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, layout = tmp_path / "versions", tmp_path / "os"
    cfsctl(None, "init", "--insecure", "--erofs-version", str(version), repo)
    image = host_image(layout, "41.1", shared=[base_layer("os")])
    pull_image(cfsctl, repo, image, "localhost/os", bootable=True)
    with Repository.open(repo) as opened:
        erofs = opened.image("localhost/os").erofs
    paths = {
        repo / "objects" / name[:2] / name[2:]: (repo / "objects" / name[:2] / name[2:]).read_bytes() for name in erofs.values()
    }
    assert len(paths) == 2
    for path in paths:
        flip(path, path.stat().st_size // 2)
    synced, original = [], fsops.sync

    def sync(dir_fd: int, path: str = ".") -> None:
        if "incoming" in path:
            assert not set(paths.values()) <= {one.read_bytes() for one in paths}
            synced.append(path)
        original(dir_fd, path)

    monkeypatch.setattr(fsops, "sync", sync)
    done = repair(repo, "--content", "--from", image.source)
    assert done["mended"]["left"] == []
    wrong = [one for one in done["findings"] if one["code"] == "wrong-object-digest"]
    assert [one["repaired"] for one in wrong] == [True, True]
    assert {path: path.read_bytes() for path in paths} == paths
    assert len(synced) >= 2
    with Repository.open(repo) as opened:
        assert opened.image("localhost/os").erofs == erofs
    assert_whole(cfsctl, repo)


def test_a_pin_keeps_beside_what_has_come_back_and_no_damaged_bytes(
    new_repo: Callable[..., Path], tmp_path: Path, repair: Repair, cfsctl: Cfsctl
) -> None:
    repo = new_repo()
    image = host_image(tmp_path / "os", "41.1", boot_content=True)
    pull_image(cfsctl, repo, image, "localhost/os", bootable=True)
    with Repository.open(repo, write=True) as opened:
        opened.pins.pin("localhost/os", name="kept")
    beside = list(repo.glob("cfs-tags/pins/*/objects/*"))
    assert beside
    for path in beside:
        with path.open("r+b") as file:  # under both names
            file.write(b"damaged")
    done = repair(repo, "--content", "--from", image.source)
    assert all(one["repaired"] for one in done["findings"])
    for path in beside:
        assert path.samefile(repo / "objects" / path.name[:2] / path.name[2:])
    assert_whole(cfsctl, repo)


def test_what_the_system_does_not_read_any_more_comes_back(
    repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = max(objects(repo), key=lambda one: one.stat().st_size)
    number, original = path.stat().st_ino, beneath.open_at

    def fail(fd: int, name: str, *rest: int) -> int:
        if name.endswith(path.name) and path.stat().st_ino == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return original(fd, name, *rest)

    monkeypatch.setattr(beneath, "open_at", fail)
    done = repair(repo, "--content", "--from", f"oci:{layout}")
    assert {(one["code"], one["repaired"]) for one in done["findings"]} >= {("unreadable", True)}
    assert path.stat().st_ino != number
    assert_whole(cfsctl, repo)


@pytest.mark.parametrize("looks", [1, 2])
@pytest.mark.parametrize("kind", ["oci-manifest", "oci-config", "oci-layer"])
def test_what_the_system_does_not_read_once_is_not_fetched(
    kind: str, looks: int, repo: Path, layout: Path, repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check reads these as streams and as objects."""
    path = next((repo / "streams").glob(f"{kind}-*")).resolve()
    before = tree(repo, ("cfs-tags",))
    refused, original = [], beneath.open_at

    def refuse(fd: int, name: str, *rest: int) -> int:
        if name.endswith(path.name) and len(refused) < looks:
            refused.append(name)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return original(fd, name, *rest)

    monkeypatch.setattr(beneath, "open_at", refuse)
    done = repair(repo, "--content", "--from", f"oci:{layout}")
    assert len(refused) == looks
    assert done["mended"]["fetched"] == []
    assert tree(repo, ("cfs-tags",)) == before


def test_where_cfsctl_is_missing_an_erofs_image_with_wrong_bytes_stays_and_is_said(
    repo: Path, layout: Path, repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Repository.open(repo) as opened:
        name = next(iter(opened.image("quay.io/apps/db:1").erofs.values()))
    path = repo / "objects" / name[:2] / name[2:]
    flip(path, path.stat().st_size // 2)
    damaged = path.read_bytes()
    monkeypatch.setenv("PATH", "/nonexistent")
    done = repair(repo, "--content", "--from", f"oci:{layout}", status=6)
    assert [one["code"] for one in done["mended"]["left"]] == ["program-missing"]
    assert path.read_bytes() == damaged


def test_an_import_of_an_image_whose_erofs_image_is_lost_ends_with_it_whole_and_cfsctl_makes_that_again(
    repo: Path, layout: Path, cfsctl: Cfsctl
) -> None:
    with Repository.open(repo) as opened:
        lost = opened.image("quay.io/apps/db:1").erofs
    assert lost
    for name in lost.values():
        (repo / "objects" / name[:2] / name[2:]).unlink()
    import_image(repo, f"oci:{layout}:db", "another")
    cfsctl(repo, "gc")  # takes the links in images/ that lead to nothing
    assert_whole(cfsctl, repo)
    cfsctl(repo, "oci", "pull", f"oci:{layout}:db", "pulled")
    with Repository.open(repo) as opened:
        assert opened.image("quay.io/apps/db:1").erofs == lost
    assert_whole(cfsctl, repo)


def test_an_index_that_was_kept_comes_back_too(new_repo: Callable[..., Path], tmp_path: Path, repair: Repair) -> None:
    layout, mine = tmp_path / "layout", new_repo(tmp_path / "mine")
    images = {"amd64": app_image(layout, "one"), "arm64": app_image(layout, "two", config={"architecture": "arm64"})}
    build_index(layout, "both", images)
    import_image(mine, f"oci:{layout}:both", "app", Options(all_platforms=True, keep_index=True))
    before = tree(mine, ("cfs-tags",))
    for path in everything(mine):
        path.unlink()
    assert repair(mine, "--from", f"oci:{layout}")["mended"]["left"] == []
    assert tree(mine, ("cfs-tags",)) == before


@pytest.mark.parametrize("form", ["none", "zstd", "docker-archive"])
def test_layers_in_another_form_than_the_image_came_with_are_taken_by_what_their_tar_is(
    form: str, repo: Path, repair: Repair, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    """What ``export`` wrote has none of the blobs that the manifest names; its config says which tars its layers are."""
    compression = "zstd" if form == "zstd" else "none"
    kind = form if form.endswith("archive") else "oci"
    for name in ("web", "db"):
        export_image(repo, f"quay.io/apps/{name}:1", f"{kind}:{tmp_path}/out-{name}:quay.io/apps/{name}:1", compression)
    export_image(repo, "localhost/os", f"{kind}:{tmp_path}/out-os:os", compression)
    whole = Layers(repo)
    tars = {digest: parts for digest, parts in whole.objects.items() if whole.sizes[digest] != 120}  # no signature is exported
    for name in set[str]().union(*tars.values()):
        (repo / "objects" / name[:2] / name[2:]).unlink()
    assert whole.lacking(repo).keys() == tars.keys()
    sources = [word for name in ("web", "db", "os") for word in ("--from", f"{kind}:{tmp_path}/out-{name}")]
    assert repair(repo, *sources)["mended"]["left"] == []
    assert_whole(cfsctl, repo)


# -- what it does not do -----------------------------------------------------------------------------------------------


def test_nothing_is_fetched_where_links_alone_are_lost(repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl) -> None:
    for path in everything(repo):
        if path.is_symlink():
            path.unlink()
    done = repair(repo, "--from", f"oci:{layout}")
    assert done["mended"]["fetched"] == []
    assert_whole(cfsctl, repo)


def test_a_dry_run_says_what_would_be_fetched_and_writes_nothing(repo: Path, layout: Path, repair: Repair) -> None:
    whole = Layers(repo)
    for path in random.Random(SEED).sample(objects(repo), 3):
        path.unlink()
    before = tree(repo)
    done = repair(repo, "--dry-run", "--from", f"oci:{layout}", status=6)
    assert tree(repo) == before
    assert {one["digest"]: one["size"] for one in done["mended"]["layers"]} == whole.lacking(repo)


def test_a_source_that_lacks_an_image_does_not_keep_others_from_being_mended(
    repo: Path, layout: Path, repair: Repair, tmp_path: Path
) -> None:
    other = app_image(tmp_path / "other", "db", [base_layer(size=90_000), *layers(2, "shared"), *layers(3, "db")])
    for path in everything(repo):
        path.unlink()
    done = repair(repo, "--from", f"oci:{tmp_path}/other", status=6)
    assert done["mended"]["images"] == [other.manifest_digest]
    assert len(done["mended"]["left"]) == 3
    with Repository.open(repo) as opened:
        assert images.missing_lines(opened, Digest.parse(other.manifest_digest)) == ()


def test_a_ref_that_is_taken_out_because_no_source_has_its_image_is_repaired(repo: Path, layout: Path, repair: Repair) -> None:
    (repo / "streams/refs/oci/lost").symlink_to("../../oci-manifest-sha256:" + "0" * 64)
    done = repair(repo, "--from", f"oci:{layout}")
    assert [(one["code"], one["repaired"]) for one in done["findings"]] == [("dangling-ref", True)]
    assert not (repo / "streams/refs/oci/lost").is_symlink()


def test_a_source_with_other_bytes_under_a_digest_is_refused_and_the_next_is_asked(
    repo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    lying = tmp_path / "lying"
    build(lying)
    for blob in (lying / "blobs/sha256").iterdir():
        data = blob.read_bytes()
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for path in random.Random(SEED).sample(objects(repo), 5):
        path.unlink()
    done = repair(repo, "--from", f"oci:{lying}", "--from", f"oci:{layout}")
    assert done["mended"]["left"] == []
    assert_whole(cfsctl, repo)


def test_without_repair_it_is_an_error(repo: Path, layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repo", str(repo), "fsck", "--from", f"oci:{layout}"]) == 2
    assert "--from is for --repair" in capsys.readouterr().err
