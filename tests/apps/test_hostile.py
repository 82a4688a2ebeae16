"""Sources that lie: each is refused with a clear error, nothing gets a name, and nothing outside is touched."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfs_tags import Repository
from cfs_tags.apps import blobs, platforms
from cfs_tags.apps.importing.choose import Options
from cfs_tags.apps.importing.source.archive import Archive
from cfs_tags.apps.workdir import Machine
from cfs_tags.cli.hints import hint
from cfs_tags.errors import CfsTagsError, FormatError, PlatformNotFound, SourceNotFound, UnsupportedError
from cfs_tags.formats.tarlayer import split
from cfs_tags.repo import refs
from cfs_tags.values import Digest
from support import tars
from support.images import Image, Layer, app_image, base_layer, build_image, directory, file, random_bytes
from support.importing import import_image
from support.peers import Cfsctl
from support.raising import raises
from support.trees import tree

NewRepo = Callable[..., Path]


@pytest.fixture
def refused(repo: Path, cfsctl: Cfsctl) -> Callable[..., CfsTagsError]:
    """Imports what must be refused, and looks that nothing came of it."""

    def check(source: str, kind: type[CfsTagsError] | str, options: Options | None = None, **keywords: Any) -> CfsTagsError:
        with raises(kind) as caught:
            import_image(repo, source, "app", options, **keywords)
        with Repository.open(repo) as opened:
            assert list(refs.walk(opened, "streams/refs")) == []
        assert list((repo / "streams").glob("oci-*")) == []
        assert str(caught.value).isprintable()
        assert caught.value.code != "internal"
        cfsctl.assert_healthy(repo)
        return caught.value

    return check


def rewrite(image: Image, change: Callable[[dict[str, Any]], None], config: dict[str, Any] | None = None) -> str:
    """An image whose manifest says something else, in the same layout; returns its source."""
    manifest = json.loads(image.manifest_bytes)
    if config is not None:
        data = json.dumps(config).encode()
        manifest["config"] = {**manifest["config"], "digest": put(image.layout, data), "size": len(data)}
    change(manifest)
    data = json.dumps(manifest).encode()
    name_only(image.layout, [{"mediaType": manifest["mediaType"], "digest": put(image.layout, data), "size": len(data)}])
    return f"oci:{image.layout}"


def put(layout: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return f"sha256:{digest}"


def name_only(layout: Path, entries: list[dict[str, Any]]) -> None:
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def blob_of(image: Image, number: int = -1) -> Path:
    return image.layout / "blobs/sha256" / image.layers[number].digest.removeprefix("sha256:")


# -- blobs -------------------------------------------------------------------------------------------------------------


def test_a_layer_with_other_bytes_is_refused_whatever_they_are(refused: Callable[..., Any], tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [base_layer(), Layer([file("usr/f", random_bytes("f", 300_000))])])
    path = blob_of(image)
    good = path.read_bytes()
    other = gzip.compress(Layer([file("usr/g", random_bytes("g", 300_000))]).tar, mtime=0)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (bytes(flipped), good[:-1] + b"!", random_bytes("noise", len(good)), good[:-1], good + b"\0", b"", other):
        path.write_bytes(bad)
        error = refused(image.source, "digest-mismatch")
        assert image.layers[1].digest in str(error)
    path.unlink()
    assert image.layers[1].digest in str(refused(image.source, SourceNotFound))


def test_a_layer_with_the_right_digest_and_another_diff_id_is_refused(refused: Callable[..., Any], tmp_path: Path) -> None:
    for compression in ("none", "gzip", "zstd"):
        image = build_image(tmp_path / compression, "app", [base_layer(), Layer([file("usr/f", b"x" * 99)], compression)])
        config = json.loads(image.config_bytes)
        config["rootfs"]["diff_ids"][1] = "sha256:" + "0" * 64
        error = refused(rewrite(image, lambda manifest: None, config), "digest-mismatch")
        assert error.wanted == "sha256:" + "0" * 64


def test_a_layer_that_the_source_does_not_have_is_refused_though_the_repository_has_its_content(
    repo: Path, tmp_path: Path
) -> None:
    image = app_image(tmp_path / "layout", "app")
    import_image(repo, image.source)
    before = tree(repo)
    layers = json.loads(image.manifest_bytes)["layers"]
    lies: list[tuple[dict[str, Any], type[CfsTagsError] | str]] = [
        ({"digest": "sha256:" + "0" * 64, "size": 1}, SourceNotFound),
        ({"digest": "x:" + "a" * 300}, UnsupportedError),
        ({"digest": "x:" + "a" * 20}, UnsupportedError),
        ({"size": layers[0]["size"] + 1}, "digest-mismatch"),
        ({"digest": layers[1]["digest"], "size": layers[1]["size"]}, "digest-mismatch"),
    ]
    for lie, kind in lies:

        def change(manifest: dict[str, Any], lie: dict[str, Any] = lie) -> None:
            manifest["layers"][0].update(lie)

        source = rewrite(image, change)
        with raises(kind):
            import_image(repo, source, "lie")
        assert tree(repo) == before
    blob_of(image).unlink()
    with pytest.raises(SourceNotFound):
        import_image(repo, rewrite(image, lambda manifest: manifest.update(annotations={"new": "1"})), "lie")
    blob_of(image).write_bytes(b"short")
    with raises("digest-mismatch"):
        import_image(repo, rewrite(image, lambda manifest: manifest.update(annotations={"new": "1"})), "lie")
    assert tree(repo) == before


@pytest.mark.parametrize("digits", [20, 180, 300])
def test_a_subject_that_is_no_digest_of_ours_is_refused_before_anything_is_read(
    digits: int, refused: Callable[..., Any], tmp_path: Path
) -> None:
    image = app_image(tmp_path / "layout", "app")
    subject = {"mediaType": "a/b", "size": 1, "digest": "x:" + "a" * digits}
    blob_of(image).unlink()
    refused(rewrite(image, lambda manifest: manifest.update(subject=subject)), UnsupportedError)


def test_a_stream_that_is_cut_or_goes_on_behind_its_end_is_refused(refused: Callable[..., Any], tmp_path: Path) -> None:
    """With a digest that fits: the manifest names the damaged blob."""
    from support.images import _zstd

    tar = Layer([directory("usr"), file("usr/f", random_bytes("f", 300_000))]).tar
    packed, frame = gzip.compress(tar, mtime=0), _zstd(tar)
    damaged = {
        "gzip cut": ("gzip", packed[:-9]),
        "gzip without a trailer": ("gzip", packed[:-8]),
        "gzip and more": ("gzip", packed + b"more"),
        "gzip with a wrong checksum": ("gzip", packed[:-8] + bytes(8)),
        "zstd cut": ("zstd", frame[:-9]),
        "zstd and more": ("zstd", frame + b"more"),
        "zstd with a huge window": ("zstd", bytes.fromhex("28b52ffd00f8") + frame[6:]),
        "tar cut in a file": ("none", tar[:100_000]),
        "tar cut in a header": ("none", tar[:700]),
        "no tar": ("none", random_bytes("noise", 10_000)),
    }
    for number, (compression, blob) in enumerate(damaged.values()):
        data = blob if compression == "none" else tar
        image = build_image(tmp_path / f"{number}", "app", [tars.RawLayer(data, compression, blob)])
        refused(image.source, FormatError)


PARTS = {
    "xz streams": lzma.compress(b"", check=lzma.CHECK_NONE),
    "bzip2 streams": bz2.compress(b""),
    "gzip members": gzip.compress(b"", mtime=0),
    "gzip members of one byte": gzip.compress(b"a", mtime=0),
    "skippable zstd frames": b"\x50\x2a\x4d\x18\0\0\0\0",
    "zstd frames": bytes.fromhex("28b52ffd2000010000"),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_blob_of_nothing_but_tiny_parts_is_refused_early(what: str) -> None:
    taken = []
    data = PARTS[what] * ((4 << 20) // len(PARTS[what]))

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(data), blobs.CHUNK):
            taken.append(start)
            yield data[start : start + blobs.CHUNK]

    with pytest.raises(blobs._Broken, match="more"):
        list(blobs._unpacked(next(kind for kind in ("gzip", "zstd", "xz", "bzip2") if kind in what), b"", chunks()))
    assert len(taken) < 3


def test_as_many_parts_as_there_is_content_for_are_read() -> None:
    content = bytes(1024)
    data = gzip.compress(content, mtime=0) * 5000
    assert b"".join(blobs.uncompressed(iter([data[:7], data[7:]]), 1 << 30, "layer")) == content * 5000


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
@pytest.mark.parametrize("size", [1, 2, 29, 4096, 10_000])
def test_what_comes_out_does_not_depend_on_how_a_blob_is_read(kind: str, size: int) -> None:
    from support.images import _zstd

    compress: Callable[[bytes], bytes] = {
        "gzip": partial(gzip.compress, mtime=0),
        "zstd": _zstd,
        "xz": lzma.compress,
        "bzip2": bz2.compress,
    }[kind]
    parts = [random_bytes(str(n), n * 700) for n in range(12)]
    data = b"".join(compress(part) for part in parts)
    if kind in ("gzip", "xz"):
        data += bytes(700)
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert b"".join(blobs.uncompressed(iter(pieces), 1 << 30, "layer")) == b"".join(parts)
    with pytest.raises(FormatError):
        list(blobs.uncompressed(iter([data[:-800]]), 1 << 30, "layer"))


def test_a_zstd_window_beyond_64_mib_is_refused() -> None:
    """It is memory that a blob of a few bytes would ask for."""
    descriptor = {26: 0x80, 27: 0x88}
    for log, window in descriptor.items():
        frame = bytes.fromhex("28b52ffd00") + bytes([window]) + bytes.fromhex("010000")
        if log == 26:
            assert list(blobs.uncompressed(iter([frame]), 1 << 30, "layer")) == []
        else:
            with pytest.raises(FormatError, match="zstd stream"):
                list(blobs.uncompressed(iter([frame]), 1 << 30, "layer"))


BROKEN_TARS = {
    "a checksum that is not one": tars.usr() + tars.header(b"usr/f")[:148] + b"0000000\0" + tars.header(b"usr/f")[156:],
    "a size that is not one": tars.header(b"usr/f", length=b"abcdefghijk\0"),
    "a negative size": tars.header(b"usr/f", length=b"\xff" * 12, magic=tars.GNU),
    "a size of 2^63": tars.header(b"usr/f", length=b"\x80" + (1 << 63).to_bytes(11, "big"), magic=tars.GNU),
    "a size beyond the archive": tars.header(b"usr/f", 1 << 30) + bytes(4096),
    "a directory beyond the archive": tars.header(b"usr/d/", 1 << 30, b"5") + bytes(4096),
    "a PAX size beyond 2^64": tars.pax({"size": "9" * 30}) + tars.header(b"usr/f"),
    "a PAX size that is not one": tars.pax({"size": "-1"}) + tars.header(b"usr/f"),
    "a PAX record beyond its header": tars.entry(b"pax", b"99 size=1\n", b"x") + tars.header(b"usr/f"),
    "an extension header of 2 MiB": tars.entry(b"pax", bytes(2 << 20), b"x") + tars.header(b"usr/f"),
    "an extension header beyond the archive": tars.header(b"pax", 4096, b"x") + bytes(512),
}


@pytest.mark.parametrize("what", BROKEN_TARS)
def test_a_tar_that_makes_no_sense_is_refused(what: str, refused: Callable[..., Any], tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [tars.RawLayer(BROKEN_TARS[what] + tars.END)])
    error = refused(image.source, FormatError)
    assert error.structure == "tar"


@settings(max_examples=150)
@given(st.binary(max_size=1500), st.integers(1, 700))
def test_any_bytes_are_cut_or_refused_and_none_is_lost(data: bytes, step: int) -> None:
    class Sink:
        found = b""

        def inline(self, data: memoryview) -> None:
            self.found += data

        external = piece = inline

        def begin(self, size: int) -> None: ...

        def end(self) -> None: ...

    sink = Sink()
    for prefix in (b"", tars.usr(), tars.pax({"path": "x"}), tars.gnu_long(b"x")):
        sink.found = b""
        whole = prefix + data
        try:
            split((whole[i : i + step] for i in range(0, len(whole), step)), sink)
        except FormatError:
            assert whole.startswith(sink.found)
        else:
            assert sink.found == whole


@settings(max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"]))
def test_any_bytes_are_uncompressed_or_refused(data: bytes, magic: bytes) -> None:
    try:
        found = b"".join(blobs.uncompressed(iter([magic + data]) if magic + data else iter([]), 1 << 20, "layer"))
    except FormatError:
        return
    assert len(found) <= 1 << 20


def test_bombs_end_at_the_limit(refused: Callable[..., Any], repo: Path, tmp_path: Path) -> None:
    """300 MB of zeros in some KB: behind the end of the archive, in one file, and in an entry that stays inline."""
    from support.images import _zstd

    zeros = bytes(300 << 20)
    made = {
        "behind the end": tars.END + zeros,
        "a file": tars.header(b"usr/f", len(zeros)) + zeros,
        "inline": tars.header(b"usr/d/", len(zeros), b"5") + zeros,
    }
    for number, (name, tar) in enumerate(made.items()):
        packed = {"gzip": gzip.compress(tar, compresslevel=1, mtime=0), "zstd": _zstd(tar)}
        kind = "gzip" if number == 1 else "zstd"
        image = build_image(tmp_path / name, "app", [tars.RawLayer(tar, kind, packed[kind])])
        error = refused(image.source, "layer-too-large", Options(limit=10 << 20))
        assert "--max-layer-size" in (hint(error) or "")
    used = sum(path.stat().st_size for path in repo.rglob("*") if path.is_file())
    assert used < 1 << 20


def test_memory_stays_bounded_whatever_a_layer_consists_of(repo: Path, tmp_path: Path) -> None:
    """200 MB in one file, 200 MB inline, and 60 MB of noise inline: in a process of its own, whose peak is looked at."""
    import subprocess
    import sys

    zeros = bytes(200 << 20)
    noise = Random(1).randbytes(60 << 20)
    tar = tars.usr() + tars.header(b"usr/f", len(zeros)) + zeros + tars.header(b"usr/d/", len(zeros), b"5") + zeros
    tar += tars.header(b"usr/e/", len(noise), b"5") + noise + tars.entry(b"usr/g", b"x" * 65) + tars.END + zeros
    image = build_image(tmp_path / "layout", "app", [tars.RawLayer(tar, "none")])
    del tar, zeros, noise
    peak = (
        "import re, resource, sys; from cfs_tags.cli.main import main; status = main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1],"
        " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(status)"
    )
    for words in (("import", image.source, "app"), ("export", "app", f"oci:{tmp_path}/out:app")):
        done = subprocess.run(
            [sys.executable, "-c", peak, "--repo", str(repo), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        )
        assert done.returncode == 0, done.stderr
        assert max(map(int, done.stderr.split()[-2:])) < 150 << 10, done.stderr
    out = tmp_path / "out/blobs/sha256" / image.layers[0].diff_id.removeprefix("sha256:")
    with out.open("rb") as exported:
        assert f"sha256:{hashlib.file_digest(exported, 'sha256').hexdigest()}" == image.layers[0].diff_id


# -- documents ---------------------------------------------------------------------------------------------------------


def test_a_manifest_of_100_mb_is_not_read(refused: Callable[..., Any], tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    size = 100_000_000
    with (tmp_path / "layout/blobs/sha256" / ("0" * 64)).open("wb") as big:
        big.truncate(size)
    kind = image.manifest["mediaType"]
    for claimed in (size, 700):
        name_only(image.layout, [{"mediaType": kind, "digest": "sha256:" + "0" * 64, "size": claimed}])
        refused(f"oci:{image.layout}", "malformed" if claimed == size else "digest-mismatch")
    (tmp_path / "dir").mkdir()
    (tmp_path / "layout/blobs/sha256" / ("0" * 64)).rename(tmp_path / "dir/manifest.json")
    refused(f"dir:{tmp_path}/dir", FormatError)
    (tmp_path / "dir/manifest.json").rename(tmp_path / "layout/index.json")
    refused(f"oci:{image.layout}", FormatError)


def test_an_index_that_leads_to_itself_ends(refused: Callable[..., Any], tmp_path: Path) -> None:
    """A digest cannot do that, so the directory lies about one; and a chain of indexes is as good as a loop."""
    layout = tmp_path / "layout"
    image = app_image(layout, "app")
    mine = platforms.this_machine()
    platform = {"architecture": mine.architecture, "os": mine.os}
    claimed = "sha256:" + "1" * 64
    entry = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": claimed, "size": 0, "platform": platform}
    data = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    (layout / "blobs/sha256" / ("1" * 64)).write_bytes(data)
    name_only(layout, [{**entry, "size": len(data)}])
    refused(f"oci:{layout}", "digest-mismatch")
    entry = {**image.descriptor, "platform": platform}
    for _ in range(6):
        data = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        entry = {"mediaType": entry["mediaType"], "digest": put(layout, data), "size": len(data), "platform": platform}
    name_only(layout, [entry])
    refused(f"oci:{layout}", FormatError)
    name_only(layout, [])
    refused(f"oci:{layout}", SourceNotFound)
    index = layout / "index.json"
    index.unlink()
    index.symlink_to("/etc/passwd")
    refused(f"oci:{layout}", FormatError)


def test_an_index_without_an_image_for_this_platform_is_refused_with_its_platforms(
    refused: Callable[..., Any], tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    image = app_image(layout, "app")
    entries = [{**image.descriptor, "platform": {"architecture": "z\x1b[31m", "os": "plan9"}}]
    data = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    name_only(
        layout, [{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": put(layout, data), "size": len(data)}]
    )
    error = refused(f"oci:{layout}", PlatformNotFound)
    assert error.status == 4
    assert error.platforms == ("plan9/z\x1b[31m",)


def test_manifests_and_configs_that_do_not_fit_each_other_are_refused(refused: Callable[..., Any], tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    config = json.loads(image.config_bytes)

    def fewer(manifest: dict[str, Any]) -> None:
        del manifest["layers"][0]

    def strange(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"

    def other_algorithm(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["digest"] = "blake3:" + "0" * 64

    def negative(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["size"] = -1

    for change in (fewer, strange, negative):
        refused(rewrite(image, change), FormatError)
    refused(rewrite(image, other_algorithm), CfsTagsError)
    refused(
        rewrite(image, lambda manifest: None, {**config, "rootfs": {"type": "layers", "diff_ids": ["sha256:../../x"] * 2}}),
        FormatError,
    )
    refused(rewrite(image, lambda manifest: None, {**config, "rootfs": None}), FormatError)
    blob = image.layout / "blobs/sha256" / image.config_digest.removeprefix("sha256:")
    blob.write_bytes(image.config_bytes + b" ")
    refused(rewrite(image, lambda manifest: None), "digest-mismatch")


def test_a_link_in_the_place_of_a_blob_or_of_a_directory_is_not_followed(refused: Callable[..., Any], tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    path = blob_of(image)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    refused(image.source, FormatError)
    path.unlink()
    os.mkfifo(path)
    refused(image.source, FormatError)
    path.unlink()
    elsewhere.rename(path)
    (tmp_path / "layout/blobs").rename(tmp_path / "blobs")
    (tmp_path / "layout/blobs").symlink_to(tmp_path / "blobs")
    refused(image.source, FormatError)


# -- archives ----------------------------------------------------------------------------------------------------------


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> str:
    with tarfile.open(path, "w") as made:
        for member, data in members:
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return f"oci-archive:{path}"


def packed(layout: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    files = sorted(path for path in layout.rglob("*") if path.is_file())
    return [(tarfile.TarInfo(path.relative_to(layout).as_posix()), path.read_bytes()) for path in files]


def test_names_that_lead_out_of_an_archive_are_refused_and_touch_nothing(
    refused: Callable[..., Any], repo: Path, tmp_path: Path
) -> None:
    image = app_image(tmp_path / "layout", "app")
    members = packed(tmp_path / "layout")
    before = tree(tmp_path, ("composefs",))
    for number, name in enumerate(("../evil", "/etc/evil", "blobs/../../evil", "blobs/sha256/../../../evil", "/")):
        source = archive(tmp_path / f"{number}.tar", [*members, (tarfile.TarInfo(name), b"evil")])
        error = refused(source, FormatError)
        assert "stay within the archive" in str(error)
        (tmp_path / f"{number}.tar").unlink()
    assert tree(tmp_path, ("composefs",)) == before
    assert not (tmp_path.parent / "evil").exists()
    renamed = [(tarfile.TarInfo(f"./{member.name}"), data) for member, data in members]
    assert import_image(repo, archive(tmp_path / "dots.tar", renamed), "app").plan.names == (("app", image.manifest_digest),)


def test_a_link_in_an_archive_is_no_blob(refused: Callable[..., Any], tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    members = packed(tmp_path / "layout")
    name = f"blobs/sha256/{image.layers[1].digest.removeprefix('sha256:')}"
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, "/etc/passwd"
        source = archive(tmp_path / "link.tar", [*[pair for pair in members if pair[0].name != name], (link, b"")])
        refused(source, FormatError)


def test_archives_that_make_no_sense_are_refused(refused: Callable[..., Any], tmp_path: Path) -> None:
    app_image(tmp_path / "layout", "app")
    whole = Path(archive(tmp_path / "whole.tar", packed(tmp_path / "layout"))[12:]).read_bytes()
    path = tmp_path / "bad.tar"
    for data in (
        random_bytes("noise", 5000),
        whole[:3000],
        tars.header(b"index.json", 1 << 32) + bytes(512),
        tars.entry(b"x", bytes(2 << 20), b"x") + whole,
        tars.entry(b"x", b"99 path=x\n", b"x") + whole,
        gzip.compress(whole)[:-20],
        b"\x28\xb5\x2f\xfd" + bytes(100),
    ):
        path.write_bytes(data)
        for transport in ("oci-archive", "docker-archive"):
            refused(f"{transport}:{path}", FormatError)
    for data in (b"", tars.END, tars.entry(b"other", b"x") + tars.END):
        path.write_bytes(data)
        for transport in ("oci-archive", "docker-archive"):
            refused(f"{transport}:{path}", SourceNotFound)
    path.write_bytes(gzip.compress(tars.END + bytes(20 << 20)))
    refused(f"oci-archive:{path}", "layer-too-large", Options(limit=1 << 20))


def test_a_docker_archive_that_lies_is_refused(refused: Callable[..., Any], tmp_path: Path) -> None:
    layer = base_layer()
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}
    ).encode()
    documents: list[Any] = [
        {},
        [],
        [1],
        [{"Config": 1}],
        [{"Config": "c.json", "Layers": []}],
        [{"Config": "c.json", "Layers": [1]}],
        [{"Config": "c.json", "Layers": ["absent"]}],
        [{"Config": "../c.json", "Layers": ["l"]}],
        [{"Config": "c.json", "Layers": ["loop"]}],
        [{"Config": "c.json", "Layers": ["out"]}],
        [{"Config": "c.json", "Layers": ["other"]}],
        [{"Config": "c.json", "Layers": ["l"], "RepoTags": "x"}],
        [{"Config": "c.json", "Layers": ["l"], "RepoTags": [1]}],
    ]
    loop, out = tarfile.TarInfo("loop"), tarfile.TarInfo("out")
    loop.type = out.type = tarfile.SYMTYPE
    loop.linkname, out.linkname = "loop", "../../../../etc/passwd"
    for number, document in enumerate(documents):
        path = tmp_path / f"{number}.tar"
        members = [(tarfile.TarInfo("manifest.json"), json.dumps(document).encode()), (tarfile.TarInfo("c.json"), config)]
        members += [
            (tarfile.TarInfo("l"), layer.tar),
            (tarfile.TarInfo("other"), Layer([file("x")]).tar),
            (loop, b""),
            (out, b""),
        ]
        archive(path, members)
        refused(f"docker-archive:{path}", CfsTagsError)


def test_an_archive_of_long_targets_of_links_is_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "links.tar"
    target = tars.gnu_long(b"t" * 5000, b"K") + tars.header(b"m", 0, b"2")
    path.write_bytes(target + tars.END)
    with pytest.raises(FormatError, match="4096"):
        Archive(str(path), Machine(str(tmp_path)), 1 << 20)
    member = tars.gnu_long(b"n" * 4000) + tars.header(b"m", 0, b"0")
    path.write_bytes(member * 9000 + tars.END)
    with pytest.raises(FormatError, match="in all"):
        Archive(str(path), Machine(str(tmp_path)), 1 << 20)


@settings(max_examples=100)
@given(st.binary(max_size=2000))
def test_any_bytes_are_an_archive_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(tars.entry(b"a", b"b") + data)
    try:
        found = Archive(str(path), Machine(str(path.parent)), 1 << 20)
    except FormatError:
        return
    assert "a" in found.members
    found.close()


# -- words -------------------------------------------------------------------------------------------------------------


def test_sources_and_names_that_cannot_be(refused: Callable[..., Any], repo: Path, tmp_path: Path) -> None:
    for source in ("", "app", ":x", "oci:", "/oci", "-x:y", "oci:a\0b"):
        refused(source, "invalid-argument")
    for source in (
        "oci:/absent",
        "oci:/absent:x",
        "oci-archive:/absent",
        "docker-archive:/absent:x",
        "dir:/absent",
        "oci:/etc/passwd",
    ):
        refused(source, SourceNotFound)
    image = app_image(tmp_path / "layout", "a\nb")
    with raises("invalid-tag-name"):
        import_image(repo, f"oci:{image.layout}", None)
    with Repository.open(repo, write=True) as opened:
        from cfs_tags.apps.importing.source import open_source

        with raises("program-missing"):
            open_source("docker://quay.io/x", Machine(str(tmp_path)), 1)
        assert opened.stream_object is not None


def test_a_subject_that_is_no_digest_of_ours_is_a_ref_that_stays_in_its_place(repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")

    def odd(manifest: dict[str, Any]) -> None:
        manifest["subject"] = {"mediaType": "x", "digest": "a:../../../../../evil", "size": 1}

    with pytest.raises(FormatError):
        import_image(repo, rewrite(image, odd), "app")

    def other(manifest: dict[str, Any]) -> None:
        manifest["subject"] = {"mediaType": "x", "digest": "sha512:" + "a" * 128, "size": 1}

    done = import_image(repo, rewrite(image, other), "app")
    ((subject, artifact),) = done.plan.referrers
    assert (repo / f"streams/refs/oci-referrers/{subject}/{artifact}").is_symlink()


def test_digests_by_other_algorithms_are_checked_or_unsupported(repo: Path) -> None:
    assert blobs.hasher(Digest("sha512:" + "0" * 128)).name == "sha512"
    with pytest.raises(UnsupportedError):
        blobs.hasher(Digest("blake3:" + "0" * 64))


def test_a_number_of_thousands_of_digits_is_the_name_of_no_image(refused: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "docker.tar"
    with tarfile.open(path, "w") as archive:
        data = b'[{"Config": "c", "Layers": []}]'
        member = tarfile.TarInfo("manifest.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    refused(f"docker-archive:{path}:@{'9' * 5000}", SourceNotFound)
