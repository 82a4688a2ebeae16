"""OCI documents: the facts that are read, what may be absent, what is refused and where; and that cfsctl agrees."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.errors import FormatError
from cfs_tags.formats import oci, splitstream, splitwriter
from cfs_tags.formats.fsverity import measure
from cfs_tags.formats.oci import Descriptor, History, ImageConfig, Index, Manifest, Platform
from cfs_tags.values import Algorithm, Digest, ObjectId
from support.images import base_layer, build_artifact, build_image, build_index
from support.peers import Cfsctl
from support.recorded import objects_of_hosts

ONE, TWO = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)
LAYER: dict[str, Any] = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": TWO, "size": 1000}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "config": {"mediaType": oci.MEDIA_TYPE_CONFIG, "digest": ONE, "size": 325},
    "layers": [LAYER],
}
CONFIG: dict[str, Any] = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [ONE, TWO]}}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [{**LAYER, "mediaType": oci.MEDIA_TYPE_MANIFEST}]}


def dumped(document: object) -> bytes:
    return json.dumps(document).encode()


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_manifest_needs_no_more_than_config_and_layers() -> None:
    found = oci.parse_manifest(dumped(MANIFEST))

    assert found == Manifest(
        config=Descriptor(oci.MEDIA_TYPE_CONFIG, ONE, 325), layers=(Descriptor(LAYER["mediaType"], TWO, 1000),)
    )
    assert found.is_container


def test_everything_of_a_manifest_is_read() -> None:
    subject = {"mediaType": oci.MEDIA_TYPE_INDEX, "digest": TWO, "size": 7, "urls": ["https://example.org/x"]}
    layer = {**LAYER, "annotations": {"title": "naïve"}, "artifactType": "a/b", "data": "AAAA", "new": {}}
    document = {
        **MANIFEST,
        "mediaType": oci.MEDIA_TYPE_MANIFEST,
        "artifactType": "application/vnd.example",
        "layers": [layer],
        "subject": subject,
        "annotations": {"k": "v"},
        "new": [1],
    }

    assert oci.parse_manifest(dumped(document)) == Manifest(
        config=Descriptor(oci.MEDIA_TYPE_CONFIG, ONE, 325),
        layers=(Descriptor(LAYER["mediaType"], TWO, 1000, {"title": "naïve"}, None, "a/b"),),
        subject=Descriptor(oci.MEDIA_TYPE_INDEX, TWO, 7, urls=("https://example.org/x",)),
        artifact_type="application/vnd.example",
        media_type=oci.MEDIA_TYPE_MANIFEST,
        annotations={"k": "v"},
    )


def test_optional_keys_may_be_null() -> None:
    nothing = dict.fromkeys(("mediaType", "artifactType", "subject", "annotations"))
    layer = {**LAYER, **dict.fromkeys(("annotations", "platform", "artifactType", "urls"))}

    found = oci.parse_manifest(dumped({**MANIFEST, **nothing, "layers": [layer]}))

    assert found == oci.parse_manifest(dumped(MANIFEST))


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.oci.empty.v1+json",
        "application/vnd.oci.image.config",
        "",
    ],
)
def test_any_other_config_makes_an_artifact(media_type: str) -> None:
    config = {**MANIFEST["config"], "mediaType": media_type}

    assert not oci.parse_manifest(dumped({**MANIFEST, "config": config})).is_container


@pytest.mark.parametrize(
    "digest",
    [ONE, "sha512:" + "a" * 128, "sha384:" + "a" * 96, "blake3:XyZ=_-1", "multihash+base58:QmRZxt2b1FVZPNqd8hsiykD"],
)
def test_digests_are_those_of_the_image_specification(digest: str) -> None:
    assert oci.parse_manifest(dumped({**MANIFEST, "layers": [{**LAYER, "digest": digest}]})).layers[0].digest == digest


def test_a_config_needs_architecture_os_and_layers() -> None:
    assert oci.parse_config(dumped(CONFIG)) == ImageConfig("amd64", "linux", (ONE, TWO))


def test_everything_of_a_config_is_read() -> None:
    document = {
        **CONFIG,
        "created": "some time ago",
        "author": "A. U. Thor",
        "variant": "v8",
        "os.version": "10.0",
        "config": {
            "Labels": {"k": "v"},
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["true"],
            "Env": ["A=b"],
            "User": "1000:1000",
            "WorkingDir": "/srv",
            "StopSignal": "SIGTERM",
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": None,
        },
        "history": [{"created": "t", "created_by": "c", "author": "a", "comment": "x", "empty_layer": True}, {}],
    }

    assert oci.parse_config(dumped(document)) == ImageConfig(
        architecture="amd64",
        os="linux",
        diff_ids=(ONE, TWO),
        created="some time ago",
        author="A. U. Thor",
        variant="v8",
        os_version="10.0",
        labels={"k": "v"},
        entrypoint=("/bin/sh", "-c"),
        cmd=("true",),
        env=("A=b",),
        user="1000:1000",
        working_dir="/srv",
        stop_signal="SIGTERM",
        history=(History("t", "c", "a", "x", True), History()),
    )


@pytest.mark.parametrize("run", [None, {}, dict.fromkeys(("Labels", "Cmd", "Entrypoint", "Env", "User", "WorkingDir"))])
def test_a_config_may_say_nothing_about_running(run: object) -> None:
    assert oci.parse_config(dumped({**CONFIG, "config": run, "history": None})) == oci.parse_config(dumped(CONFIG))


def test_an_index_names_a_platform_for_each_manifest() -> None:
    platforms: list[object] = [
        {"architecture": "arm64", "os": "linux", "variant": "v8", "os.version": "1", "os.features": ["x"]},
        {"architecture": "unknown", "os": "unknown"},
        {},
        None,
    ]
    document = {**INDEX, "manifests": [{**LAYER, "platform": platform} for platform in platforms]}

    found = oci.parse_index(dumped(document))

    assert [manifest.platform for manifest in found.manifests] == [
        Platform("arm64", "linux", "v8", "1"),
        Platform("unknown", "unknown"),
        Platform("", ""),
        None,
    ]


def test_a_document_says_what_it_is() -> None:
    assert oci.kind(dumped(MANIFEST)) == "manifest"
    assert oci.kind(dumped(INDEX)) == "index"
    assert isinstance(oci.parse_manifest_or_index(dumped(MANIFEST)), Manifest)
    assert isinstance(oci.parse_manifest_or_index(dumped(INDEX)), Index)


@pytest.mark.parametrize("document", [{}, {"schemaVersion": 2}, {**MANIFEST, **INDEX}, {**INDEX, "layers": []}])
def test_a_document_that_is_neither_or_both_is_neither(document: object) -> None:
    with pytest.raises(FormatError, match="either a manifest or an index"):
        oci.kind(dumped(document))
    with pytest.raises(FormatError, match="either a manifest or an index"):
        oci.parse_manifest_or_index(dumped(document))


def test_one_is_not_taken_for_the_other() -> None:
    with pytest.raises(FormatError, match="wanted a manifest, found an index"):
        oci.parse_manifest(dumped(INDEX))
    with pytest.raises(FormatError, match="wanted an index, found a manifest"):
        oci.parse_index(dumped(MANIFEST))


# -- what is refused ---------------------------------------------------------------------------------------------------


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A deep copy with the value at a JSON pointer replaced, or removed where it is ``...``."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *parents, last = path.strip("/").split("/")
    inner: Any = copy
    for step in parents:
        inner = inner[int(step) if isinstance(inner, list) else step]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("/schemaVersion", ..., "a number from 0 to 4294967295 at /schemaVersion"),
        ("/schemaVersion", "2", "a number from 0 to 4294967295 at /schemaVersion"),
        ("/schemaVersion", True, "a number from 0 to 4294967295 at /schemaVersion"),
        ("/config", ..., "an object at /config"),
        ("/config", None, "an object at /config"),
        ("/config/digest", ..., "a digest at /config/digest"),
        ("/config/digest", "sha256:xyz", "a digest at /config/digest"),
        ("/config/digest", "sha256:" + "A" * 64, "a digest at /config/digest"),
        ("/config/digest", "sha256:" + "1" * 64 + "\n", "a digest at /config/digest"),
        ("/config/digest", "../blah:attack", "a digest at /config/digest"),
        ("/config/digest", "blake3:a/b", "a digest at /config/digest"),
        ("/config/mediaType", None, "text at /config/mediaType"),
        ("/config/mediaType", "\ud800", "text at /config/mediaType"),
        ("/layers", {}, "a list at /layers"),
        ("/layers/0", "x", "an object at /layers/0"),
        ("/layers/0/size", 1.0, "a number from 0 to 18446744073709551615 at /layers/0/size"),
        ("/layers/0/size", -1, "a number from 0 to 18446744073709551615 at /layers/0/size"),
        ("/layers/0/size", 1 << 64, "a number from 0 to 18446744073709551615 at /layers/0/size"),
        ("/layers/0/annotations", {"a/b~": 1}, "text at /layers/0/annotations/a~1b~0"),
        ("/layers/0/annotations", {"\ud800": ""}, "text at /layers/0/annotations/\ud800"),
        ("/layers/0/urls", ["x", 1], "text at /layers/0/urls/1"),
        ("/layers/0/platform", [], "an object at /layers/0/platform"),
        ("/layers/0/platform", {"os": 1}, "text at /layers/0/platform/os"),
        ("/subject", {"size": 1}, "text at /subject/mediaType"),
        ("/annotations", [], "an object at /annotations"),
        ("/artifactType", 1, "text at /artifactType"),
    ],
)
def test_a_broken_manifest_is_refused_with_the_place(path: str, value: object, wanted: str) -> None:
    with pytest.raises(FormatError) as caught:
        oci.parse_manifest(dumped(changed(MANIFEST, path, value)))

    assert caught.value.wanted == wanted
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("/architecture", ..., "text at /architecture"),
        ("/os", None, "text at /os"),
        ("/rootfs", ..., "an object at /rootfs"),
        ("/rootfs/type", ..., "text at /rootfs/type"),
        ("/rootfs/diff_ids", {}, "a list at /rootfs/diff_ids"),
        ("/rootfs/diff_ids/1", "x", "a digest at /rootfs/diff_ids/1"),
        ("/created", 1, "text at /created"),
        ("/config", [], "an object at /config"),
        ("/config", {"Labels": []}, "an object at /config/Labels"),
        ("/config", {"Labels": {"a": 1}}, "text at /config/Labels/a"),
        ("/config", {"Cmd": "true"}, "a list at /config/Cmd"),
        ("/config", {"Env": [None]}, "text at /config/Env/0"),
        ("/history", {}, "a list at /history"),
        ("/history", [{}, None], "an object at /history/1"),
        ("/history", [{"empty_layer": 1}], "true or false at /history/0/empty_layer"),
        ("/history", [{"comment": 1}], "text at /history/0/comment"),
    ],
)
def test_a_broken_config_is_refused_with_the_place(path: str, value: object, wanted: str) -> None:
    with pytest.raises(FormatError) as caught:
        oci.parse_config(dumped(changed(CONFIG, path, value)))

    assert caught.value.wanted == wanted


def test_lists_that_are_absent_or_null_are_empty_and_so_are_texts_in_maps() -> None:
    """As podman and skopeo read them (image-spec issue 1016); cfsctl lists no such image."""
    for value in (..., None, []):
        assert oci.parse_manifest(dumped(changed(MANIFEST, "/layers", value))).layers == ()
        assert oci.parse_config(dumped(changed(CONFIG, "/rootfs/diff_ids", value))).diff_ids == ()
    for value in (None, []):
        assert oci.parse_index(dumped(changed(INDEX, "/manifests", value))).manifests == ()
    assert oci.parse_config(dumped(changed(CONFIG, "/config", {"Labels": {"a": None, "b": "c"}}))).labels == {"a": "", "b": "c"}
    assert oci.parse_manifest(dumped(changed(MANIFEST, "/annotations", {"a": None}))).annotations == {"a": ""}


def test_a_broken_index_is_refused_with_the_place() -> None:
    with pytest.raises(FormatError, match="a list at /manifests"):
        oci.parse_index(b'{"schemaVersion": 2}')
    with pytest.raises(FormatError, match="a digest at /manifests/0/digest"):
        oci.parse_index(dumped(changed(INDEX, "/manifests/0/digest", ...)))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "JSON"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"\xff\xfe{\0}\0", "UTF-8"),
        (b"[]", "an object"),
        (b"null", "an object"),
        (b"{} {}", "JSON"),
        (b'{"size": NaN}', "JSON"),
        (b'{"size": -Infinity}', "JSON"),
        (b'{"a": "\x01"}', "JSON"),
        (b'{"size": ' + b"1" * 10_000 + b"}", "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b"[" * 1_000_000, "JSON"),
        (b" " * oci.MAX_MANIFEST + b"{}", "at most 4194304 bytes"),
    ],
)
def test_what_is_no_json_is_refused_by_every_parser(data: bytes, wanted: str) -> None:
    for parse in (oci.parse_manifest, oci.parse_config, oci.parse_index, oci.kind, oci.parse_manifest_or_index):
        with pytest.raises(FormatError) as caught:
            parse(data)
        assert caught.value.wanted == wanted


def test_a_known_key_must_not_stand_there_twice() -> None:
    twice = dumped(MANIFEST).replace(b'"size": 325', b'"size": 325, "size": 325')

    with pytest.raises(FormatError, match="one value at /config/size, found two"):
        oci.parse_manifest(twice)


def test_of_foreign_keys_the_last_counts() -> None:
    text = dumped({**MANIFEST, "annotations": {"a": "1", "b": ""}, "new": {"x": 1, "y": 2}})
    text = text.replace(b'"b"', b'"a"').replace(b'"y"', b'"x"')

    assert oci.parse_manifest(text).annotations == {"a": ""}


# -- real documents ----------------------------------------------------------------------------------------------------


def test_manifests_and_configs_of_recorded_hosts_fit_together(hosts: Path) -> None:
    seen = 0
    for objects in objects_of_hosts(hosts):
        for content in objects.values():
            if not content.startswith(b"SplitStream"):
                continue
            stream = splitstream.parse(content)
            if stream.content_type != splitstream.CONTENT_TYPE_MANIFEST:
                continue
            manifest = oci.parse_manifest(objects[splitstream.sole_object(stream)])
            below = splitstream.parse(objects[stream.named_refs[f"config:{manifest.config.digest}"]])
            config = oci.parse_config(objects[splitstream.sole_object(below)])
            assert manifest.is_container
            assert len(config.diff_ids) == len(manifest.layers)
            assert set(config.diff_ids) <= set(below.named_refs)
            assert config.labels["containers.bootc"] == "1"
            seen += 1
    assert seen > 20


def store(repo: Path, name: str, manifest: bytes, config: bytes) -> None:
    """Put an image without layers into a repository by hand, and tag it: what a pull would never let through."""

    def put(content: bytes) -> ObjectId:
        digest = measure(content, Algorithm.SHA512)
        path = repo / "objects" / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    def put_stream(content_id: str, kind: int, content: bytes, refs: dict[str, ObjectId]) -> ObjectId:
        writer = splitwriter.Writer(Algorithm.SHA512, kind)
        for key, digest in refs.items():
            writer.add_named_ref(key, digest)
        writer.add_external(put(content), len(content))
        digest = put(writer.finish())
        link = repo / "streams" / content_id
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"../objects/{digest[:2]}/{digest[2:]}")
        return digest

    config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    manifest = manifest.replace(b"CONFIG", config_digest.encode())
    manifest_id = f"oci-manifest-sha256:{hashlib.sha256(manifest).hexdigest()}"
    below = put_stream(f"oci-config-{config_digest}", splitstream.CONTENT_TYPE_CONFIG, config, {})
    put_stream(manifest_id, splitstream.CONTENT_TYPE_MANIFEST, manifest, {f"config:{config_digest}": below})
    tag = repo / "streams" / "refs" / "oci" / name
    tag.parent.mkdir(parents=True, exist_ok=True)
    tag.symlink_to(f"../../{manifest_id}")


UNUSUAL: list[tuple[dict[str, Any], dict[str, Any], bool | None]] = [
    # changes of the manifest, changes of the config, whether the image is listed; None: by cfsctl it is not
    ({}, {}, True),
    ({}, {"architecture": "riscv128", "os": "Ünix", "created": "yesterday"}, True),
    ({}, {"architecture": "", "os": "", "created": None, "config": None, "history": None, "variant": "v9"}, True),
    ({}, {"config": {"Labels": {"a": "b"}, "Cmd": None, "Env": ["x"], "ExposedPorts": {"1/tcp": {}}}}, True),
    ({}, {"history": [{"created_by": "x", "empty_layer": True}], "new": [1]}, True),
    ({"/layers": [LAYER] * 200}, {}, True),
    ({"/layers": [{**LAYER, "digest": "blake3:XyZ=_-1", "annotations": {"a": "b"}}]}, {}, True),
    ({"/schemaVersion": 7, "/mediaType": "x", "/artifactType": None, "/new": {}}, {}, True),
    ({"/config/mediaType": oci.MEDIA_TYPE_DOCKER_CONFIG}, {}, True),
    ({"/config/mediaType": "application/vnd.oci.empty.v1+json"}, {"os": None}, True),
    ({"/schemaVersion": ...}, {}, False),
    ({"/schemaVersion": "2"}, {}, False),
    ({"/layers": ...}, {}, None),
    ({"/layers": None}, {}, None),
    ({"/layers": [{**LAYER, "size": -1}]}, {}, False),
    ({"/layers": [{**LAYER, "size": 1.0}]}, {}, False),
    ({"/layers": [{**LAYER, "digest": "sha256:1"}]}, {}, False),
    ({"/layers": [{**LAYER, "digest": "blake3:a/b"}]}, {}, False),
    ({"/layers": [{**LAYER, "annotations": {"a": 1}}]}, {}, False),
    ({"/annotations": {"a": "\ud800"}}, {}, False),
    ({}, {"architecture": None}, False),
    ({}, {"os": 1}, False),
    ({}, {"created": 1}, False),
    ({}, {"rootfs": {"diff_ids": []}}, False),
    ({}, {"rootfs": {"type": "layers"}}, None),
    ({}, {"config": {"Labels": {"a": None}}}, None),
    ({}, {"config": {"Cmd": "x"}}, False),
    ({}, {"history": [None]}, False),
]


def test_cfsctl_lists_the_same_images_with_the_same_facts(cfsctl: Cfsctl, repo: Path) -> None:
    documents = {}
    for number, (manifest_changes, config_changes, _) in enumerate(UNUSUAL):
        manifest = changed(MANIFEST, "/config/digest", "CONFIG")
        for path, value in manifest_changes.items():
            manifest = changed(manifest, path, value)
        # a note makes each config another one, with a stream of its own
        config = {**CONFIG, "rootfs": {"type": "layers", "diff_ids": []}, "note": number, **config_changes}
        documents[f"{number}"] = dumped(manifest), dumped(config)
        store(repo, f"{number}", *documents[f"{number}"])

    rows = {row["name"]: row for row in cfsctl.json(repo, "--no-upgrade", "oci", "images", "--json")["images"]}

    assert sorted(rows, key=int) == [f"{number}" for number, (_, _, listed) in enumerate(UNUSUAL) if listed]
    for name, (manifest_bytes, config_bytes) in documents.items():
        manifest_bytes = manifest_bytes.replace(b"CONFIG", ONE.encode())
        if name in rows:
            manifest_found = oci.parse_manifest(manifest_bytes)
            assert rows[name]["is_container"] == manifest_found.is_container
            assert rows[name]["layer_count"] == len(manifest_found.layers)
            if manifest_found.is_container:
                found = oci.parse_config(config_bytes)
                assert (rows[name]["architecture"], rows[name]["os"]) == (found.architecture, found.os)
                assert rows[name].get("created") == found.created
        elif UNUSUAL[int(name)][2] is None:
            oci.parse_manifest(manifest_bytes)
            oci.parse_config(config_bytes)
        else:
            with pytest.raises(FormatError):
                (oci.parse_manifest(manifest_bytes), oci.parse_config(config_bytes))


def test_what_layouts_hold_is_read(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image = build_image(layout, "app", [base_layer()], annotations={"a": "b"})
    signature = build_artifact(layout, "signature", [("text/plain", b"signed")], subject=image)
    digest = build_index(layout, "all", {"amd64": image})

    artifact = oci.parse_manifest(signature.manifest_bytes)
    index = oci.parse_index((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes())
    contents = oci.parse_index((layout / "index.json").read_bytes())

    assert artifact.subject is not None
    assert artifact.subject.digest == image.manifest_digest
    assert artifact.artifact_type == "application/vnd.example.signature.v1"
    assert not artifact.is_container
    assert index.manifests[0].platform == Platform("amd64", "linux")
    names = [entry.annotations["org.opencontainers.image.ref.name"] for entry in contents.manifests]
    assert names == ["app", "signature", "all"]
