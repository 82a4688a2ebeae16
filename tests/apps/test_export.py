"""Exporting: what comes out is what went in, for the tools that read it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.apps.exporting import export
from cfs_tags.apps.manifests import ORIGINAL_DIGEST
from cfs_tags.apps.workdir import run
from cfs_tags.errors import FormatError, LockTimeout, MissingObject, TagNotFound
from cfs_tags.formats.oci import LAYOUT
from cfs_tags.values import ContentId, Digest
from support import tars
from support.handmade import REFUSED, TARS
from support.images import (
    Image,
    Layer,
    app_image,
    base_layer,
    build_artifact,
    build_image,
    directory,
    file,
    hardlink,
    opaque,
    random_bytes,
    skopeo_copy,
    static_image,
    symlink,
    umoci_truncated_image,
    whiteout,
)
from support.importing import export_image, import_image
from support.interrupt import count_calls, every_stop, torn_after
from support.peers import clean_environment, find_peer
from support.raising import raises
from support.trees import Node, tree

NewRepo = Callable[..., Path]
COMPRESSIONS = ("none", "gzip", "zstd")


def rich_image(layout: Path, compression: str = "gzip") -> Image:
    """Layers with a bit of everything that a rootless tool can unpack."""
    entries = [
        directory("usr/bin"),
        file("usr/bin/large", random_bytes("large", 3_000_001), 0o755),
        file("usr/bin/text", b"line\n" * 100_000),
        hardlink("usr/bin/hard", "usr/bin/text"),
        symlink("usr/bin/soft", "text"),
        file("usr/" + "n" * 250, b"x" * 65),
        whiteout("usr/share/base"),
        directory("usr/lib"),
        opaque("usr/lib"),
        file("usr/lib/new", b"n" * 65),
    ]
    return build_image(
        layout, "app", [base_layer().compressed(compression), Layer(entries, compression), Layer([], compression)]
    )


def manifest_of(layout: Path, name: str = "app") -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_text())
    key = "org.opencontainers.image.ref.name"
    (entry,) = [entry for entry in index["manifests"] if entry.get("annotations", {}).get(key) == name]
    data = blob(layout, entry["digest"])
    assert len(data) == entry["size"]
    return {"digest": entry["digest"], **json.loads(data)}


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()


def put(layout: Path, data: bytes) -> dict[str, Any]:
    """Put a blob into a layout; its digest and size."""
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def image_id(skopeo: Path, source: str) -> str:
    done = subprocess.run([skopeo, "inspect", "--raw", "--config", source], capture_output=True, check=True, timeout=60)
    return f"sha256:{hashlib.sha256(done.stdout).hexdigest()}"


def files_of(umoci: Path, layout: Path, work: Path) -> dict[str, Node]:
    """The file tree of an image, as umoci unpacks it."""
    words = [umoci, "unpack", "--rootless", "--image", f"{layout}:app", work]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    assert os.stat(work / "rootfs/usr/bin/hard").st_nlink == 2
    return tree(work / "rootfs")


@pytest.mark.parametrize("kept", COMPRESSIONS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_exported_image_imports_as_the_same_streams(
    kept: str, compression: str, skopeo: Path, new_repo: NewRepo, tmp_path: Path
) -> None:
    image = rich_image(tmp_path / "layout", kept)
    ours, again = new_repo(tmp_path / "ours"), new_repo(tmp_path / "again")
    import_image(ours, image.source)
    done = export_image(ours, "app", f"oci:{tmp_path}/out:app", compression)
    assert image_id(skopeo, f"oci:{tmp_path}/out:app") == image.config_digest
    import_image(again, f"oci:{tmp_path}/out:app")
    for layer in image.layers:
        name = f"oci-layer-{layer.diff_id}"
        assert (again / "streams" / name).readlink() == (ours / "streams" / name).readlink()
    manifest = manifest_of(tmp_path / "out")
    assert manifest["digest"] == done.digest
    assert done.is_original == (kept == compression == "none")
    assert (blob(tmp_path / "out", done.digest) == image.manifest_bytes) == done.is_original
    if not done.is_original:
        assert manifest["annotations"][ORIGINAL_DIGEST] == image.manifest_digest
    if compression == "none":
        assert [layer["digest"] for layer in manifest["layers"]] == image.diff_ids


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_skopeo_umoci_and_podman_take_what_is_exported_and_see_the_same_files(
    compression: str,
    skopeo: Path,
    umoci: Path,
    podman: Path,
    repo: Path,
    tmp_path: Path,
    podman_home: Path,
) -> None:
    image = rich_image(tmp_path / "layout")
    import_image(repo, image.source)
    export_image(repo, "app", f"oci:{tmp_path}/out:app", compression)
    export_image(repo, "app", f"oci-archive:{tmp_path}/out.tar:app", compression)
    skopeo_copy(skopeo, f"oci-archive:{tmp_path}/out.tar:app", f"oci:{tmp_path}/unpacked:app")
    layouts = [tmp_path / "layout", tmp_path / "out", tmp_path / "unpacked"]
    if compression == "zstd":  # umoci knows no zstd: it sees what skopeo makes of it
        skopeo_copy(skopeo, f"oci:{tmp_path}/out:app", f"oci:{tmp_path}/gzip:app", "--dest-compress-format", "gzip")
        layouts[1:] = [tmp_path / "gzip"] * 2
    trees = [files_of(umoci, layout, tmp_path / f"bundle-{number}") for number, layout in enumerate(layouts)]
    assert trees[0] == trees[1] == trees[2]
    assert "usr/lib/new" in trees[0]
    assert not {"usr/share/base", "usr/lib/os-release"} & trees[0].keys()
    store = ["--root", f"{tmp_path}/store", "--runroot", str(podman_home), "--storage-driver", "vfs"]
    environment = clean_environment(tmp_path)
    loaded = subprocess.run(
        [podman, *store, "load", "-q", "-i", f"{tmp_path}/out.tar"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    listed = subprocess.run(
        [podman, *store, "images", "--no-trunc", "-q"], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert listed.stdout.split() == [image.config_digest]
    saved = [podman, *store, "save", "-q", "--format", "oci-archive", "-o", tmp_path / "saved.tar", image.config_digest]
    subprocess.run(saved, capture_output=True, env=environment, timeout=120, check=True)
    skopeo_copy(skopeo, f"oci-archive:{tmp_path}/saved.tar", f"oci:{tmp_path}/saved:app")
    assert files_of(umoci, tmp_path / "saved", tmp_path / "bundle-podman") == trees[0]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_hand_made_tars_come_out_bit_for_bit(compression: str, skopeo: Path, repo: Path, tmp_path: Path) -> None:
    """As plain tars, and as what skopeo unpacks of the compressed ones."""
    layers = [tars.RawLayer(data) for data in (*TARS.values(), *REFUSED.values(), tars.usr() + tars.END + b"behind the end")]
    image = build_image(tmp_path / "layout", "app", layers)
    import_image(repo, image.source)
    export_image(repo, "app", f"oci:{tmp_path}/out:app", compression)
    found = tmp_path / "out/blobs/sha256"
    if compression != "none":
        skopeo_copy(skopeo, f"oci:{tmp_path}/out:app", f"dir:{tmp_path}/plain", "--dest-decompress")
        found = tmp_path / "plain"
    for layer in layers:
        assert (found / layer.diff_id.removeprefix("sha256:")).read_bytes() == layer.tar
    assert image_id(skopeo, f"oci:{tmp_path}/out:app") == image.config_digest


def test_images_that_cfsctl_cannot_pull_are_exported_like_any_other(
    skopeo: Path, umoci: Path, repo: Path, tmp_path: Path
) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    (source / "f").write_bytes(b"x" * 700)
    cut = umoci_truncated_image(umoci, tmp_path / "umoci", "cut", source)
    for text, name in ((static_image(tmp_path / "layout").source, "static"), (cut, "cut")):
        import_image(repo, text, name)
        export_image(repo, name, f"oci:{tmp_path}/out:{name}")
        assert image_id(skopeo, f"oci:{tmp_path}/out:{name}") == image_id(skopeo, text)


def test_an_artifact_is_exported_with_the_manifest_and_the_blobs_that_it_had(repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    blobs = [("application/spdx+json", b'{"a":1}'), ("application/vnd.oci.image.layer.v1.tar+gzip", b"no gzip at all")]
    sbom = build_artifact(tmp_path / "layout", "sbom", blobs, subject=image)
    import_image(repo, sbom.source, "sbom")
    for compression in COMPRESSIONS:
        assert export_image(repo, "sbom", f"oci:{tmp_path}/{compression}:sbom", compression).is_original
        for _, data in blobs:
            assert data in [path.read_bytes() for path in (tmp_path / compression / "blobs/sha256").iterdir()]


def test_other_transports_go_through_skopeo(skopeo: Path, repo: Path, tmp_path: Path) -> None:
    image = rich_image(tmp_path / "layout")
    import_image(repo, image.source)
    export_image(repo, "app", f"dir:{tmp_path}/dir")
    export_image(repo, "app", f"docker-archive:{tmp_path}/docker.tar:app:1")
    manifest = json.loads((tmp_path / "dir/manifest.json").read_text())
    assert manifest["config"]["digest"] == image.config_digest
    with tarfile.open(tmp_path / "docker.tar") as archive:
        assert "manifest.json" in archive.getnames()


def test_an_image_is_pushed_to_a_registry(
    skopeo: Path, new_repo: NewRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = find_peer("registry")  # before there is another home
    if registry is None:
        pytest.skip("the reference registry is not here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        host, port = free.getsockname()
    address = f"{host}:{port}"
    store = f"storage: {{filesystem: {{rootdirectory: {tmp_path}/store}}}}"
    (tmp_path / "config.yml").write_text(f"version: 0.1\nlog: {{level: error}}\n{store}\nhttp: {{addr: {address}}}\n")
    settings = tmp_path / ".config/containers"
    settings.mkdir(parents=True)
    (settings / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (settings / "registries.conf").write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    ours, again = new_repo(tmp_path / "ours"), new_repo(tmp_path / "again")
    image = rich_image(tmp_path / "layout")
    import_image(ours, image.source)
    words = [registry, "serve", tmp_path / "config.yml"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            until = time.monotonic() + 20
            while True:
                with suppress(OSError), socket.create_connection((host, port), 1):
                    break
                assert time.monotonic() < until
                time.sleep(0.05)
            export_image(ours, "app", f"docker://{address}/apps/app:1", "gzip")
            import_image(again, f"docker://{address}/apps/app:1")
        finally:
            running.terminate()
    for layer in image.layers:
        name = f"oci-layer-{layer.diff_id}"
        assert (again / "streams" / name).readlink() == (ours / "streams" / name).readlink()


def test_a_layout_is_added_to_and_a_name_in_it_moves(repo: Path, tmp_path: Path) -> None:
    one, two = (app_image(tmp_path / "layout", name) for name in ("one", "two"))
    import_image(repo, one.source, "one")
    import_image(repo, two.source, "two")
    out = tmp_path / "out"
    export_image(repo, "one", f"oci:{out}:a")
    export_image(repo, "two", f"oci:{out}:b/c:1")
    first = manifest_of(out, "a")
    export_image(repo, "two", f"oci:{out}:a")
    assert manifest_of(out, "b/c:1")["digest"] == manifest_of(out, "a")["digest"] != first["digest"]
    assert len(json.loads((out / "index.json").read_text())["manifests"]) == 2
    export_image(repo, "@" + two.manifest_digest, f"oci:{out}")
    assert len(json.loads((out / "index.json").read_text())["manifests"]) == 3


def test_an_archive_that_exists_and_a_directory_that_is_no_layout_stay_as_they_are(repo: Path, tmp_path: Path) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    (tmp_path / "file").write_bytes(b"mine")
    with raises("target-exists"):
        export_image(repo, "app", f"oci-archive:{tmp_path}/file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_bytes(b"mine")
    with pytest.raises(FormatError):
        export_image(repo, "app", f"oci:{other}")
    assert (tmp_path / "file").read_bytes() == (other / "mine").read_bytes() == b"mine"
    assert [path.name for path in other.iterdir()] == ["mine"]
    with raises("invalid-argument"):
        export_image(repo, "app", "nowhere")
    with pytest.raises(TagNotFound):
        export_image(repo, "absent", f"oci:{tmp_path}/absent")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "left", [b"", b'{"imageLayoutVersion"', b'{"imageLayoutVersion": "1.', b"\0" * 30, LAYOUT[:9] + b"\0" * 9]
)
@pytest.mark.parametrize("had_one", [False, True])
def test_a_layout_whose_mark_was_cut_short_gets_it_again(repo: Path, tmp_path: Path, left: bytes, had_one: bool) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    out = tmp_path / "out"
    if had_one:
        export_image(repo, "app", f"oci:{out}:first")
    out.mkdir(exist_ok=True)
    (out / "oci-layout").write_bytes(left)

    export_image(repo, "app", f"oci:{out}:app")

    assert (out / "oci-layout").read_bytes() == LAYOUT
    assert manifest_of(out)["digest"]
    assert not had_one or manifest_of(out, "first")
    assert not [name for name in os.listdir(out) if name.startswith(".")]


@pytest.mark.parametrize(
    "left",
    [b"[]", b"{}", b'{"imageLayoutVersion":1}', b'{"imageLayoutVersion":"2.0.0"}', LAYOUT + b"{", b"mine", b"x" * 70_000],
)
def test_a_layout_whose_mark_is_something_else_is_left_alone_and_the_file_is_named(
    repo: Path, tmp_path: Path, left: bytes
) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    out = tmp_path / "out"
    out.mkdir()
    (out / "oci-layout").write_bytes(left)

    with raises("target-damaged") as raised:
        export_image(repo, "app", f"oci:{out}:app")

    assert raised.value.facts()["path"] == str(out / "oci-layout")
    assert os.listdir(out) == ["oci-layout"]
    assert (out / "oci-layout").read_bytes() == left


def test_a_mark_with_spaces_and_more_fields_is_left_as_it_is(repo: Path, tmp_path: Path) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    out = tmp_path / "out"
    out.mkdir()
    for mark in (b'{ "imageLayoutVersion": "1.0.0" }\n', b'{"imageLayoutVersion":"1.0.0","more":[]}'):
        (out / "oci-layout").write_bytes(mark)
        export_image(repo, "app", f"oci:{out}:app")
        assert (out / "oci-layout").read_bytes() == mark


def test_what_a_killed_export_left_of_an_index_goes_with_the_next(repo: Path, tmp_path: Path) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".index-new").write_bytes(b'{"schemaVersion":2')
    export_image(repo, "app", f"oci:{out}:app")
    assert sorted(os.listdir(out)) == ["blobs", "index.json", "oci-layout"]


def test_a_damaged_layer_is_not_exported(repo: Path, tmp_path: Path) -> None:
    image = rich_image(tmp_path / "layout")
    import_image(repo, image.source)
    large = next(path for path in (repo / "objects").rglob("*") if path.is_file() and path.stat().st_size == 3_000_001)
    data = large.read_bytes()
    large.write_bytes(data[:-1] + b"!")
    for compression in COMPRESSIONS:
        with raises("digest-mismatch"):
            export_image(repo, "app", f"oci:{tmp_path}/{compression}:app", compression)
    large.write_bytes(data[:-1])
    with pytest.raises(FormatError):
        export_image(repo, "app", f"oci:{tmp_path}/none:app")
    large.unlink()
    with pytest.raises(MissingObject):
        export_image(repo, "app", f"oci-archive:{tmp_path}/out.tar:app")
    with Repository.open(repo) as opened:
        stream = opened.stream_object(ContentId.layer(Digest(image.diff_ids[1])))
    assert stream is not None
    (repo / "objects" / stream[:2] / stream[2:]).unlink()
    with pytest.raises(MissingObject):
        export_image(repo, "app", f"oci:{tmp_path}/none:app")
    assert not (tmp_path / "out.tar").exists()
    assert not any((tmp_path / compression / "index.json").exists() for compression in COMPRESSIONS)


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_stopped_anywhere_an_export_names_nothing_that_is_not_whole(transport: str, repo: Path, tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), file("usr/f", b"x" * 70)])])
    import_image(repo, image.source)

    def prepare(number: int) -> Path:
        return tmp_path / f"out-{number}"

    for attempt in every_stop(prepare, lambda path: export_image(repo, "app", f"{transport}:{path}:app"), torn_after):
        out = attempt.subject
        if transport == "oci-archive":
            if out.exists():
                with tarfile.open(out) as archive:
                    assert "index.json" in archive.getnames()
            continue
        for path in out.glob("blobs/sha256/*"):
            assert len(path.name) == 64
        if (out / "index.json").exists():
            for descriptor in [(manifest := manifest_of(out))["config"], *manifest["layers"]]:
                assert len(blob(out, descriptor["digest"])) == descriptor["size"]
        export_image(repo, "app", f"oci:{out}:app")
        assert [blob(out, layer["digest"]) for layer in manifest_of(out)["layers"]] == [image.layers[0].tar]


def test_a_layer_that_is_in_the_layout_already_is_not_written_again(repo: Path, tmp_path: Path) -> None:
    image = rich_image(tmp_path / "layout")
    import_image(repo, image.source)
    export_image(repo, "app", f"oci:{tmp_path}/out:app")
    with count_calls() as calls:
        export_image(repo, "app", f"oci:{tmp_path}/out:app")
    assert "open_unnamed" not in calls.names


def test_a_name_too_long_for_a_tar_header_is_written_as_every_tool_reads_it(
    skopeo: Path, new_repo: NewRepo, tmp_path: Path
) -> None:
    layer = Layer([directory("usr"), file("usr/f", b"x" * 70)])
    plain = build_image(tmp_path / "layout", "plain", [layer])
    diff_id = f"sha512:{hashlib.sha512(layer.tar).hexdigest()}"
    config = json.loads(plain.config_bytes)
    config["rootfs"]["diff_ids"] = [diff_id]
    raw = put(plain.layout, json.dumps(config).encode())
    image = put(plain.layout, json.dumps({**plain.manifest, "config": {**plain.manifest["config"], **raw}}).encode())
    index = {"schemaVersion": 2, "manifests": [{"mediaType": plain.descriptor["mediaType"], **image}]}
    (plain.layout / "index.json").write_text(json.dumps(index))
    ours, again = new_repo(tmp_path / "ours"), new_repo(tmp_path / "again")
    import_image(ours, f"oci:{plain.layout}")
    out = tmp_path / "out.tar"
    export_image(ours, "app", f"oci-archive:{out}:app")
    name = f"blobs/sha512/{diff_id[7:]}"
    with tarfile.open(out) as archive:
        assert name in archive.getnames()
        content = archive.extractfile(name)
        assert content is not None
        assert content.read() == layer.tar
    listed = subprocess.run(["tar", "tf", out], capture_output=True, text=True, check=True, timeout=60)
    assert name in listed.stdout.splitlines()
    assert listed.stderr == ""
    assert image_id(skopeo, f"oci-archive:{out}:app") == raw["digest"]
    import_image(again, f"oci-archive:{out}:app")
    stream = f"streams/oci-layer-{diff_id}"
    assert (again / stream).readlink() == (ours / stream).readlink()


def test_a_blob_of_the_layout_that_is_not_what_its_name_says_is_written_again(repo: Path, tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [base_layer().compressed("none")])
    import_image(repo, image.source)
    for compression in COMPRESSIONS:
        out = tmp_path / compression
        export_image(repo, "app", f"oci:{out}:app", compression)
        for path in (out / "blobs/sha256").iterdir():
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        export_image(repo, "app", f"oci:{out}:app", compression)
        for path in (out / "blobs/sha256").iterdir():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


@pytest.mark.parametrize("link", ["blobs", "blobs/sha256"])
def test_nothing_is_written_through_a_link_in_the_layout(link: str, repo: Path, tmp_path: Path) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / link).parent.mkdir(parents=True)
    (out / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    (out / link).symlink_to(elsewhere)
    with pytest.raises(FormatError):
        export_image(repo, "app", f"oci:{out}:app")
    assert list(elsewhere.iterdir()) == []


def test_exports_into_one_layout_at_the_same_time_are_all_named(repo: Path, tmp_path: Path) -> None:
    names = [f"app-{number}" for number in range(6)]
    for name in names:
        import_image(
            repo, build_image(tmp_path / "layout", name, [Layer([directory("usr"), file("usr/f", name.encode())])]).source, name
        )
    out = tmp_path / "out"
    words = [sys.executable, "-m", "cfs_tags", "--repo", str(repo), "export"]
    running = [subprocess.Popen([*words, name, f"oci:{out}:{name}"], stdout=subprocess.DEVNULL) for name in names]
    assert [one.wait(60) for one in running] == [0] * len(names)
    for name in names:
        assert manifest_of(out, name)


def test_a_layout_that_another_process_has_locked_is_waited_for_with_a_deadline(repo: Path, tmp_path: Path) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    out = tmp_path / "out"
    out.mkdir()
    fd = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    with pytest.raises(LockTimeout):
        export_image(repo, "app", f"oci:{out}:app", timeout=0.2)
    os.close(fd)
    export_image(repo, "app", f"oci:{out}:app", timeout=0.2)


def test_the_repository_is_free_while_skopeo_uploads(
    skopeo: Path, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    free: list[bool] = []

    def upload(program: str, *words: str) -> bytes:
        fd = os.open(repo, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(True)
        finally:
            os.close(fd)
        return run(program, *words)

    monkeypatch.setattr(export, "run", upload)
    export_image(repo, "app", f"dir:{tmp_path}/dir")
    assert free == [True]
    assert (tmp_path / "dir/manifest.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_told_to_end_leaves_no_temporary_files_and_no_skopeo(
    number: signal.Signals, repo: Path, tmp_path: Path
) -> None:
    import_image(repo, app_image(tmp_path / "layout", "app").source)
    programs, temporary, pid = tmp_path / "bin", tmp_path / "tmp", tmp_path / "pid"
    programs.mkdir()
    temporary.mkdir()
    (programs / "skopeo").write_text(f"#!/bin/sh\necho $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 60\n")
    (programs / "skopeo").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    words = [sys.executable, "-m", "cfs_tags", "--repo", str(repo), "export", "app", f"dir:{tmp_path}/out"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as running:
        until = time.monotonic() + 30
        while not pid.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        running.send_signal(number)
        assert running.wait(20) == 130
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
