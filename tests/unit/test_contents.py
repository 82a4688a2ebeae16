"""What a manifest leads to, and what happens where something of it is missing, malformed or another than it says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, FormatError, IncompleteTarget, TargetNotFound
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.repo import images
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.tags import edit
from cfs_tags.values import Algorithm, ContentId, Digest
from support import tagging
from support.images import Image, app_image, host_image, pull_image
from support.peers import Cfsctl
from support.stock import digest_of, error_of, fill, leftovers, refs

PARTS = ("manifest stream", "manifest", "config stream", "config", "layer stream", "EROFS image")


class Pulled:
    """A repository with one image in it, and where its parts are."""

    def __init__(self, repo: Path, image: Image) -> None:
        self.repo = repo
        self.image = image
        self.digest = Digest.parse(image.manifest_digest)

    def link(self, content_id: str) -> Path:
        return self.repo / "streams" / content_id

    def stream(self, content_id: str) -> Path:
        return self.link(content_id).resolve()

    def part(self, name: str) -> Path:
        """The object of a part."""
        manifest = self.stream(ContentId.manifest(self.digest))
        config = self.stream(f"oci-config-{self.image.config_digest}")
        if name == "manifest stream":
            return manifest
        if name == "config stream":
            return config
        if name == "layer stream":
            return self.stream(f"oci-layer-{self.image.diff_ids[0]}")
        if name == "EROFS image":
            [image] = (self.repo / "images").iterdir()
            return image.resolve()
        parsed = splitstream.parse((manifest if name == "manifest" else config).read_bytes())
        found = splitstream.sole_object(parsed)
        return self.repo / "objects" / found[:2] / found[2:]

    def load(self) -> images.StoredImage:
        with Repository.open(self.repo) as repo:
            return images.load(repo, self.digest)

    def missing(self) -> tuple[str, ...]:
        with Repository.open(self.repo) as repo:
            return images.missing_parts(repo, self.digest)

    def behind(self) -> tuple[str, ...]:
        """Of the tag that cfsctl made."""
        with Repository.open(self.repo) as repo:
            return images.missing_behind(repo, "streams/refs/oci/app", f"../../oci-manifest-{self.digest}")

    def create(self) -> edit.TagResult:
        with Repository.open(self.repo, write=True) as repo:
            return tagging.create(repo, "new", f"@{self.digest}")

    def refused(self) -> CfsTagsError:
        """The error that making a tag gives, after which nothing has changed."""
        before = refs(self.repo)
        with pytest.raises(CfsTagsError) as caught:
            self.create()
        assert refs(self.repo) == before
        assert leftovers(self.repo) == []
        return caught.value


@pytest.fixture(params=["sha256", "sha512"])
def pulled(request: pytest.FixtureRequest, new_repo, cfsctl: Cfsctl, tmp_path: Path) -> Pulled:  # type: ignore[no-untyped-def]
    path = new_repo(algorithm=request.param)
    image = app_image(tmp_path / "layout", "app", labels={"maintainer": "ann"}, annotations={"k": "v"})
    pull_image(cfsctl, path, image)
    cfsctl(path, "gc")  # pulling leaves first versions of streams behind
    return Pulled(path, image)


@pytest.fixture
def stored(new_repo, cfsctl: Cfsctl, tmp_path: Path) -> Pulled:  # type: ignore[no-untyped-def]
    path = new_repo()
    image = app_image(tmp_path / "layout", "app")
    pull_image(cfsctl, path, image)
    return Pulled(path, image)


# -- whole -------------------------------------------------------------------------------------------------------------


def test_a_pulled_image_is_read_as_it_was_built(pulled: Pulled, cfsctl: Cfsctl) -> None:
    found, image = pulled.load(), pulled.image

    assert found.digest == image.manifest_digest
    assert found.manifest.config.digest == image.config_digest
    assert dict(found.manifest.annotations) == {"k": "v"}
    assert found.config is not None
    assert dict(found.config.labels) == {"maintainer": "ann"}
    assert [layer.descriptor.digest for layer in found.layers] == [layer.digest for layer in image.layers]
    assert [layer.diff_id for layer in found.layers] == image.diff_ids
    assert [f"{layer.object}" for layer in found.layers] == [
        "".join(pulled.stream(f"oci-layer-{diff_id}").parts[-2:]) for diff_id in image.diff_ids
    ]
    assert found.object == "".join(pulled.part("manifest stream").parts[-2:])
    assert found.config_object == "".join(pulled.part("config stream").parts[-2:])
    assert set(found.erofs.values()) == {cfsctl.images_of(pulled.repo, "app")[0]}
    assert all(key.startswith("composefs.image") for key in found.erofs)


def test_raw_bytes_are_those_of_the_image(pulled: Pulled) -> None:
    with Repository.open(pulled.repo) as repo:
        assert images.raw_manifest(repo, pulled.digest) == pulled.image.manifest_bytes
        assert images.raw_config(repo, pulled.digest) == pulled.image.config_bytes


def test_nothing_is_missing_of_a_whole_image(pulled: Pulled) -> None:
    assert pulled.missing() == ()
    assert pulled.behind() == ()
    assert pulled.create().done == "created"


def test_an_absent_manifest_is_not_found(pulled: Pulled) -> None:
    with Repository.open(pulled.repo) as repo:
        for read in (images.load, images.raw_manifest, images.raw_config, images.missing_parts):
            with pytest.raises(TargetNotFound) as caught:
                read(repo, Digest.parse("sha256:" + "0" * 64))
            assert (caught.value.code, caught.value.status, caught.value.kind) == ("target-not-found", 3, "manifest")


# -- missing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_object_is_named_and_no_tag_is_made(stored: Pulled, part: str) -> None:
    path = stored.part(part)
    path.unlink()

    [line] = stored.missing()

    assert "".join(path.parts[-2:])[:12] in line
    assert line.endswith("missing")
    assert stored.behind() != ()
    error = stored.refused()
    assert isinstance(error, IncompleteTarget)
    assert (error.code, error.status, error.missing) == ("incomplete-target", 4, (line,))


def test_everything_that_is_missing_is_named_at_once(stored: Pulled) -> None:
    stored.part("layer stream").unlink()
    stored.part("EROFS image").unlink()
    stored.stream(f"oci-layer-{stored.image.diff_ids[1]}").unlink()

    lines = stored.missing()

    assert len(lines) == 3
    assert sum(line.startswith("layer ") for line in lines) == 2
    assert sum(line.startswith("EROFS image ") for line in lines) == 1


@pytest.mark.parametrize("stream", ["config", "layer"])
def test_a_stream_is_followed_by_its_object_where_its_link_is_gone(stored: Pulled, stream: str) -> None:
    whole = stored.load()
    digest = stored.image.config_digest if stream == "config" else stored.image.diff_ids[0]
    stored.link(f"oci-{stream}-{digest}").unlink()

    assert stored.load() == whole
    assert stored.missing() == ()


def test_a_config_stream_that_was_written_again_for_another_manifest_leaves_the_first_one_whole(  # type: ignore[no-untyped-def]
    new_repo, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    path = new_repo()
    first = host_image(tmp_path / "a", "1", annotations={"n": "1"})
    second = host_image(tmp_path / "b", "1", annotations={"n": "2"})
    assert first.config_digest == second.config_digest
    pull_image(cfsctl, path, first, "first")
    link = path / "streams" / f"oci-config-{first.config_digest}"
    before = link.readlink()
    pull_image(cfsctl, path, second, "second", bootable=True)
    assert link.readlink() != before, "cfsctl has written it again"

    with Repository.open(path) as repo:
        for image, boot in ((first, False), (second, True)):
            digest = Digest.parse(image.manifest_digest)
            assert images.missing_parts(repo, digest) == ()
            found = images.load(repo, digest)
            assert any(key.startswith(images.BOOT_KEY) for key in found.erofs) is boot


def test_resolving_a_ref_raises_nothing_whatever_its_target_is(stored: Pulled) -> None:
    with Repository.open(stored.repo) as repo:
        for path, link, words in (
            ("streams/refs/oci/app", "../../oci-manifest-sha256:" + "0" * 64, "is gone"),
            ("streams/refs/oci/app", "../../nothing", "is gone"),
            ("streams/refs/oci/app", "/etc/passwd", "absolute"),
            ("streams/refs/oci/app", "app", "another ref"),
            ("streams/refs/oci/app", "", "may not lead"),
            ("streams/refs/oci/app", "../../../objects/ab", "nowhere else"),
            ("images/refs/x", "../" + "0" * 128, "is gone"),
        ):
            [line] = images.missing_behind(repo, path, link)
            assert words in line
        name = os.path.basename(next((stored.repo / "images").iterdir()))
        assert images.missing_behind(repo, "images/refs/x", f"../{name}") == ()
        assert images.missing_behind(repo, "streams/refs/x", f"../oci-config-{stored.image.config_digest}") == ()
    stored.part("EROFS image").unlink()
    with Repository.open(stored.repo) as repo:
        [line] = images.missing_behind(repo, "images/refs/x", f"../{name}")
        assert "is missing" in line


# -- malformed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["manifest stream", "config stream"])
@pytest.mark.parametrize("keep", [0, 1, 31, 32, 100, -1])
def test_a_truncated_stream_is_damage_at_its_path(stored: Pulled, part: str, keep: int) -> None:
    path = stored.part(part)
    path.write_bytes(path.read_bytes()[:keep])

    error = stored.refused()

    assert isinstance(error, FormatError)
    assert (error.code, error.status) == ("malformed", 6)
    assert error.path == str(path)
    with pytest.raises(FormatError):
        stored.load()
    assert stored.behind() != ()


@pytest.mark.parametrize("part", ["manifest stream", "config stream", "manifest", "config"])
def test_no_flipped_bit_gives_a_tag_to_anything_but_the_image(stored: Pulled, part: str) -> None:
    path = stored.part(part)
    whole = path.read_bytes()
    expected = stored.load()
    with Repository.open(stored.repo) as repo:
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            behind = images.missing_behind(repo, "streams/refs/oci/app", f"../../oci-manifest-{stored.digest}")
            error = error_of(lambda: images.missing_parts(repo, stored.digest))
            if error is not None:
                assert error.status in (6, 7), place
                assert behind == (error.message,), place
            elif not behind:  # a bit that means nothing, or that only fs-verity would notice
                found = images.load(repo, stored.digest)
                assert found.manifest == expected.manifest
                assert found.config == expected.config


def test_manifest_bytes_with_another_digest_are_damage(stored: Pulled) -> None:
    document = json.loads(stored.image.manifest_bytes)
    stored.part("manifest").write_bytes(json.dumps({**document, "annotations": {"added": "later"}}).encode())

    error = stored.refused()

    assert error.code == "digest-mismatch"
    assert (error.code, error.status, error.wanted) == ("digest-mismatch", 6, stored.digest)
    assert error.found.startswith("sha256:")
    assert error.found != stored.digest


def test_config_bytes_with_another_digest_are_damage(stored: Pulled) -> None:
    stored.part("config").write_bytes(b"{}")

    error = stored.refused()

    assert error.code == "digest-mismatch"
    assert error.wanted == stored.image.config_digest


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_a_document_too_large_for_memory_is_not_read(stored: Pulled, part: str) -> None:
    os.truncate(stored.part(part), 1 << 40)

    error = stored.refused()

    assert isinstance(error, FormatError)
    assert error.found == f"{1 << 40} bytes"


def rewrite(stored: Pulled, part: str, change: Callable[[bytearray], None]) -> None:
    path = stored.part(part)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def test_a_stream_version_from_the_future_is_unsupported(stored: Pulled) -> None:
    rewrite(stored, "manifest stream", lambda data: data.__setitem__(11, 9))

    error = stored.refused()

    assert (error.code, error.status) == ("unsupported-version", 7)
    assert stored.behind() != (), "whatever is wrong is a line"


def test_a_stream_of_another_algorithm_is_refused(stored: Pulled) -> None:
    rewrite(stored, "manifest stream", lambda data: data.__setitem__(14, 1))

    assert stored.refused().status in (6, 7)
    assert stored.behind() != ()


def test_a_stream_of_another_type_in_the_place_of_a_manifest_is_damage(stored: Pulled) -> None:
    link = stored.link(ContentId.manifest(stored.digest))
    target = os.readlink(stored.link(f"oci-layer-{stored.image.diff_ids[0]}"))
    link.unlink()
    link.symlink_to(target)

    error = stored.refused()

    assert isinstance(error, FormatError)
    assert error.wanted == f"content type {splitstream.CONTENT_TYPE_MANIFEST:#x}"
    assert error.found == f"content type {splitstream.CONTENT_TYPE_LAYER:#x}"


def test_a_manifest_stream_without_its_config_is_damage(stored: Pulled) -> None:
    with Repository.open(stored.repo, write=True) as repo:
        raw = ObjectStore(repo).add(stored.image.manifest_bytes)
        writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_MANIFEST)
        writer.add_external(raw, len(stored.image.manifest_bytes))
        stored.link(ContentId.manifest(stored.digest)).unlink()
        ObjectStore(repo).add_stream(ContentId.manifest(stored.digest), writer.finish())

    error = stored.refused()

    assert isinstance(error, FormatError)
    assert error.wanted == f"a named ref config:{stored.image.config_digest}"


def test_a_manifest_stream_with_inline_bytes_is_damage(stored: Pulled) -> None:
    with Repository.open(stored.repo, write=True) as repo:
        writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_MANIFEST)
        writer.add_inline(stored.image.manifest_bytes)
        stored.link(ContentId.manifest(stored.digest)).unlink()
        ObjectStore(repo).add_stream(ContentId.manifest(stored.digest), writer.finish())

    assert stored.refused().code == "malformed"


def test_a_stock_image_is_whole(filled_repo) -> None:  # type: ignore[no-untyped-def]
    path = filled_repo("stock", fill)
    with Repository.open(path) as repo:
        assert images.missing_parts(repo, Digest.parse(digest_of(path, "one"))) == ()


# -- down to the files -------------------------------------------------------------------------------------------------


def _content(pulled: Pulled, **known: dict) -> dict[str, tuple[str, ...]]:  # type: ignore[type-arg]
    with Repository.open(pulled.repo) as repo:
        found = images.missing_content(repo, pulled.digest, **known)
    return {one.key: one.objects for one in found}


def _files(pulled: Pulled) -> list[Path]:
    """The objects of files in the layers, those of the first layer first."""
    streams = [pulled.stream(f"oci-layer-{diff_id}") for diff_id in pulled.image.diff_ids]
    refs = [one for stream in streams for one in splitstream.parse(stream.read_bytes()).object_refs]
    return [pulled.repo / "objects" / one[:2] / one[2:] for one in refs]


def test_a_whole_image_misses_no_content(pulled: Pulled) -> None:
    assert _content(pulled) == {}


@pytest.mark.parametrize("spoil", ["removed", "emptied", "a directory"])
def test_the_files_of_a_layer_that_are_gone_are_named_by_their_layer(pulled: Pulled, spoil: str) -> None:
    first = _files(pulled)[0]
    if spoil == "emptied":
        first.chmod(0o644)
        first.write_bytes(b"")
    else:
        first.unlink()
        if spoil == "a directory":
            first.mkdir()

    assert pulled.missing() == (), "the parts are there"
    assert _content(pulled) == {pulled.image.diff_ids[0]: ("".join(first.parts[-2:]),)}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_gone_or_empty_is_missing_content(pulled: Pulled, part: str) -> None:
    path = pulled.part(part)
    name = "".join(path.parts[-2:])
    whole = path.read_bytes()
    path.unlink()
    gone = _content(pulled)
    path.write_bytes(b"")

    assert list(gone.values()) == [(name,)]
    assert _content(pulled) == gone
    path.write_bytes(whole)
    assert _content(pulled) == {}


def test_objects_of_a_missing_directory_are_missing(pulled: Pulled) -> None:
    files = _files(pulled)
    for path in (pulled.repo / "objects" / files[0].parts[-2]).iterdir():
        path.unlink()
    files[0].parent.rmdir()

    found = {one for objects in _content(pulled).values() for one in objects}
    assert "".join(files[0].parts[-2:]) in found


def test_layers_that_images_share_are_looked_at_once(pulled: Pulled) -> None:
    path = _files(pulled)[0]
    whole = path.read_bytes()
    path.unlink()
    known: dict[str, tuple[str, ...]] = {}
    first = _content(pulled, known=known)
    path.write_bytes(whole)

    assert _content(pulled, known=known) == first
    assert _content(pulled) == {}


def test_a_file_without_bytes_that_is_an_object_is_there(new_repo, cfsctl: Cfsctl) -> None:  # type: ignore[no-untyped-def]
    path = new_repo()
    with Repository.open(path, write=True) as repo:
        empty = ObjectStore(repo).add(b"")
        full = ObjectStore(repo).add(b"full")
        assert list(images.absent_objects(repo, [full, empty])) == []
        (path / "objects" / full[:2] / full[2:]).unlink()
        assert list(images.absent_objects(repo, [full, empty])) == [full]


def test_a_layer_that_cannot_be_read_is_damage_at_its_path(pulled: Pulled) -> None:
    path = pulled.part("layer stream")
    path.write_bytes(path.read_bytes()[:50])

    error = error_of(lambda: _content(pulled))

    assert isinstance(error, FormatError)
    assert error.path == str(path)
