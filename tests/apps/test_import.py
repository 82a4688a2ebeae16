"""Importing: what becomes of an image, beside what ``cfsctl oci pull`` makes of it."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cfs_tags import Repository, gc
from cfs_tags.apps import layer_tar, platforms
from cfs_tags.apps.importing.choose import DEFAULT_LIMIT, Options
from cfs_tags.apps.importing.layer import LayerBuilder
from cfs_tags.apps.importing.source.layout import LayoutSource
from cfs_tags.errors import FormatError, PlatformNotFound, SourceNotFound
from cfs_tags.formats import splitstream, splitwriter, tarlayer
from cfs_tags.fsck.check import fsck
from cfs_tags.registry.catalog import Catalog
from cfs_tags.registry.images import Manifest
from cfs_tags.repo import refs
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.transaction.change import Note
from cfs_tags.tags import history, rows
from cfs_tags.tags.names import resolve
from cfs_tags.values import ContentId, Digest
from support import tagging, tars
from support.handmade import BIG, CFSCTL_CANNOT_MAKE_AN_IMAGE_OF, REFUSED, TARS, everything
from support.images import (
    Image,
    Layer,
    app_image,
    base_layer,
    build_artifact,
    build_image,
    build_index,
    directory,
    file,
    host_image,
    pull_image,
    random_bytes,
    skopeo_copy,
    static_image,
    umoci_change,
    umoci_image,
    umoci_truncated_image,
)
from support.importing import export_image, import_image
from support.interrupt import every_stop, failed_after, kill_after, torn_after
from support.peers import Cfsctl
from support.raising import raises
from support.trees import tree

NewRepo = Callable[..., Path]


def libzstd_version() -> str:
    """With 1.5.7, which cfsctl 0.9.4 is built with, streams are the same bytes; else they mean the same."""
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return str(zstd.zstd_version)


def links(repo: Path) -> dict[str, str]:
    """Name and object of every stream."""
    return {path.name: str(path.readlink()) for path in (repo / "streams").iterdir() if path.is_symlink()}


def layer_links(repo: Path) -> dict[str, str]:
    return {name: target for name, target in links(repo).items() if name.startswith("oci-layer-")}


def all_refs(repo: Path) -> dict[str, str | None]:
    with Repository.open(repo) as opened:
        return dict(refs.walk(opened, "streams/refs"))


def stream_bytes(cfsctl: Cfsctl, repo: Path, name: str) -> bytes:
    """What ``cfsctl cat`` says that a stream stands for."""
    import subprocess

    done = subprocess.run(
        cfsctl.command(repo, "--no-upgrade", "cat", name), env=cfsctl.environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspected(cfsctl: Cfsctl, repo: Path, name: str) -> dict[str, Any]:
    return dict(cfsctl.json(repo, "--no-upgrade", "oci", "inspect", name))


def without_erofs(shown: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in shown.items() if "erofs" not in key}


def check_image(cfsctl: Cfsctl, repo: Path, image: Image) -> None:
    """Everything of an image reads as it was, with the real cfsctl."""
    cfsctl.assert_healthy(repo)
    assert stream_bytes(cfsctl, repo, f"oci-manifest-{image.manifest_digest}") == image.manifest_bytes
    assert stream_bytes(cfsctl, repo, f"oci-config-{image.config_digest}") == image.config_bytes
    for layer in image.layers:
        assert stream_bytes(cfsctl, repo, f"oci-layer-{layer.diff_id}") == layer.tar


def check_beside(cfsctl: Cfsctl, ours: Path, theirs: Path, image: Image) -> None:
    """What was imported is what cfsctl pulled but for the EROFS image; all of it, once it is pulled over what was imported."""
    mine, other = inspected(cfsctl, ours, "app"), inspected(cfsctl, theirs, "app")
    assert without_erofs(mine) == without_erofs(other)
    assert mine != other
    tag = (ours / "streams/refs/oci/app").readlink()
    pull_image(cfsctl, ours, image)
    assert inspected(cfsctl, ours, "app") == other
    assert (ours / "streams/refs/oci/app").readlink() == tag
    check_image(cfsctl, ours, image)


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", TARS)
def test_a_layer_becomes_the_stream_that_cfsctl_makes(what: str, cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [base_layer(), tars.RawLayer(TARS[what])])
    ours, theirs = new_repo(tmp_path / "ours"), new_repo(tmp_path / "theirs")
    import_image(ours, image.source)
    # cfsctl stores the layers first: whether it can make an EROFS image of them is another matter
    pulled = cfsctl(theirs, "oci", "pull", image.source, "app", check=False)
    assert (pulled.returncode == 0) == (what not in CFSCTL_CANNOT_MAKE_AN_IMAGE_OF), pulled.stderr
    if libzstd_version() == "1.5.7":
        assert layer_links(ours) == layer_links(theirs)
    assert layer_links(ours).keys() == layer_links(theirs).keys()
    check_image(cfsctl, ours, image)
    if pulled.returncode == 0:
        check_beside(cfsctl, ours, theirs, image)


@pytest.mark.parametrize("what", REFUSED)
def test_a_layer_that_cfsctl_refuses_is_kept_bit_for_bit(what: str, cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [base_layer(), tars.RawLayer(REFUSED[what])])
    repo = new_repo(tmp_path / "ours")
    import_image(repo, image.source)
    check_image(cfsctl, repo, image)
    assert cfsctl(new_repo(tmp_path / "theirs"), "oci", "pull", image.source, "app", check=False).returncode != 0


@pytest.mark.parametrize("pax_header", [True, False], ids=["PAX", "GNU"])
def test_a_file_beyond_8_gib_is_cut_where_its_header_says(pax_header: bool) -> None:
    """Without its content: of that only a view of one block is given out, again and again."""
    from collections.abc import Iterator

    from cfs_tags.formats import tarlayer

    size = (9 << 30) + 1
    block = bytes(1 << 20)
    if pax_header:
        start = tars.pax({"size": str(size)}) + tars.header(b"usr/f", length=b"77777777777\0")
    else:
        start = tars.header(b"usr/f", length=b"\x80" + size.to_bytes(11, "big"), magic=tars.GNU)

    def chunks() -> Iterator[bytes]:
        yield start
        left = size + -size % 512
        while left:
            yield block[: min(left, len(block))]
            left -= min(left, len(block))
        yield tars.END

    class Sink:
        seen: list[int] = []  # noqa: RUF012
        large = 0
        kept = 0

        def inline(self, data: memoryview) -> None:
            self.kept += len(data)

        def external(self, data: memoryview) -> None:
            raise AssertionError

        def begin(self, size: int) -> None:
            self.seen.append(size)

        def piece(self, data: memoryview) -> None:
            self.large += len(data)

        def end(self) -> None:
            self.seen.append(-1)

    sink = Sink()
    tarlayer.split(chunks(), sink)
    assert sink.seen == [size, -1]
    assert sink.large == size
    assert sink.kept == len(start) + -size % 512 + len(tars.END)


@pytest.mark.parametrize("what", ["each kind of entry", "long name and long target", "hidden in many inline bytes"])
@pytest.mark.parametrize("size", [1, 511, 513, 100_000])
def test_where_a_tar_is_cut_does_not_depend_on_how_it_is_read(what: str, size: int) -> None:
    from cfs_tags.formats import tarlayer

    data = TARS[what]
    if what.startswith("hidden") and size == 1:
        data = data[: 100 << 10]

    class Sink:
        def __init__(self) -> None:
            self.parts: list[tuple[str, bytes]] = []

        def inline(self, data: memoryview) -> None:
            if self.parts and self.parts[-1][0] == "inline":
                self.parts[-1] = ("inline", self.parts[-1][1] + data)
            else:
                self.parts.append(("inline", bytes(data)))

        def external(self, data: memoryview) -> None:
            self.parts.append(("object", bytes(data)))

        def begin(self, size: int) -> None:
            self.parts.append(("object", b""))

        def piece(self, data: memoryview) -> None:
            self.parts[-1] = ("object", self.parts[-1][1] + data)

        def end(self) -> None: ...

    whole, cut = Sink(), Sink()
    tarlayer.split(iter([data]), whole)
    tarlayer.split((data[i : i + size] for i in range(0, len(data), size)), cut)
    assert cut.parts == whole.parts
    assert b"".join(part for _, part in whole.parts) == data


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("processes", [1, 2])
def test_each_compression_gives_the_same_streams_with_one_process_and_with_two(
    compression: str, processes: int, cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path
) -> None:
    entries = [directory("usr"), *(file(f"usr/{n}", random_bytes(str(n), n * 997)) for n in range(120))]
    entries += [file("usr/large", random_bytes("large", 9 << 20)), file("usr/after", BIG), file("usr/large2", BIG * 30_000)]
    image = build_image(tmp_path / "layout", "app", [Layer(entries, compression)])
    ours, theirs = new_repo(tmp_path / "ours"), new_repo(tmp_path / "theirs")
    done = import_image(ours, image.source, processes=processes)
    pull_image(cfsctl, theirs, image)
    assert layer_links(ours).keys() == layer_links(theirs).keys()
    if libzstd_version() == "1.5.7":
        assert layer_links(ours) == layer_links(theirs)
    # files but the empty one, the layer's stream, config and manifest with their streams
    assert done.objects == 122 + 1 + 4
    check_image(cfsctl, ours, image)


def test_digests_that_are_put_aside_make_no_difference(new_repo: NewRepo, tmp_path: Path) -> None:
    entries = [file(f"usr/{n}", random_bytes(str(n % 500), 100 + n % 500)) for n in range(2000)]
    layer = Layer([directory("usr"), *entries], "none")
    found = []
    for size in (64, 64 * 300, 8 << 20):
        path = new_repo(tmp_path / f"{size}")
        with Repository.open(path, write=True) as repo, closing(LayerBuilder(repo, ObjectStore(repo), None, size)) as builder:
            tarlayer.split(iter([layer.tar]), builder)
            stream = builder.finish()
            assert b"".join(layer_tar.blocks(repo, stream)) == layer.tar
        found.append(tree(path, ("cfs-tags",)))
    assert found[0] == found[1] == found[2]


def test_every_member_of_a_gzip_file_and_every_frame_of_a_zstd_file_is_read(
    cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path
) -> None:
    data = Layer(everything()).tar
    parts = [data[i : i + 100_000] for i in range(0, len(data), 100_000)]
    packed = b"".join(gzip.compress(part, mtime=0) for part in parts) + bytes(512)
    from support.images import _zstd

    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    frames = skippable + b"".join(_zstd(part) for part in parts) + skippable
    for name, kind, blob in (("members", "gzip", packed), ("frames", "zstd", frames)):
        repo = new_repo(tmp_path / name)
        image = build_image(tmp_path / f"layout-{name}", "app", [base_layer(), tars.RawLayer(data, kind, blob)])
        import_image(repo, image.source)
        check_image(cfsctl, repo, image)


def test_a_hundred_layers(cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path) -> None:
    layers = [Layer([directory("usr"), file(f"usr/{n}", random_bytes(str(n), 100 + n))]) for n in range(99)]
    image = build_image(tmp_path / "layout", "app", [*layers, Layer([]), layers[0]])
    ours, theirs = new_repo(tmp_path / "ours"), new_repo(tmp_path / "theirs")
    import_image(ours, image.source)
    pull_image(cfsctl, theirs, image)
    assert layer_links(ours).keys() == layer_links(theirs).keys()
    check_image(cfsctl, ours, image)
    check_beside(cfsctl, ours, theirs, image)


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_an_image_is_what_cfsctl_makes_of_it_but_for_the_erofs_image(
    algorithm: str, cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path
) -> None:
    image = app_image(tmp_path / "layout", "app")
    ours, theirs = new_repo(tmp_path / "ours", algorithm), new_repo(tmp_path / "theirs", algorithm)
    import_image(ours, image.source)
    pull_image(cfsctl, theirs, image)
    check_image(cfsctl, ours, image)
    check_beside(cfsctl, ours, theirs, image)


def test_importing_again_writes_nothing(repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    import_image(repo, image.source)
    before = tree(repo, ("cfs-tags",))
    done = import_image(repo, image.source)
    assert tree(repo, ("cfs-tags",)) == before
    assert [result.done for result in done.tags.results] == ["unchanged"]
    assert done.plan.bytes_to_read == 0


def test_importing_what_cfsctl_pulled_keeps_its_erofs_image(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    pull_image(cfsctl, repo, image)
    shown = inspected(cfsctl, repo, "app")
    import_image(repo, image.source, "other")
    assert inspected(cfsctl, repo, "other") == shown
    again = app_image(tmp_path / "again", "app", [base_layer().compressed("zstd")])
    assert again.config_digest == image.config_digest
    import_image(repo, again.source, "again")
    assert inspected(cfsctl, repo, "again")["composefs_erofs"] == shown["composefs_erofs"]
    cfsctl.assert_healthy(repo)


def test_layers_that_are_there_are_not_read_again(repo: Path, tmp_path: Path) -> None:
    first = app_image(tmp_path / "layout", "first")
    second = app_image(tmp_path / "layout", "second")
    import_image(repo, first.source, "first")
    shared = tmp_path / "layout/blobs/sha256" / base_layer().digest.removeprefix("sha256:")
    shared.write_bytes(bytes(shared.stat().st_size))
    done = import_image(repo, second.source, "second")
    assert done.plan.bytes_to_read == len(second.layers[1].blob)


def test_a_layer_is_read_where_no_manifest_says_that_its_blob_stands_for_what_is_there(repo: Path, tmp_path: Path) -> None:
    """A new manifest would else reach content that its source does not have."""
    first = build_image(tmp_path / "layout", "first", [base_layer()])
    import_image(repo, first.source, "first")
    packed = base_layer().compressed("zstd")
    again = build_image(tmp_path / "layout", "again", [packed])
    blob = tmp_path / "layout/blobs/sha256" / packed.digest.removeprefix("sha256:")
    good = blob.read_bytes()
    blob.write_bytes(bytes(len(good)))
    with raises("digest-mismatch"):
        import_image(repo, again.source, "again")
    blob.write_bytes(good)
    done = import_image(repo, again.source, "again")
    assert done.plan.bytes_to_read == len(good)
    assert done.objects == 2  # the manifest and its stream: nothing of the layer is stored again
    blob.write_bytes(bytes(len(good)))
    third = build_image(tmp_path / "layout", "third", [packed], labels={"v": "3"})
    assert import_image(repo, third.source, "third").plan.bytes_to_read == 0


def test_an_import_heals_a_layer_whose_objects_are_gone(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    layer = Layer([directory("usr"), file("usr/a", random_bytes("a", 5000)), file("usr/b", random_bytes("b", 3000))])
    image = build_image(tmp_path / "layout", "app", [layer])
    import_image(repo, image.source)
    whole = tree(repo, ("cfs-tags",))
    sizes = {path: path.stat().st_size for path in (repo / "objects").rglob("*") if path.is_file()}
    gone = next(path for path, size in sizes.items() if size == 5000)
    short = next(path for path, size in sizes.items() if size == 3000)
    gone.unlink()
    short.write_bytes(b"cut by a crash")
    import_image(repo, image.source)
    assert tree(repo, ("cfs-tags",)) == whole
    cfsctl.assert_healthy(repo)


def test_an_image_without_usr_or_without_an_end_is_imported_and_its_tag_private_in_a_bootc_repository(
    cfsctl: Cfsctl, umoci: Path, new_repo: NewRepo, tmp_path: Path
) -> None:
    repo = new_repo(tmp_path / "composefs")
    (repo / "bootc").mkdir()
    source = tmp_path / "tree"
    source.mkdir()
    (source / "f").write_bytes(BIG * 5)
    cut = umoci_truncated_image(umoci, tmp_path / "umoci", "cut", source)
    for text, name in ((static_image(tmp_path / "layout").source, "static"), (cut, "cut")):
        import_image(repo, text, name)
        with Repository.open(repo) as opened:
            found = rows.find(opened, name)
        assert found is not None
        assert (found.home, found.problem) == ("private", None)
    cfsctl.assert_healthy(repo)
    ordinary = new_repo(tmp_path / "other")
    import_image(ordinary, cut, "cut")
    assert cfsctl.tags(ordinary).keys() == {"cut"}


def test_the_reflog_remembers_source_and_digest(repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    import_image(repo, image.source, note=Note("because"))
    with Repository.open(repo) as opened:
        (line,) = history.log(opened, "app")
    assert line.entry.reason == f"because (import {image.source} {image.manifest_digest})"


def test_of_an_index_the_reflog_remembers_the_digest_that_the_source_goes_by(repo: Path, tmp_path: Path) -> None:
    """Kept or not: the image's own is what the tag names."""
    digest, _ = two_platforms(tmp_path / "layout")
    source = f"oci:{tmp_path / 'layout'}:multi"
    import_image(repo, source, "one")
    done = import_image(repo, source, "all", Options(all_platforms=True))
    with Repository.open(repo) as opened:
        for name in ("one", *dict(done.plan.names)):
            assert history.log(opened, name)[0].entry.reason == f"import {source} {digest}"


def test_a_tag_that_names_something_else_stays_unless_forced_and_nothing_is_read_for_it(repo: Path, tmp_path: Path) -> None:
    import_image(repo, app_image(tmp_path / "layout", "one").source, "app")
    other = app_image(tmp_path / "layout", "two")
    before = tree(repo)
    with raises("tag-exists"):
        import_image(repo, other.source, "app")
    assert tree(repo) == before
    done = import_image(repo, other.source, "app", Options(force=True))
    assert [result.done for result in done.tags.results] == ["moved"]


def test_the_name_of_a_lease_whose_time_is_over_is_free(repo: Path, tmp_path: Path) -> None:
    one, two = (app_image(tmp_path / "layout", name) for name in ("one", "two"))
    import_image(repo, one.source, "one")
    for image in (two, one):
        with Repository.open(repo, write=True) as opened:
            tagging.create(opened, "app", f"@{one.manifest_digest}", expires=rows.expiry(-1), force=True)
        import_image(repo, image.source, "app")
        with Repository.open(repo) as opened:
            assert resolve(opened, "app") == image.manifest_digest
        assert not any("/leases/" in path for path in all_refs(repo))


def test_without_a_name_the_tag_is_called_what_the_source_calls_it(repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "quay.io/org/app:1")
    assert [name for name, _ in import_image(repo, f"oci:{image.layout}", None).plan.names] == ["quay.io/org/app:1"]
    app_image(tmp_path / "layout", "other")
    with raises("ambiguous-name") as caught:
        import_image(repo, f"oci:{image.layout}", None)
    assert set(caught.value.candidates) == {"quay.io/org/app:1", "other"}
    with pytest.raises(SourceNotFound) as missing:
        import_image(repo, f"oci:{image.layout}:absent", None)
    assert set(missing.value.names) == {"quay.io/org/app:1", "other"}


def test_a_layout_whose_path_has_a_colon_is_found(repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "a:b", "c:d/e:f")
    import_image(repo, f"oci:{image.layout}:c:d/e:f", "app")


# -- platforms ---------------------------------------------------------------------------------------------------------


def two_platforms(layout: Path) -> tuple[str, dict[str, Image]]:
    mine = platforms.this_machine().architecture
    other = "s390x" if mine != "s390x" else "amd64"
    images = {
        name: build_image(layout, name, [base_layer(), Layer([file(f"usr/{name}", BIG)])], config={"architecture": name})
        for name in (mine, other)
    }
    return build_index(layout, "multi", images), images


def test_of_an_index_the_image_for_this_machine_is_taken_or_the_one_that_is_named(repo: Path, tmp_path: Path) -> None:
    _, images = two_platforms(tmp_path / "layout")
    mine, other = images
    source = f"oci:{tmp_path / 'layout'}:multi"
    assert import_image(repo, source, "mine").plan.names == (("mine", images[mine].manifest_digest),)
    wanted = Options(platform=platforms.parse(f"linux/{other}"))
    assert import_image(repo, source, "other", wanted).plan.names == (("other", images[other].manifest_digest),)
    assert len(all_refs(repo)) == 2


def test_an_index_without_the_platform_is_refused_with_those_it_has(repo: Path, tmp_path: Path) -> None:
    _, images = two_platforms(tmp_path / "layout")
    before = tree(repo)
    with pytest.raises(PlatformNotFound) as caught:
        import_image(repo, f"oci:{tmp_path / 'layout'}:multi", "x", Options(platform=platforms.parse("plan9/mips")))
    assert caught.value.platforms == tuple(f"linux/{name}" for name in images)
    assert caught.value.status == 4
    single = app_image(tmp_path / "single", "app")
    with pytest.raises(PlatformNotFound):
        import_image(repo, single.source, "x", Options(platform=platforms.parse("plan9/mips")))
    assert tree(repo) == before


def test_all_platforms_and_the_index_are_kept_in_one_transaction(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    digest, images = two_platforms(tmp_path / "layout")
    mine, other = images
    wanted = Options(all_platforms=True, keep_index=True)
    done = import_image(repo, f"oci:{tmp_path / 'layout'}:multi", "quay.io/app:1", wanted)
    assert dict(done.plan.names) == {
        "quay.io/app:1": images[mine].manifest_digest,
        f"quay.io/app:1-linux-{mine}": images[mine].manifest_digest,
        f"quay.io/app:1-linux-{other}": images[other].manifest_digest,
    }
    path = "streams/refs/cfs-tags/indexes/quay.io%2Fapp:1"
    assert all_refs(repo)[path] == f"../../../oci-blob-{digest}"
    assert json.loads(stream_bytes(cfsctl, repo, f"oci-blob-{digest}"))["manifests"]
    with Repository.open(repo) as opened:
        transactions = {history.log(opened, name)[0].entry.transaction for name in dict(done.plan.names)}
    assert len(transactions) == 1
    cfsctl.assert_healthy(repo)
    before = tree(repo, ("cfs-tags",))
    import_image(repo, f"oci:{tmp_path / 'layout'}:multi", "quay.io/app:1", wanted)
    assert tree(repo, ("cfs-tags",)) == before


def add_index(layout: Path, ref: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """An index of entries as they are; returns its descriptor."""
    kind = "application/vnd.oci.image.index.v1+json"
    digest = name_manifest(layout, ref, {"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    size = (layout / "blobs/sha256" / digest.removeprefix("sha256:")).stat().st_size
    return {"mediaType": kind, "digest": digest, "size": size}


def test_an_entry_of_an_index_may_be_an_index_and_several_may_be_the_same(repo: Path, tmp_path: Path) -> None:
    _, images = two_platforms(tmp_path / "layout")
    mine, other = images
    descriptors = {
        name: {**image.descriptor, "platform": {"os": "linux", "architecture": name}} for name, image in images.items()
    }
    inner = add_index(tmp_path / "layout", "inner", list(descriptors.values()))
    entries = [{**inner, "platform": {"os": "linux", "architecture": name}} for name in images]
    add_index(tmp_path / "layout", "outer", entries)
    source = f"oci:{tmp_path / 'layout'}:outer"
    assert import_image(repo, source, "one").plan.names == (("one", images[mine].manifest_digest),)
    done = import_image(repo, source, "app", Options(all_platforms=True))
    assert dict(done.plan.names) == {
        "app": images[mine].manifest_digest,
        f"app-linux-{mine}": images[mine].manifest_digest,
        f"app-linux-{other}": images[other].manifest_digest,
    }


def test_images_of_an_index_for_which_there_is_no_name_are_said_to_be_left_out(
    repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Versions of Windows are one platform; the first has its name."""
    from cfs_tags.cli.main import main

    layout = tmp_path / "layout"
    images = [build_image(layout, name, [Layer([file(name, "x")])], config={"os": "windows"}) for name in ("1809", "2022")]
    entries = [
        {**image.descriptor, "platform": {"os": "windows", "architecture": "amd64", "os.version": image.ref}}
        for image in (*images, images[0])
    ]
    add_index(layout, "multi", entries)
    words = ["--repo", str(repo), "import", f"oci:{layout}:multi", "app", "--all-platforms"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"left out: {images[1].manifest_digest}, another image for windows/amd64\n" in said
    assert said.count("left out") == 1
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["result"]["left_out"]
    assert row == {"digest": images[1].manifest_digest, "platform": "windows/amd64"}


def test_however_often_an_index_names_an_image_it_is_read_once(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, images = two_platforms(tmp_path / "layout")
    image = next(iter(images.values()))
    add_index(tmp_path / "layout", "wide", [dict(image.descriptor)] * 500)
    read: list[str] = []
    plain = LayoutSource.open

    def counted(source: LayoutSource, digest: Digest) -> Any:
        read.append(digest)
        return plain(source, digest)

    monkeypatch.setattr(LayoutSource, "open", counted)
    import_image(repo, f"oci:{tmp_path / 'layout'}:wide", "app")
    assert read.count(image.manifest_digest) < 5
    add_index(tmp_path / "layout", "wider", [dict(image.descriptor)] * 1001)
    with pytest.raises(FormatError, match="at most 1000 entries"):
        import_image(repo, f"oci:{tmp_path / 'layout'}:wider", "app")


def test_an_index_of_docker_manifests_is_kept_with_the_digests_that_they_get_and_served(
    cfsctl: Cfsctl, repo: Path, skopeo: Path, tmp_path: Path
) -> None:
    _, images = two_platforms(tmp_path / "layout")
    skopeo_copy(skopeo, f"oci:{tmp_path}/layout:multi", f"dir:{tmp_path}/docker", "--all", "--format", "v2s2")
    listed = (tmp_path / "docker/manifest.json").read_bytes()
    assert b"manifest.list.v2" in listed
    done = import_image(repo, f"dir:{tmp_path}/docker", "app:1", Options(all_platforms=True, keep_index=True))
    assert done.plan.source_digest == f"sha256:{hashlib.sha256(listed).hexdigest()}"
    assert done.plan.kept_index is not None
    _, digest, _ = done.plan.kept_index
    kept = json.loads(stream_bytes(cfsctl, repo, f"oci-blob-{digest}"))
    assert kept["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert {entry["digest"] for entry in kept["manifests"]} == set(dict(done.plan.names).values())
    assert {entry["platform"]["architecture"] for entry in kept["manifests"]} == set(images)
    with Repository.open(repo) as opened:
        served = Catalog(opened).by_tag("app", "1")
    assert isinstance(served, Manifest)
    assert served.original == digest
    assert len(json.loads(served.raw)["manifests"]) == 2
    cfsctl.assert_healthy(repo)
    before = tree(repo, ("cfs-tags",))
    import_image(repo, f"dir:{tmp_path}/docker", "app:1", Options(all_platforms=True, keep_index=True))
    assert tree(repo, ("cfs-tags",)) == before


def test_signatures_of_a_kept_index_come_with_it(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    digest, _ = two_platforms(tmp_path / "layout")
    index = json.loads((tmp_path / "layout/index.json").read_text())
    descriptor = next(entry for entry in index["manifests"] if entry["digest"] == digest)
    about = SimpleNamespace(descriptor={key: descriptor[key] for key in ("mediaType", "digest", "size")})
    signature = build_artifact(tmp_path / "layout", "sig", [("text/plain", b"signed")], subject=about)  # type: ignore[arg-type]
    source = f"oci:{tmp_path / 'layout'}:multi"
    assert import_image(repo, source, "app").plan.referrers == ()
    done = import_image(repo, source, "app", Options(keep_index=True))
    assert done.plan.referrers == ((digest, signature.manifest_digest),)
    cfsctl.assert_healthy(repo)


def test_a_kept_index_is_no_target_of_a_tag(repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a tag names is an image: refused, with the platforms that it could be."""
    from cfs_tags.cli.main import main

    digest, images = two_platforms(tmp_path / "layout")
    import_image(repo, f"oci:{tmp_path / 'layout'}:multi", "app", Options(all_platforms=True, keep_index=True))
    before = tree(repo)
    for target in (f"@{digest}", digest):
        assert main(["--repo", str(repo), "create", "other", target]) == 4
        said = capsys.readouterr().err
        assert all(f"linux/{name}" in said for name in images)
    assert tree(repo) == before


def test_a_single_image_has_neither_platforms_nor_an_index(repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    for options in (Options(all_platforms=True), Options(keep_index=True)):
        with raises("invalid-argument"):
            import_image(repo, image.source, "x", options)


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_artifacts_come_with_their_subject_and_stay_with_it(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image = app_image(layout, "app")
    gz = gzip.compress(Layer(everything()).tar, mtime=0)
    blobs = [("application/spdx+json", b'{"a":1}'), ("application/vnd.oci.image.layer.v1.tar+gzip", gz)]
    sbom = build_artifact(layout, "sbom", blobs, subject=image)
    signature = build_artifact(layout, "sig", [("text/plain", b"signed")], subject=sbom)
    build_artifact(layout, "stranger", [("text/plain", b"other")])
    done = import_image(repo, image.source)
    assert set(done.plan.referrers) == {
        (image.manifest_digest, sbom.manifest_digest),
        (sbom.manifest_digest, signature.manifest_digest),
    }
    with Repository.open(repo) as opened:
        assert rows.referrers(opened, Digest(image.manifest_digest)) == [sbom.manifest_digest]
    for artifact, parts in ((sbom, blobs), (signature, [("text/plain", b"signed")])):
        assert stream_bytes(cfsctl, repo, f"oci-manifest-{artifact.manifest_digest}") == artifact.manifest_bytes
        for (_, data), descriptor in zip(parts, artifact.manifest["layers"], strict=True):
            assert stream_bytes(cfsctl, repo, f"oci-blob-{descriptor['digest']}") == data
    assert inspected(cfsctl, repo, "app")["referrers"] == [sbom.manifest_digest]
    cfsctl.assert_healthy(repo)
    collected = tree(repo)
    cfsctl(repo, "--no-upgrade", "gc")
    assert tree(repo) == collected


def test_an_artifact_can_be_imported_by_itself_and_without_referrers(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image = app_image(layout, "app")
    sbom = build_artifact(layout, "sbom", [("application/spdx+json", b"{}")], subject=image)
    import_image(repo, sbom.source, "sbom")
    assert all_refs(repo).keys() == {
        "streams/refs/oci/sbom",
        f"streams/refs/oci-referrers/{image.manifest_digest}/{sbom.manifest_digest}",
    }
    assert import_image(repo, image.source, "app", Options(referrers=False)).plan.referrers == ()
    cfsctl.assert_healthy(repo)


# -- the same bytes as something else --------------------------------------------------------------------------------


def healthy(cfsctl: Cfsctl, repo: Path) -> None:
    """For both programs."""
    cfsctl.assert_healthy(repo)
    with Repository.open(repo) as opened:
        assert [one for one in fsck(opened, content=True).findings if one.fails] == []


def test_a_blob_of_an_artifact_is_never_taken_for_the_layer_of_an_image(
    cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    host = host_image(layout, "1")
    artifact = build_artifact(layout, "art", [("application/vnd.oci.image.layer.v1.tar", host.layers[0].tar)])
    first, then = new_repo(tmp_path / "first"), new_repo(tmp_path / "then")
    import_image(first, artifact.source, "art")
    import_image(first, host.source, "host")
    import_image(then, artifact.source, "art")
    pull_image(cfsctl, then, host, "host", bootable=True)
    for repo in (first, then):
        export_image(repo, "host", f"oci:{repo}-out:host")
        export_image(repo, "art", f"oci:{repo}-out:art")
        check_image(cfsctl, repo, host)
        healthy(cfsctl, repo)


def test_a_layer_stored_as_a_blob_by_another_program_is_cut_and_the_blob_stays(
    cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path
) -> None:
    """cfsctl keeps a layer by its media type alone, and under the same name."""
    layout = tmp_path / "layout"
    repo = new_repo(tmp_path / "repo")
    image = app_image(layout, "app")
    manifest = json.loads(build_image(layout, "odd", [layer.compressed("none") for layer in image.layers]).manifest_bytes)
    for layer in manifest["layers"]:
        layer["mediaType"] = "application/x-odd"
    odd = name_manifest(layout, "odd", manifest)
    cfsctl(repo, "oci", "pull", f"oci:{layout}:odd", "odd", check=False)
    cfsctl(repo, "oci", "tag", odd, "odd")
    assert len(layer_links(repo)) == 2
    cfsctl(repo, "oci", "pull", image.source, "app", check=False)
    cfsctl(repo, "oci", "tag", image.manifest_digest, "app")
    with Repository.open(repo) as opened:
        wrong = [one for one in fsck(opened).findings if one.fails]
    assert {one.code for one in wrong} == {"wrong-named-ref"}
    assert all("which is a blob" in one.message for one in wrong)
    import_image(repo, image.source)
    check_image(cfsctl, repo, image)
    healthy(cfsctl, repo)
    kept = [name for name in links(repo) if name.startswith("cfs-tags-kept-")]
    assert len(kept) == 3  # the config and two layers
    with Repository.open(repo, write=True) as opened:
        gc.collect(opened, gc.GcOptions(grace=0))
    cfsctl(repo, "--no-upgrade", "gc")
    assert set(kept) <= links(repo).keys()
    healthy(cfsctl, repo)
    for name in ("odd", "app"):
        export_image(repo, name, f"oci:{tmp_path}/out:{name}")


def name_manifest(layout: Path, ref: str, manifest: dict[str, Any]) -> str:
    """Give a layout a manifest by that name; returns its digest."""
    data = json.dumps(manifest).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    index = json.loads((layout / "index.json").read_text())
    entry = {"mediaType": manifest["mediaType"], "digest": f"sha256:{digest}", "size": len(data)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": ref}
    index["manifests"] = [*(e for e in index["manifests"] if e.get("annotations") != entry["annotations"]), entry]
    (layout / "index.json").write_text(json.dumps(index))
    return f"sha256:{digest}"


def test_a_config_that_an_artifact_has_too_stays_whole_for_both(cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image = app_image(layout, "app")
    kind = ("application/vnd.example+json", image.config_bytes)
    artifact = build_artifact(layout, "art", [("text/plain", b"about" * 100)], config=kind)
    for name, order in (("one", (artifact, image)), ("two", (image, artifact))):
        repo = new_repo(tmp_path / name)
        import_image(repo, order[0].source, "first")
        import_image(repo, order[1].source, "second")
        healthy(cfsctl, repo)
        for tag in ("first", "second"):
            export_image(repo, tag, f"oci:{repo}-out:{tag}")
        twin = tmp_path / f"{name}-twin"
        shutil.copytree(repo, twin, symlinks=True)
        for place, untagged, left in ((repo, "second", "first"), (twin, "first", "second")):
            cfsctl(place, "oci", "untag", untagged)
            cfsctl(place, "--no-upgrade", "gc")
            healthy(cfsctl, place)
            export_image(place, left, f"oci:{place}-left:{left}")
            cfsctl(place, "oci", "untag", left)
            cfsctl(place, "--no-upgrade", "gc")
            assert links(place) == {}


# -- other sources -----------------------------------------------------------------------------------------------------


def test_what_skopeo_writes_is_read_and_docker_manifests_become_oci_with_the_same_config(
    skopeo: Path, cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path
) -> None:
    image = app_image(tmp_path / "layout", "app")
    skopeo_copy(skopeo, image.source, f"oci-archive:{tmp_path}/oci.tar:app")
    skopeo_copy(skopeo, image.source, f"dir:{tmp_path}/dir")
    skopeo_copy(skopeo, image.source, f"dir:{tmp_path}/v2s2", "--format", "v2s2")
    skopeo_copy(skopeo, image.source, f"docker-archive:{tmp_path}/docker.tar:app:latest")
    skopeo_copy(skopeo, f"dir:{tmp_path}/v2s2", f"oci:{tmp_path}/back:app")
    (tmp_path / "docker.tar.gz").write_bytes(gzip.compress((tmp_path / "docker.tar").read_bytes()))
    for number, source in enumerate(
        (
            f"oci-archive:{tmp_path}/oci.tar",
            f"oci-archive:{tmp_path}/oci.tar:app",
            f"dir:{tmp_path}/dir",
            f"dir:{tmp_path}/v2s2",
            f"docker-archive:{tmp_path}/docker.tar",
            f"docker-archive:{tmp_path}/docker.tar.gz:app:latest",
        )
    ):
        repo = new_repo(tmp_path / f"repo-{number}")
        done = import_image(repo, source, "app")
        (planned,) = done.plan.images
        assert planned.manifest.config.media_type == "application/vnd.oci.image.config.v1+json"
        if "docker" not in source and "v2s2" not in source:
            assert planned.digest == image.manifest_digest
        if "archive" not in source or "oci" in source:
            assert planned.manifest.config.digest == image.config_digest
        if "v2s2" in source:
            docker = json.loads((tmp_path / "v2s2/manifest.json").read_text())
            assert planned.source_digest != planned.digest
            # skopeo's own conversion writes the config anew; ours keeps it, and the rest is the same
            index = json.loads((tmp_path / "back/index.json").read_text())
            digest = index["manifests"][0]["digest"].removeprefix("sha256:")
            theirs = (tmp_path / "back/blobs/sha256" / digest).read_bytes()
            converted = json.loads(theirs)["config"]["digest"].encode()
            assert planned.raw == theirs.replace(converted, docker["config"]["digest"].encode())
        for layer in image.layers:
            assert stream_bytes(cfsctl, repo, f"oci-layer-{layer.diff_id}") == layer.tar
        cfsctl.assert_healthy(repo)
        pull = cfsctl(repo, "oci", "pull", image.source, "pulled", check=False)
        assert pull.returncode == 0, pull.stderr


def test_an_image_by_umoci(cfsctl: Cfsctl, umoci: Path, new_repo: NewRepo, tmp_path: Path) -> None:
    def change(root: Path) -> None:
        (root / "usr/lib").mkdir(parents=True)
        (root / "usr/lib/f").write_bytes(BIG * 100)
        (root / "usr/lib/g").hardlink_to(root / "usr/lib/f")
        (root / "usr/lib/s").symlink_to("f")
        (root / "usr/share").mkdir()
        (root / "usr/share/gone").write_bytes(BIG)

    def change_again(root: Path) -> None:
        (root / "usr/lib/f").write_bytes(BIG * 200)
        (root / "usr/share/gone").unlink()
        (root / "usr/share").rmdir()

    source = umoci_image(umoci, tmp_path / "layout", "app", change, tmp_path / "work")
    umoci_change(umoci, tmp_path / "layout", "app", change_again, tmp_path / "work-2")
    ours, theirs = new_repo(tmp_path / "ours"), new_repo(tmp_path / "theirs")
    import_image(ours, source)
    cfsctl(theirs, "oci", "pull", source, "app")
    assert layer_links(ours).keys() == layer_links(theirs).keys()
    assert len(layer_links(ours)) == 2
    if libzstd_version() == "1.5.7":
        assert layer_links(ours) == layer_links(theirs)
    assert without_erofs(inspected(cfsctl, ours, "app")) == without_erofs(inspected(cfsctl, theirs, "app"))


# -- being stopped -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [torn_after, kill_after, failed_after(28, once=True)],
    ids=["torn", "kill", "full"],
)
def test_stopped_anywhere_an_import_leaves_garbage_at_most_and_the_next_one_finishes(
    how: Any, cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    image = build_image(layout, "app", [Layer([directory("usr"), file("usr/f", BIG), file("usr/g", BIG * 2)])])
    artifact = build_artifact(layout, "sbom", [("text/plain", b"about")], subject=image)
    numbers = []

    def prepare(number: int) -> Path:
        return new_repo(tmp_path / f"repo-{number}")

    for attempt in every_stop(prepare, lambda path: import_image(path, image.source), how):
        numbers.append(attempt.number)
        repo = attempt.subject
        found = all_refs(repo)
        # either nothing has a name, or it is complete: a healthy repository, whose collector takes nothing that is named
        if attempt.number % 5 == 0:
            cfsctl.assert_healthy(repo)
        assert not found or ContentId.manifest(Digest(image.manifest_digest)) in links(repo)
        import_image(repo, image.source)
        referrer = f"streams/refs/oci-referrers/{image.manifest_digest}/{artifact.manifest_digest}"
        assert all_refs(repo).keys() == {"streams/refs/oci/app", referrer}
        if attempt.number % 10 == 0:
            check_image(cfsctl, repo, image)
    assert len(numbers) > 30


def test_nothing_is_named_before_everything_is_on_disk(repo: Path, tmp_path: Path) -> None:
    from support.interrupt import count_calls

    image = app_image(tmp_path / "layout", "app")
    with count_calls() as calls:
        import_image(repo, image.source)
    names = calls.names
    sync = names.index("sync_filesystem")
    assert names.count("sync_filesystem") == 1
    assert not {"adopt_object", "open_unnamed"} & set(names[sync:])
    assert "make_link" not in names[:sync]
    made = [str(arguments[1]) for name, arguments in calls.made if name == "make_link"]
    assert [path.startswith("streams/refs/") for path in made] == sorted(path.startswith("streams/refs/") for path in made)


def test_a_second_process_that_fails_says_why(repo: Path, tmp_path: Path) -> None:
    from support.interrupt import fail_after

    entries = [directory("usr"), *(file(f"usr/{n}", random_bytes(str(n), 2000)) for n in range(300))]
    image = build_image(tmp_path / "layout", "app", [Layer(entries)])
    from cfs_tags.errors import SystemFailure

    with fail_after(20), pytest.raises(SystemFailure) as caught:
        import_image(repo, image.source, processes=2)
    assert caught.value.errno == 28
    assert all_refs(repo) == {}
    import_image(repo, image.source, processes=2)


def test_a_stream_is_read_in_blocks_from_anywhere(repo: Path, tmp_path: Path) -> None:
    layer = Layer([directory("usr"), *(file(f"usr/{n}", random_bytes(str(n), n * n * 900)) for n in range(30))])
    image = build_image(tmp_path / "layout", "app", [layer])
    import_image(repo, image.source)
    with Repository.open(repo) as opened:
        stream = opened.stream_object(ContentId.layer(Digest(layer.diff_id)))
        assert stream is not None
        assert layer_tar.size(opened, stream) == len(layer.tar)
        for start in (0, 1, 511, 512, 1536, 100_000, 1_000_001, len(layer.tar) - 1, len(layer.tar), len(layer.tar) + 9):
            for length in (None, 0, 1, 512, 513, 300_000, len(layer.tar), 2 * len(layer.tar)):
                found = list(layer_tar.blocks(opened, stream, start=start, length=length))
                assert b"".join(found) == (layer.tar[start:] if length is None else layer.tar[start:][:length])
                assert {len(block) for block in found[:-1]} <= {layer_tar.BLOCK_SIZE}
                assert all(0 < len(block) <= layer_tar.BLOCK_SIZE for block in found)


def test_a_stream_of_empty_objects_is_refused_before_it_takes_hours(repo: Path) -> None:
    with Repository.open(repo, write=True) as opened:
        empty = ObjectStore(opened).add(b"")
        writer = splitwriter.Writer(opened.algorithm, splitstream.CONTENT_TYPE_LAYER)
        for _ in range(5000):
            writer.add_external(empty, 0)
        writer.add_inline(b"end")
        stream = ObjectStore(opened).add(writer.finish())
        with pytest.raises(FormatError, match="files"):
            list(layer_tar.blocks(opened, stream))


def test_parts_of_another_size_than_the_stream_says_are_refused(repo: Path) -> None:
    with Repository.open(repo, write=True) as opened:
        data = ObjectStore(opened).add(b"x" * 100)
        for said, found in ((99, "more"), (101, "1 fewer")):
            for inline in (b"", b"before"):
                writer = splitwriter.Writer(opened.algorithm, splitstream.CONTENT_TYPE_LAYER)
                writer.add_inline(inline)
                writer.add_external(data, said)
                stream = ObjectStore(opened).add(writer.finish())
                with pytest.raises(FormatError, match=f"in all, found {found}"):
                    list(layer_tar.blocks(opened, stream))
                assert b"".join(layer_tar.blocks(opened, stream, length=90)) == (inline + b"x" * 100)[:90]


def test_the_limit_of_a_layer_is_that_of_its_uncompressed_tar(repo: Path, tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), file("usr/f", bytes(1_000_000))])])
    size = len(image.layers[0].tar)

    with raises("layer-too-large"):
        import_image(repo, image.source, "app", Options(limit=size - 1))
    assert all_refs(repo) == {}
    import_image(repo, image.source, "app", Options(limit=size))


def test_default_limit_is_64_gib() -> None:
    assert DEFAULT_LIMIT == 64 << 30


def test_pax_and_gnu_archives_of_tarfile(cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path) -> None:
    names = {"usr/" + "l" * 300: BIG * 20, "usr/\xe4" + "/y" * 130: BIG}
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        layer = tars.RawLayer(tars.with_tarfile(kind, names))
        image = build_image(tmp_path / f"layout-{kind}", "app", [base_layer(), layer])
        repo = new_repo(tmp_path / f"repo-{kind}")
        import_image(repo, image.source)
        check_image(cfsctl, repo, image)
