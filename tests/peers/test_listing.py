"""The same repository through our eyes and through cfsctl's: images that umoci, skopeo and we made, tags of every shape."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.repo import images
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.store import WriteRepo
from cfs_tags.tags import rows
from cfs_tags.tags.names import resolve
from cfs_tags.values import ContentId, Digest, ObjectId
from support import tagging
from support.images import (
    Image,
    Layer,
    app_image,
    base_layer,
    build_artifact,
    build_image,
    build_index,
    directory,
    fifo,
    file,
    hardlink,
    host_image,
    opaque,
    pull,
    pull_image,
    random_bytes,
    skopeo_copy,
    static_image,
    symlink,
    umoci_image,
    whiteout,
)
from support.peers import Cfsctl
from support.stock import SHARED, link_to
from support.trees import tree

ALGORITHMS = ("sha256", "sha512")
NAMES = (
    "docker://quay.io/fedora/fedora:latest",
    "quay.io/org/app@sha256:" + "0" * 64,
    "100%/25%",
    "%2F%252F",
    "a@{1}",
    "sha256:e2bc",
    "deployment/x",
    "b l a n k s",
    "ünï",
    "localhost/bootc-app",
    "x" * 255,
    "/" * 85,
)


def odd_image(layout: Path) -> Image:
    """Everything that a layer can have in it."""
    lower = Layer(
        [
            *(directory(name) for name in ("usr", "usr/bin", "usr/share", "usr/share/gone", "etc")),
            file("usr/bin/large", random_bytes("large", 3_000_000), 0o755),
            file("usr/bin/empty"),
            file("usr/bin/inline", b"x" * 64),
            file("usr/bin/external", b"x" * 65),
            hardlink("usr/bin/linked", "usr/bin/large"),
            symlink("usr/bin/symbolic", "large"),
            fifo("usr/share/pipe"),
            file("usr/share/gone/a", "a"),
            file("usr/share/removed", "b" * 100),
            file("etc/ü", "text").with_xattrs(user__note=b"\x00\xff"),
        ]
    )
    upper = Layer([whiteout("usr/share/removed"), directory("usr/share/gone"), opaque("usr/share/gone")], "zstd")
    many = [
        Layer([directory("usr"), file(f"usr/{n}", f"{n}" * 70)], ("gzip", "zstd", "none")[n % 3], end=("whole", "open")[n % 2])
        for n in range(20)
    ]
    return build_image(
        layout,
        "odd",
        [lower, upper, *many],
        config={"created": "2020-02-29T23:59:59.123456789+02:00"},
        labels={"a": "b", "ü": "\x1b[31m"},
        annotations={"org.opencontainers.image.title": "odd"},
    )


@pytest.fixture(params=ALGORITHMS)
def filled(  # type: ignore[no-untyped-def]
    request: pytest.FixtureRequest, filled_repo, skopeo: Path, umoci: Path
) -> Path:
    """A repository that cfsctl filled with everything it can pull."""

    def fill(cfsctl: Cfsctl, repo: Path) -> None:
        layout = repo.parent / "layout"
        web = app_image(layout, "web", labels={"version": "1"})
        names = iter(NAMES)
        for image in (web, app_image(layout, "db", [base_layer(), base_layer("more")]), odd_image(layout)):
            pull_image(cfsctl, repo, image, next(names))
        pull_image(cfsctl, repo, host_image(layout, "1"), next(names), bootable=True)
        for number, options in enumerate((["--dest-compress-format", "zstd"], ["--dest-decompress"])):
            target = repo.parent / f"copied{number}"
            skopeo_copy(skopeo, web.source, f"oci:{target}:web", *options)
            pull(cfsctl, repo, target, "web", next(names))

        def change(root: Path) -> None:
            (root / "usr" / "bin").mkdir(parents=True)
            (root / "usr" / "bin" / "made").write_bytes(random_bytes("umoci", 10_000))
            os.link(root / "usr" / "bin" / "made", root / "usr" / "bin" / "twice")

        umoci_image(umoci, repo.parent / "umoci", "made", change, repo.parent / "work")
        pull(cfsctl, repo, repo.parent / "umoci", "made", next(names))
        other = app_image(layout, "other", config={"architecture": "s390x"})
        build_index(layout, "index", {"amd64": web, "s390x": other})
        pull(cfsctl, repo, layout, "index", next(names))
        for name in names:
            cfsctl(repo, "oci", "tag", web.manifest_digest, name)
        done = cfsctl(repo, "oci", "pull", static_image(layout).source, "static", check=False)
        assert done.returncode != 0

    return filled_repo("everything", fill, algorithm=request.param)  # type: ignore[no-any-return]


def ours(path: Path) -> dict[str, dict[str, object]]:
    """Our listing in the words of ``cfsctl oci images --json``."""
    found = {}
    with Repository.open(path) as repo:
        for tag in rows.list_tags(repo, owners=("app", "bootc")):
            if tag.digest is None or tag.home != "shared":
                continue
            facts = rows.facts(images.load(repo, tag.digest))
            found[tag.name] = {
                "name": tag.name,
                "manifest_digest": str(tag.digest),
                **facts._asdict(),
                "referrer_count": len(rows.referrers(repo, tag.digest)),
            }
    return found


def theirs(cfsctl: Cfsctl, path: Path) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in cfsctl.json(path, "oci", "images", "--json")["images"]}


def verdict(cfsctl: Cfsctl, path: Path) -> tuple[str, str, str]:
    """What cfsctl says about the repository's health, and what it would collect."""
    said = cfsctl(path, "fsck"), cfsctl(path, "oci", "fsck"), cfsctl(path, "gc", "-n")
    return said[0].stdout, "\n".join(sorted(said[1].stdout.splitlines())), said[2].stdout


def test_our_listing_is_that_of_cfsctl(filled: Path, cfsctl: Cfsctl) -> None:
    found = ours(filled)

    assert set(found) == set(NAMES)
    assert found == theirs(cfsctl, filled)


def test_manifest_config_referrers_and_images_are_those_that_cfsctl_inspects(filled: Path, cfsctl: Cfsctl) -> None:
    with Repository.open(filled) as repo:
        for name in NAMES:
            shown = cfsctl.json(filled, "oci", "inspect", name)
            digest = resolve(repo, name)
            assert images.raw_manifest(repo, digest).decode() == shown["manifest"]
            assert images.raw_config(repo, digest).decode() == shown["config"]
            assert rows.referrers(repo, digest) == shown["referrers"] == []
            erofs = images.load(repo, digest).erofs
            assert erofs.get("composefs.image.v1") == shown["composefs_erofs"]
            assert erofs.get("composefs.image.boot.v1") == shown["composefs_boot_erofs"]
            assert images.missing_parts(repo, digest) == ()


def test_layers_are_those_that_cfsctl_links(filled: Path, cfsctl: Cfsctl) -> None:
    with Repository.open(filled) as repo:
        for name in NAMES:
            image = images.load(repo, resolve(repo, name))
            manifest = json.loads(cfsctl.json(filled, "oci", "inspect", name)["manifest"])
            assert [layer.descriptor.digest for layer in image.layers] == [row["digest"] for row in manifest["layers"]]
            assert [layer.descriptor.size for layer in image.layers] == [row["size"] for row in manifest["layers"]]
            for layer in image.layers:
                assert layer.diff_id is not None
                linked = repo.stream_object(ContentId.layer(layer.diff_id))
                assert layer.object == linked


def test_every_layer_gives_the_tar_that_cfsctl_gives(filled: Path, cfsctl: Cfsctl) -> None:
    with Repository.open(filled) as repo:
        image = images.load(repo, resolve(repo, NAMES[2]))
        for layer in image.layers:
            assert layer.diff_id is not None
            assert layer.object is not None
            stream = splitstream.parse(repo.read_object(layer.object, 1 << 30, "x"))
            tar = b"".join(
                repo.read_object(chunk, 1 << 30, "x") if isinstance(chunk, ObjectId) else chunk
                for chunk in splitstream.chunks(stream)
            )
            assert hashlib.sha256(tar).hexdigest() == layer.diff_id.hex
            shown = cfsctl.json(filled, "oci", "layer", "--json", layer.diff_id)
            assert shown["size"] == len(tar) if "size" in shown else shown


def test_tags_that_we_make_are_listed_inspected_collected_around_and_untagged_by_cfsctl(filled: Path, cfsctl: Cfsctl) -> None:
    before = verdict(cfsctl, filled)
    bare = tree(filled)
    with Repository.open(filled, write=True) as repo:
        one = resolve(repo, NAMES[0])
        for name in NAMES:
            made = f"ours/{name}"[: 200 if name.isalnum() else 80]
            tagging.create(repo, made, f"@{one}")
            assert cfsctl.tags(filled)[made] == one
            assert cfsctl.json(filled, "oci", "inspect", made)["manifest"]
        assert ours(filled) == theirs(cfsctl, filled)
        listed = [name for name in cfsctl.tags(filled) if name.startswith("ours/")]
        assert len(listed) == len(NAMES)
        cfsctl(filled, "oci", "untag", listed[0])
        tagging.rename(repo, listed[1], "ours/renamed")
        tagging.create(repo, listed[2], NAMES[1], force=True)
        assert ours(filled) == theirs(cfsctl, filled)
        tagging.delete(repo, ["ours/renamed", *listed[2:]])

    assert verdict(cfsctl, filled) == before
    ignored = ("cfs-tags",)
    assert {name: node for name, node in tree(filled, ignored).items() if node.kind != "dir"} == {
        name: node for name, node in bare.items() if node.kind != "dir"
    }
    assert (filled / "cfs-tags" / "reflog").is_dir()


def test_private_tags_and_leases_and_trash_are_roots_for_cfsctl_and_no_tags(filled: Path, cfsctl: Cfsctl) -> None:
    with Repository.open(filled, write=True) as repo:
        one = resolve(repo, NAMES[2])
        tagging.delete(repo, [NAMES[2]])
        collected = cfsctl(filled, "gc", "-n").stdout
        expires = rows.expiry(3600)
        for make in (
            lambda: tagging.create(repo, "mine", f"@{one}", home="private"),
            lambda: tagging.create(repo, "mine", f"@{one}", expires=expires, force=True),
            lambda: tagging.delete(repo, ["mine"], expires=expires),
        ):
            make()
            assert cfsctl(filled, "gc", "-n").stdout != collected
            assert "mine" not in cfsctl.tags(filled)
            cfsctl(filled, "fsck")
    cfsctl(filled, "gc")
    with Repository.open(filled) as repo:
        assert images.missing_parts(repo, one) == ()


def test_real_subdirectories_are_listed_as_cfsctl_lists_them(filled: Path, cfsctl: Cfsctl) -> None:
    one = cfsctl.tags(filled)[NAMES[0]]
    for path in ("sub/app", "sub/deep/er/app:1", "sub/with%2Fencoded", "enc%2Foded/x"):
        place = filled / SHARED / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(link_to(one, 2 + path.count("/")))
    (filled / SHARED / "empty").mkdir()

    found = ours(filled)

    assert found == theirs(cfsctl, filled)
    assert {"sub/app", "sub/deep/er/app:1", "sub/with/encoded", "enc/oded/x"} <= set(found)
    with Repository.open(filled) as repo:
        for name in found:
            assert resolve(repo, name) == found[name]["manifest_digest"]


# -- what we write -----------------------------------------------------------------------------------------------------


def store_image(repo: WriteRepo, image: Image, layers: dict[str, ObjectId], *, config_refs: bool) -> None:
    """Manifest and config of ``image`` as streams of ours; ``layers`` by what their named refs are called."""

    def put(content_id: str, kind: int, data: bytes, named: dict[str, ObjectId]) -> ObjectId:
        writer = splitwriter.Writer(repo.algorithm, kind)
        for name, target in named.items():
            writer.add_named_ref(name, target)
        writer.add_external(ObjectStore(repo).add(data), len(data))
        return ObjectStore(repo).add_stream(ContentId(content_id), writer.finish())

    config = put(
        f"oci-config-{image.config_digest}",
        splitstream.CONTENT_TYPE_CONFIG,
        image.config_bytes,
        layers if config_refs else {},
    )
    put(
        f"oci-manifest-{image.manifest_digest}",
        splitstream.CONTENT_TYPE_MANIFEST,
        image.manifest_bytes,
        {f"config:{image.config_digest}": config, **layers},
    )


def store_artifact(repo: WriteRepo, artifact: Image, blobs: list[bytes]) -> None:
    """An artifact as cfsctl's library stores one; no command of cfsctl does."""
    layers = {}
    for descriptor, blob in zip(artifact.manifest["layers"], blobs, strict=True):
        writer = splitwriter.Writer(repo.algorithm, splitstream.CONTENT_TYPE_BLOB)
        writer.add_external(ObjectStore(repo).add(blob), len(blob))
        layers[descriptor["digest"]] = ObjectStore(repo).add_stream(
            ContentId(f"oci-blob-{descriptor['digest']}"), writer.finish()
        )
    store_image(repo, artifact, layers, config_refs=False)


@pytest.fixture(params=ALGORITHMS)
def empty(request: pytest.FixtureRequest, new_repo) -> Path:  # type: ignore[no-untyped-def]
    return new_repo(algorithm=request.param)  # type: ignore[no-any-return]


def test_an_image_that_we_write_is_read_by_cfsctl_byte_for_byte(empty: Path, tmp_path: Path, cfsctl: Cfsctl) -> None:
    layer = Layer([directory("usr"), file("usr/a", random_bytes("a", 5000)), file("usr/b", "small")])
    image = build_image(tmp_path / "layout", "app", [layer])
    with Repository.open(empty, write=True) as repo:
        writer = splitwriter.Writer(repo.algorithm, splitstream.CONTENT_TYPE_LAYER)
        at = layer.tar.index(random_bytes("a", 5000))
        writer.add_inline(layer.tar[:at])
        writer.add_external(ObjectStore(repo).add(layer.tar[at : at + 5000]), 5000)
        writer.add_inline(layer.tar[at + 5000 :])
        stored = ObjectStore(repo).add_stream(ContentId(f"oci-layer-{layer.diff_id}"), writer.finish())
        store_image(repo, image, {layer.diff_id: stored}, config_refs=True)
        tagging.create(repo, "app", f"@{image.manifest_digest}")

    assert cfsctl(empty, "cat", f"oci-layer-{layer.diff_id}").stdout == os.fsdecode(layer.tar)
    assert cfsctl(empty, "cat", f"oci-manifest-{image.manifest_digest}").stdout == image.manifest_bytes.decode()
    assert cfsctl(empty, "oci", "layer", layer.diff_id).stdout == os.fsdecode(layer.tar)
    assert cfsctl.json(empty, "oci", "inspect", "app")["config"] == image.config_bytes.decode()
    assert "/usr/a" in cfsctl(empty, "oci", "dump", "app").stdout
    assert ours(empty) == theirs(cfsctl, empty)
    cfsctl(empty, "oci", "fsck")
    cfsctl.assert_healthy(empty)
    cfsctl(empty, "gc")
    assert cfsctl(empty, "cat", f"oci-layer-{layer.diff_id}").stdout == os.fsdecode(layer.tar)


def test_artifacts_and_referrers_that_we_write_are_shown_by_both(empty: Path, tmp_path: Path, cfsctl: Cfsctl) -> None:
    subject = app_image(tmp_path / "layout", "web")
    pull_image(cfsctl, empty, subject, "web")
    blobs = [b"signature " * 20, b""]
    made = []
    with Repository.open(empty, write=True) as repo:
        for number in range(3):
            artifact = build_artifact(
                tmp_path / "layout",
                f"sig{number}",
                [("application/x", blob) for blob in blobs],
                subject=subject,
                annotations={"n": str(number)},
            )
            store_artifact(repo, artifact, blobs)
            made.append(Digest.parse(artifact.manifest_digest))
            place = empty / "streams" / "refs" / "oci-referrers" / subject.manifest_digest / artifact.manifest_digest
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(link_to(artifact.manifest_digest, 3))
        tagging.create(repo, "sig", f"@{made[0]}")

        loaded = images.load(repo, made[0])
        assert loaded.config is None
        assert [layer.object for layer in loaded.layers] == [
            repo.stream_object(ContentId.blob(layer.descriptor.digest)) for layer in loaded.layers
        ]
        assert loaded.manifest.subject is not None
        assert loaded.manifest.subject.digest == subject.manifest_digest
        assert rows.referrers(repo, Digest.parse(subject.manifest_digest)) == sorted(made)

    assert ours(empty) == theirs(cfsctl, empty)
    assert ours(empty)["web"]["referrer_count"] == 3
    assert ours(empty)["sig"]["is_container"] is False
    assert set(cfsctl.json(empty, "oci", "inspect", "web")["referrers"]) == set(made)
    assert cfsctl.json(empty, "oci", "inspect", "sig")["manifest"] == artifact.manifest_bytes.decode().replace(
        '"n":"2"', '"n":"0"'
    )
    assert cfsctl(empty, "cat", f"oci-blob-{loaded.layers[0].descriptor.digest}").stdout == blobs[0].decode()
    cfsctl(empty, "oci", "fsck")
    cfsctl(empty, "gc")
    cfsctl.assert_healthy(empty)
    with Repository.open(empty) as reader:
        assert rows.referrers(reader, Digest.parse(subject.manifest_digest)) == sorted(made)
        assert all(images.missing_parts(reader, digest) == () for digest in made)


def test_an_artifact_is_tagged_shared_in_a_bootc_repository(empty: Path, tmp_path: Path, cfsctl: Cfsctl) -> None:
    (empty.parent / "state" / "deploy").mkdir(parents=True)
    artifact = build_artifact(tmp_path / "layout", "sig", [("application/x", b"x" * 100)])
    with Repository.open(empty, write=True) as repo:
        store_artifact(repo, artifact, [b"x" * 100])
        assert tagging.create(repo, "sig", f"@{artifact.manifest_digest}").home == "shared"
    assert cfsctl.tags(empty) == {"sig": artifact.manifest_digest}


MAKERS: dict[str, Callable[[Cfsctl, Path, str, str], object]] = {
    "cfsctl": lambda cfsctl, path, digest, name: cfsctl(path, "oci", "tag", digest, name),
    "we": lambda cfsctl, path, digest, name: _create(path, digest, name),
}


def _create(path: Path, digest: str, name: str) -> None:
    with Repository.open(path, write=True) as repo:
        tagging.create(repo, name, f"@{digest}", owners=["bootc"])


def test_we_and_cfsctl_write_the_same_link(filled: Path, cfsctl: Cfsctl) -> None:
    digest = cfsctl.tags(filled)[NAMES[1]]
    for name in NAMES:
        cfsctl(filled, "oci", "untag", name)
        written = {}
        for who, make in MAKERS.items():
            before = set(os.listdir(filled / SHARED))
            make(cfsctl, filled, digest, name)
            [made] = set(os.listdir(filled / SHARED)) - before
            written[who] = (made, os.readlink(filled / SHARED / made))
            (filled / SHARED / made).unlink()
        assert written["we"] == written["cfsctl"]
