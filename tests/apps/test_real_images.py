"""Images as people really have them: what builders write that the specification does not foresee, or that others got wrong.

Each kind comes from public reports, and is read as podman and skopeo read it, unless it says otherwise."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.apps import platforms
from cfs_tags.apps.importing.choose import Options
from cfs_tags.cli import hints
from cfs_tags.errors import FormatError, PlatformNotFound, SourceNotFound, UsageError
from cfs_tags.formats import fsverity
from cfs_tags.tags import names
from cfs_tags.values import Algorithm, Digest
from support import tars
from support.importing import export_image, import_image
from support.peers import Cfsctl
from support.raising import raises
from support.serving import serving

MINE = platforms.this_machine().architecture
OTHER = "s390x" if MINE != "s390x" else "amd64"
OCI = "application/vnd.oci.image."
MANIFEST, INDEX, CONFIG, LAYER = (
    f"{OCI}{kind}" for kind in ("manifest.v1+json", "index.v1+json", "config.v1+json", "layer.v1.tar")
)
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
EMPTY = "application/vnd.oci.empty.v1+json"
REF_NAME, FULL_NAME = "org.opencontainers.image.ref.name", "io.containerd.image.name"
CONTENT = b"a file of more than 64 bytes, so that it becomes an object of the repository\n" * 2

Made = dict[str, Any]


def a_tar(content: bytes = CONTENT) -> bytes:
    return tars.usr() + tars.entry(b"usr/file", content) + tars.END


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def sha(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Layout:
    """A layout that is written blob by blob; what it gives are descriptors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, value: object, algorithm: str = "sha256") -> Made:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        digest = sha(data, algorithm)
        path = self.path / "blobs" / digest.replace(":", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def config(self, tar: bytes, algorithm: str = "sha256", **changes: object) -> Made:
        rootfs = {"type": "layers", "diff_ids": [sha(tar)]}
        document = {"architecture": MINE, "os": "linux", "config": {}, "rootfs": rootfs, **changes}
        return {"mediaType": CONFIG, **self.blob(document, algorithm)}

    def image(
        self,
        content: bytes = CONTENT,
        kind: str = f"{LAYER}+gzip",
        pack: Callable[[bytes], bytes] = zipped,
        algorithm: str = "sha256",
        config: Made | None = None,
        **changes: object,
    ) -> Made:
        tar = a_tar(content)
        made = self.config(tar, **(config or {}))
        layers = [{"mediaType": kind, **self.blob(pack(tar))}]
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": made, "layers": layers, **changes}
        kept = {key: value for key, value in document.items() if value is not ...}
        return {"mediaType": MANIFEST, **self.blob(kept, algorithm)}

    def artifact(self, body: bytes, kind: str = "application/spdx+json", **changes: object) -> Made:
        layers = [{"mediaType": kind, **self.blob(body)}]
        config = {"mediaType": EMPTY, **self.blob(b"{}")}
        document = {"schemaVersion": 2, "artifactType": kind, "config": config, "layers": layers, **changes}
        kept = {key: value for key, value in document.items() if value is not ...}
        return {"mediaType": MANIFEST, **self.blob(kept)}

    def nested(self, *entries: Made) -> Made:
        return {"mediaType": INDEX, **self.blob({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})}

    def top(self, *entries: Made) -> str:
        """The layout's own index; returns the source."""
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        return f"oci:{self.path}"


def named(entry: Made, name: str, full: str | None = None) -> Made:
    return {**entry, "annotations": {REF_NAME: name, **({FULL_NAME: full} if full is not None else {})}}


def on(entry: Made, architecture: str, os: str = "linux", **more: object) -> Made:
    return {**entry, "platform": {"architecture": architecture, "os": os}, **more}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def tagged(repo: Path, name: str = "app:1") -> str:
    with Repository.open(repo) as opened:
        return names.resolve(opened, name)


def has_object(repo: Path, content: bytes) -> bool:
    name = fsverity.measure(content, Algorithm.SHA512)
    return (repo / "objects" / name[:2] / name[2:]).exists()


def nothing_was_written(repo: Path) -> bool:
    return not [path for path in (repo / "streams").glob("*") if path.name != "refs"] and not list(
        (repo / "objects").glob("*/*")
    )


# -- which image of an index -------------------------------------------------------------------------------------------


def spdx(layout: Layout, **changes: object) -> Made:
    return layout.artifact(b'{"sbom": 1}', **changes)


ARTIFACTS: dict[str, Callable[[Layout], Made]] = {
    "the index says what it is": lambda layout: on(spdx(layout), MINE, artifactType="application/spdx+json"),
    "the manifest says what it is": lambda layout: on(spdx(layout), MINE),
    "the config says what it is": lambda layout: on(
        spdx(layout, artifactType=..., config={"mediaType": "application/vnd.cncf.helm.config.v1+json", **layout.blob(b"{ }")}),
        MINE,
    ),
    "the layers say what it is, as with cosign": lambda layout: on(
        spdx(layout, artifactType=..., config=layout.config(b"signature")), MINE
    ),
    "an attestation with a platform": lambda layout: on(
        spdx(layout), MINE, annotations={"vnd.docker.reference.digest": sha(b"another")}
    ),
}


@pytest.mark.parametrize("what", ARTIFACTS)
def test_an_artifact_with_the_platform_of_the_image_before_it_is_not_taken_for_it(
    what: str, layout: Layout, repo: Path
) -> None:
    """rules_img issue 742, image-spec issue 1141."""
    artifact, image = ARTIFACTS[what](layout), layout.image()
    source = layout.top(named(layout.nested(artifact, on(image, MINE)), "v1"))
    import_image(repo, f"{source}:v1", "app:1")
    assert tagged(repo) == image["digest"]
    # and the same in the index of the layout itself
    source = layout.top(named(artifact, "v1"), named(image, "v1"))
    import_image(repo, f"{source}:v1", "app:2")
    assert tagged(repo, "app:2") == image["digest"]


def test_an_image_whose_entry_says_the_type_of_its_config_is_an_image(layout: Layout, repo: Path) -> None:
    """The specification has an entry's artifactType be the media type of the config where there is no other."""
    image = layout.image()
    source = layout.top(named(layout.nested(on(image, MINE, artifactType=CONFIG)), "v1"))
    import_image(repo, source, "app:1")
    assert tagged(repo) == image["digest"]


def test_an_artifact_is_no_image_for_another_platform_either_but_an_index_of_artifacts_has_them(
    layout: Layout, repo: Path
) -> None:
    source = layout.top(named(layout.nested(on(spdx(layout), MINE), on(layout.image(), OTHER)), "v1"))
    with pytest.raises(PlatformNotFound) as caught:
        import_image(repo, source, "app:1")
    assert caught.value.platforms == (f"linux/{OTHER}",)
    plugin = layout.artifact(b"wasm", "application/wasm")
    source = layout.top(named(layout.nested(on(spdx(layout), OTHER), on(plugin, MINE)), "v1"))
    import_image(repo, source, "app:1")
    assert tagged(repo) == plugin["digest"]


FOREIGN: dict[str, Callable[[Layout], Made]] = {
    "an artifact manifest": lambda layout: {
        "mediaType": "application/vnd.oci.artifact.manifest.v1+json",
        **layout.blob({"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": []}),
    },
    "JSON": lambda layout: {"mediaType": "application/spdx+json", **layout.blob({"spdxVersion": "SPDX-2.3"})},
    "a layer": lambda layout: {"mediaType": f"{LAYER}+gzip", **layout.blob(zipped(a_tar()))},
    "a manifest of Docker's first schema": lambda layout: on(
        {"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws", **layout.blob({"schemaVersion": 1})}, MINE
    ),
    "a type that is no text, nearly": lambda layout: {"mediaType": "", **layout.blob(b"\xff")},
    "absent from the layout": lambda layout: {"mediaType": "application/spdx+json", "digest": sha(b"absent"), "size": 6},
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("options", [Options(), Options(all_platforms=True, keep_index=True)], ids=["one", "all"])
def test_an_entry_of_a_type_that_is_no_manifest_is_passed_over(what: str, options: Options, layout: Layout, repo: Path) -> None:
    image, foreign = layout.image(), FOREIGN[what](layout)
    source = layout.top(named(layout.nested(foreign, on(image, MINE)), "v1"))
    done = import_image(repo, f"{source}:v1", "app:1", options)
    assert tagged(repo) == image["digest"]
    left_out = [(one.digest, one.kind) for one in done.plan.left_out]
    assert left_out == ([(foreign["digest"], foreign["mediaType"])] if options.all_platforms else [])
    source = layout.top(foreign, image)
    import_image(repo, source, "app:2")
    assert tagged(repo, "app:2") == image["digest"]
    with pytest.raises((PlatformNotFound, SourceNotFound)):
        import_image(repo, layout.top(layout.nested(foreign)), "app:3")


@pytest.mark.parametrize("architecture", ["", "unknown"])
def test_what_has_no_platform_is_named_as_what_it_is(
    architecture: str, layout: Layout, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """inspektor-gadget pull request 5494."""
    from cfs_tags.cli.main import main

    boms = [on(layout.artifact(b"%d" % number), architecture) for number in range(2)]
    bom_of_mine = on(layout.artifact(b"of mine"), MINE)
    mine, other = on(layout.image(), MINE), on(layout.image(config={"architecture": OTHER}), OTHER)
    source = layout.top(named(layout.nested(boms[0], bom_of_mine, mine, other, boms[1]), "v1"))
    assert main(["--repo", str(repo), "import", f"{source}:v1", "app:1", "--all-platforms"]) == 0
    said = capsys.readouterr().out
    assert "unknown" not in said
    assert "another image for" not in said
    for bom in (*boms, bom_of_mine):
        assert f"left out: {bom['digest']}, no image: application/spdx+json\n" in said
    with Repository.open(repo) as opened:
        found = {name: names.resolve(opened, name) for name in ("app:1", f"app:1-linux-{MINE}", f"app:1-linux-{OTHER}")}
    assert list(found.values()) == [mine["digest"], mine["digest"], other["digest"]]
    assert main(["--repo", str(repo), "import", f"{source}:v1", "app:1", "--all-platforms", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["result"]["left_out"]
    assert rows[0] == {"digest": boms[0]["digest"], "platform": None, "type": "application/spdx+json"}


def test_an_image_whose_entry_says_no_platform_has_that_of_its_config(layout: Layout, repo: Path) -> None:
    image = layout.image()
    import_image(repo, layout.top(named(layout.nested(on(image, "")), "v1")), "app:1")
    assert tagged(repo) == image["digest"]


def hint_of(error: UsageError) -> str:
    said = hints.hint(error)
    assert said is not None
    assert said.startswith("say which: ")
    return said.removeprefix("say which: ")


NAMES = {
    "whole names differ": [("latest", "localhost/team/a:latest"), ("latest", "localhost/team/b:latest")],
    "no whole names": [("latest", None), ("latest", None)],
    "one whole name for both": [("latest", "localhost/team/a:latest"), ("latest", "localhost/team/a:latest")],
    "a whole name for one": [("latest", "localhost/team/a:latest"), ("latest", None)],
}


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("architecture", [MINE, OTHER])
def test_two_images_of_one_name_are_ambiguous_and_the_hint_names_one_of_them(
    what: str, architecture: str, layout: Layout, repo: Path, tmp_path: Path
) -> None:
    """As a save of two images writes them.  Images for several platforms may have one name, if they are one image."""
    images = [layout.image(b"a" * 99), layout.image(b"b" * 99, config={"architecture": architecture})]
    source = layout.top(*(named(image, *pair) for image, pair in zip(images, NAMES[what], strict=True)))
    is_one_image = architecture == OTHER and len({full for _, full in NAMES[what]}) == 1
    for wanted in (f"{source}:latest", source):
        if is_one_image:
            import_image(repo, wanted, f"one:{len(wanted)}")
            assert tagged(repo, f"one:{len(wanted)}") == images[0]["digest"]
            continue
        with raises("ambiguous-name") as caught:
            import_image(repo, wanted, "x:1")
        assert len(set(caught.value.candidates)) == 2
        assert nothing_was_written(repo)
    if is_one_image:
        return
    for number, candidate in enumerate(caught.value.candidates):
        import_image(repo, f"{source}:{candidate}", f"n:{number}")
        assert tagged(repo, f"n:{number}") == images[number]["digest"]
    assert hint_of(caught.value) == f"{source}:{caught.value.candidates[0]}"


def test_images_of_different_names_are_ambiguous_although_they_are_for_different_platforms(layout: Layout, repo: Path) -> None:
    entries = [named(on(layout.image(), MINE), "a"), named(on(layout.image(config={"architecture": OTHER}), OTHER), "b")]
    with raises("ambiguous-name") as caught:
        import_image(repo, layout.top(*entries), "x:1")
    assert caught.value.candidates == ("a", "b")


def test_one_image_of_two_names_is_one_image(layout: Layout, repo: Path) -> None:
    image = layout.image()
    source = layout.top(named(image, "1", "localhost/app:1"), named(image, "latest", "localhost/app:latest"))
    done = import_image(repo, source, None)
    assert done.plan.names == (("localhost/app:1", Digest(image["digest"])),)


def test_two_images_of_one_name_in_an_archive_of_dockers_are_ambiguous(repo: Path, tmp_path: Path) -> None:
    first, second = config_for(a_tar(b"a" * 99)), config_for(a_tar(b"b" * 99))
    rows = [
        {"Config": "a.json", "RepoTags": ["localhost/x:1", "localhost/a:1"], "Layers": ["a.tar"]},
        {"Config": "b.json", "RepoTags": ["localhost/x:1"], "Layers": ["b.tar"]},
    ]
    members = [("a.json", first), ("b.json", second), ("a.tar", a_tar(b"a" * 99)), ("b.tar", a_tar(b"b" * 99))]
    source = "docker-archive:" + packed(tmp_path / "d.tar", [("manifest.json", json.dumps(rows).encode()), *members])
    for wanted in (source, f"{source}:localhost/x:1"):
        with raises("ambiguous-name") as caught:
            import_image(repo, wanted, "x:1")
        assert caught.value.candidates == ("localhost/a:1", "@1")
        assert hint_of(caught.value) == f"{source}:localhost/a:1"
    for number, candidate in enumerate(caught.value.candidates):
        done = import_image(repo, f"{source}:{candidate}", None if number == 0 else "y:1")
        assert done.plan.images[0].manifest.config.digest == sha((first, second)[number])
    assert tagged(repo, "localhost/a:1")


# -- names -------------------------------------------------------------------------------------------------------------


def test_without_a_name_the_tag_has_the_whole_name_that_the_archive_says(layout: Layout, repo: Path, tmp_path: Path) -> None:
    """kind issue 3795, containerd issue 12908; podman load names it so."""
    image = layout.image()
    for number, (ref, full, tag) in enumerate(
        [
            ("latest", "localhost/team/thing:latest", "localhost/team/thing:latest"),
            ("1.0", "docker.io/library/thing:1.0", "docker.io/library/thing:1.0"),
            ("quay.io/org/app:2", None, "quay.io/org/app:2"),
            ("v3", "", "v3"),
        ]
    ):
        source = layout.top(named(image, ref, full))
        for wanted in (source, f"{source}:{ref}", f"oci-archive:{pack(layout.path, tmp_path / f'{number}.tar')}"):
            assert import_image(repo, wanted, None).plan.names == ((tag, Digest(image["digest"])),)


@pytest.mark.parametrize("entry", [named({}, "latest"), {}, {"annotations": {"x": "y"}}], ids=["latest", "none", "others"])
def test_an_archive_that_says_no_name_is_not_tagged_but_asks_for_one(
    entry: Made, layout: Layout, repo: Path, tmp_path: Path
) -> None:
    image = layout.image()
    layout.top({**image, **entry})
    source = f"oci-archive:{pack(layout.path, tmp_path / 'a.tar')}"
    with raises("invalid-argument", match="NAME"):
        import_image(repo, source, None)
    assert nothing_was_written(repo)
    import_image(repo, source, "latest")
    assert tagged(repo, "latest") == image["digest"]


# -- layers and keys ---------------------------------------------------------------------------------------------------


DOCKER_LAYERS = {
    "gzip": (f"{DOCKER_LAYER}.gzip", zipped),
    "plain": (DOCKER_LAYER, bytes),
    "foreign": ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", zipped),
    "plain, and is compressed": (DOCKER_LAYER, zipped),
}


@pytest.mark.parametrize("what", DOCKER_LAYERS)
def test_a_layer_of_dockers_type_in_an_oci_manifest_is_a_tar(what: str, cfsctl: Cfsctl, layout: Layout, repo: Path) -> None:
    """dotnet/sdk issue 48639, rules_img issue 518."""
    kind, pack = DOCKER_LAYERS[what]
    image = layout.image(kind=kind, pack=pack)
    import_image(repo, layout.top(named(image, "v1")), "app:1")
    assert tagged(repo) == image["digest"]
    assert has_object(repo, CONTENT)
    cfsctl.assert_healthy(repo)
    done = export_image(repo, "app:1", f"oci:{layout.path}:again")
    assert done.plan.image.layers[0].descriptor.media_type == kind


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-tar",
        "application/x-gtar",
        "application/tar",
        "application/vnd.oci.image.layer.v2.tar",
        "application/X-TAR",
    ],
)
def test_a_layer_that_calls_itself_a_tar_in_another_way_is_refused_and_not_kept_as_a_blob(
    kind: str, layout: Layout, repo: Path
) -> None:
    image = layout.image(kind=kind, pack=bytes)
    with pytest.raises(FormatError, match=kind):
        import_image(repo, layout.top(named(image, "v1")), "app:1")
    assert nothing_was_written(repo)


NULLS: dict[str, Callable[[Layout], Made]] = {
    "layers": lambda layout: layout.image(layers=None, config={"rootfs": {"type": "layers", "diff_ids": []}}),
    "no layers at all": lambda layout: layout.image(layers=..., config={"rootfs": {"type": "layers", "diff_ids": []}}),
    "diff_ids": lambda layout: layout.image(layers=[], config={"rootfs": {"type": "layers", "diff_ids": None}}),
    "no diff_ids at all": lambda layout: layout.image(layers=[], config={"rootfs": {"type": "layers"}}),
    "both": lambda layout: layout.image(layers=None, config={"rootfs": {"type": "layers", "diff_ids": None}}),
    "a label": lambda layout: layout.image(config={"config": {"Labels": {"a": None, "b": "c"}}}),
    "an annotation": lambda layout: layout.image(annotations={"a": None}),
    "what may be absent": lambda layout: layout.image(
        annotations=None, config={"config": {"Labels": None, "Env": None, "Cmd": None}, "history": None, "variant": None}
    ),
}


@pytest.mark.parametrize("what", NULLS)
def test_null_is_as_empty(what: str, cfsctl: Cfsctl, layout: Layout, repo: Path, tmp_path: Path) -> None:
    """image-spec issue 1016.  cfsctl does not list such an image, and collects and checks beside it as ever."""
    image = NULLS[what](layout)
    import_image(repo, layout.top(named(image, "v1")), "app:1")
    assert tagged(repo) == image["digest"]
    cfsctl(repo, "--no-upgrade", "fsck")
    cfsctl(repo, "--no-upgrade", "oci", "images")
    before = sorted(path.name for path in (repo / "objects").glob("*/*"))
    cfsctl(repo, "--no-upgrade", "gc")
    assert sorted(path.name for path in (repo / "objects").glob("*/*")) == before
    with serving(repo) as served:
        assert served.get("/v2/app/manifests/1").status == 200
    export_image(repo, "app:1", f"oci:{tmp_path}/out:v1")
    import_image(repo, f"oci:{tmp_path}/out:v1", "again:1")


def test_an_index_with_null_is_an_empty_one(layout: Layout, repo: Path, tmp_path: Path) -> None:
    import_image(repo, layout.top(named(layout.image(), "v1")), "app:1")
    out = tmp_path / "out"
    for number, text in enumerate(
        ('{"schemaVersion":2,"manifests":null}', '{"schemaVersion":2,"manifests":[],"annotations":null}')
    ):
        out.mkdir(exist_ok=True)
        (out / "index.json").write_text(text)
        export_image(repo, "app:1", f"oci:{out}:v{number}")
        assert import_image(repo, f"oci:{out}:v{number}", None).plan.names[0][0] == f"v{number}"
    (out / "index.json").write_text('{"schemaVersion":2,"manifests":null}')
    with pytest.raises(SourceNotFound):
        import_image(repo, f"oci:{out}", "x:1")


@pytest.mark.parametrize("algorithm", ["sha512", "sha384"])
def test_a_manifest_named_by_another_algorithm_is_refused_and_nothing_is_written(
    algorithm: str, layout: Layout, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """cfsctl 0.9.4 refuses it, too: in its repositories manifests are named by sha256."""
    from cfs_tags.cli.main import main

    image = layout.image(algorithm=algorithm)
    for entry in (named(image, "v1"), named(layout.nested(on(image, MINE)), "v1")):
        source = layout.top(entry)
        for words in (["--dry-run"], []):
            assert main(["--repo", str(repo), "import", f"{source}:v1", "app:1", *words]) == 7
            assert image["digest"] in capsys.readouterr().err
            assert nothing_was_written(repo)


def test_everything_else_may_be_named_by_another_algorithm(cfsctl: Cfsctl, layout: Layout, repo: Path, tmp_path: Path) -> None:
    tar = a_tar()
    diff_ids = {"rootfs": {"type": "layers", "diff_ids": [sha(tar, "sha512")]}}
    blob = {"mediaType": f"{LAYER}+gzip", **layout.blob(zipped(tar), "sha384")}
    images = {
        "config": layout.image(config={"algorithm": "sha512"}),
        "diff-id": layout.image(config=diff_ids),
        "layer": layout.image(layers=[blob]),
        "all": layout.image(layers=[blob], config={"algorithm": "sha384", **diff_ids}),
    }
    for name, image in images.items():
        import_image(repo, layout.top(named(image, "v1")), f"{name}:1")
        assert tagged(repo, f"{name}:1") == image["digest"]
        export_image(repo, f"{name}:1", f"oci:{tmp_path}/out:{name}")
    # an artifact that is named by sha512 and is about the image is left where it is
    about = layout.artifact(b"x", subject=images["config"])
    data = (layout.path / "blobs" / about["digest"].replace(":", "/")).read_bytes()
    import_image(repo, layout.top(named(images["config"], "v1"), {**about, **layout.blob(data, "sha512")}), "about:1")
    cfsctl.assert_healthy(repo)


# -- messages ----------------------------------------------------------------------------------------------------------


def test_an_error_names_the_document_that_it_is_about(layout: Layout, repo: Path, tmp_path: Path) -> None:
    broken_layers = layout.image(layers=7)
    broken_label = layout.image(config={"config": {"Labels": {"build": 7}}})
    text = (layout.path / "blobs" / broken_label["digest"].replace(":", "/")).read_text()
    config = json.loads(text)["config"]["digest"]
    no_json = {"mediaType": MANIFEST, **layout.blob(b"{")}
    cut = tars.usr() + tars.header(b"usr/file", 5000)
    cut_layer = layout.image(
        layers=[{"mediaType": LAYER, **layout.blob(cut)}], config={"rootfs": {"type": "layers", "diff_ids": [sha(cut)]}}
    )
    cases: list[tuple[Made, str]] = [
        (broken_layers, broken_layers["digest"]),
        (broken_label, config),
        (no_json, no_json["digest"]),
        (layout.nested(on(broken_layers, MINE)), broken_layers["digest"]),
        (layout.nested(broken_label), config),
        (cut_layer, sha(cut)),
    ]
    for entry, wanted in cases:
        source = layout.top(named(entry, "v1"))
        with pytest.raises(FormatError) as caught:
            import_image(repo, f"{source}:v1", "app:1")
        assert wanted in str(caught.value)
        assert str(layout.path) in str(caught.value)


def test_an_error_names_the_part_of_an_archive_that_it_is_about(repo: Path, tmp_path: Path) -> None:
    rows = json.dumps([{"Config": "deep/c.json", "RepoTags": ["localhost/x:1"], "Layers": []}]).encode()
    for number, (members, wanted) in enumerate(
        [
            ([("manifest.json", b"[{")], "manifest.json"),
            ([("manifest.json", rows), ("deep/c.json", b'{"os": 7}')], "deep/c.json"),
            ([("manifest.json", rows), ("deep/c.json", b"[]")], "deep/c.json"),
        ]
    ):
        path = packed(tmp_path / f"{number}.tar", members)
        with pytest.raises(FormatError) as caught:
            import_image(repo, f"docker-archive:{path}", "x:1")
        assert path in str(caught.value)
        assert wanted in str(caught.value)


# -- archives ----------------------------------------------------------------------------------------------------------


def config_for(*layers: bytes) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [sha(layer) for layer in layers]}
    return json.dumps({"architecture": MINE, "os": "linux", "rootfs": rootfs}).encode()


def packed(path: Path, members: list[tuple[str, Any]]) -> str:
    """An archive of files, given as bytes, and links, given as type and target."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                archive.addfile(member)
    return str(path)


def docker_archive(path: Path, members: list[tuple[str, Any]], layers: list[str], *, prefix: str = "") -> str:
    rows = [{"Config": f"{prefix}c.json", "RepoTags": ["localhost/x:1"], "Layers": layers}]
    documents = [
        (f"{prefix}manifest.json", json.dumps(rows).encode()),
        (f"{prefix}c.json", config_for(*[a_tar()] * len(layers))),
    ]
    return packed(path, [*documents, *members])


def pack(layout: Path, path: Path) -> str:
    with tarfile.open(path, "w") as archive:
        archive.add(layout, ".")
    return str(path)


HARD_LINKS: dict[str, list[tuple[str, Any]]] = {
    "to a layer before": [("a/layer.tar", a_tar()), ("b/layer.tar", (tarfile.LNKTYPE, "a/layer.tar"))],
    "to one by another spelling": [("./a/layer.tar", a_tar()), ("b/layer.tar", (tarfile.LNKTYPE, "./a//layer.tar"))],
    "to a link": [
        ("a/layer.tar", a_tar()),
        ("c", (tarfile.LNKTYPE, "a/layer.tar")),
        ("b/layer.tar", (tarfile.LNKTYPE, "c")),
    ],
    "to a compressed layer": [("a/layer.tar", zipped(a_tar())), ("b/layer.tar", (tarfile.LNKTYPE, "a/layer.tar"))],
    "and a symbolic one to that": [
        ("c", a_tar()),
        ("a/layer.tar", (tarfile.LNKTYPE, "c")),
        ("b/layer.tar", (tarfile.SYMTYPE, "../a/layer.tar")),
    ],
}


@pytest.mark.parametrize("what", HARD_LINKS)
def test_a_layer_that_is_a_hard_link_is_the_member_that_it_leads_to(what: str, repo: Path, tmp_path: Path) -> None:
    """rules_oci issue 805, bb-remote-execution issue 162."""
    path = docker_archive(tmp_path / "d.tar", HARD_LINKS[what], ["a/layer.tar", "b/layer.tar"])
    import_image(repo, f"docker-archive:{path}", "app:1")
    assert has_object(repo, CONTENT)


def test_blobs_that_are_hard_links_are_read(layout: Layout, repo: Path, tmp_path: Path) -> None:
    image = layout.image()
    layout.top(named(image, "v1"))
    (layout.path / "aaa").mkdir()
    for blob in (layout.path / "blobs/sha256").iterdir():
        (layout.path / "aaa" / blob.name).hardlink_to(blob)
    import_image(repo, f"oci-archive:{pack(layout.path, tmp_path / 'o.tar')}:v1", "app:1")
    assert tagged(repo) == image["digest"]


@pytest.mark.parametrize("target", ["nowhere", "a/layer.tar", "../b", "b/layer.tar"])
def test_a_hard_link_that_leads_nowhere_is_no_layer(target: str, repo: Path, tmp_path: Path) -> None:
    """A hard link leads to a member before it; to itself, to a later one or out of the archive it does not."""
    members = [("b/layer.tar", (tarfile.LNKTYPE, target)), ("a/layer.tar", a_tar())]
    path = docker_archive(tmp_path / "d.tar", members, ["a/layer.tar", "b/layer.tar"])
    with pytest.raises((SourceNotFound, FormatError)):
        import_image(repo, f"docker-archive:{path}", "app:1")
    assert nothing_was_written(repo)


@pytest.mark.parametrize("slash", ["/", "//", "/./"])
def test_members_of_an_archive_of_dockers_may_be_absolute(slash: str, repo: Path, tmp_path: Path) -> None:
    """podman issue 8132: members are looked up, not written out."""
    members = [(f"{slash}l.tar", a_tar()), ("/", (tarfile.DIRTYPE, ""))]
    for number, (layer, prefix) in enumerate(
        [(f"{slash}l.tar", ""), ("l.tar", ""), ("l.tar", slash), (f"{slash}l.tar", slash)]
    ):
        path = docker_archive(tmp_path / f"{number}.tar", members, [layer], prefix=prefix)
        import_image(repo, f"docker-archive:{path}", f"app:{number}")
        assert has_object(repo, CONTENT)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "xz of two streams with zeros behind": lambda data: lzma.compress(data[:700]) + lzma.compress(data[700:]) + bytes(8),
    "xz as Python does not write it": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32, preset=9),
    "bzip2": bz2.compress,
    "bzip2 of three streams": lambda data: bz2.compress(b"") + bz2.compress(data[:513], 1) + bz2.compress(data[513:]),
}


@pytest.mark.parametrize("what", COMPRESSIONS)
def test_archives_and_their_layers_may_be_compressed_with_xz_and_bzip2(
    what: str, layout: Layout, repo: Path, tmp_path: Path
) -> None:
    """moby issue 14637, docker/for-mac issue 5271."""
    compress = COMPRESSIONS[what]
    whole = Path(docker_archive(tmp_path / "whole.tar", [("l.tar", a_tar())], ["l.tar"]))
    (tmp_path / "d.tar").write_bytes(compress(whole.read_bytes()))
    import_image(repo, f"docker-archive:{whole}", "plain:1")
    import_image(repo, f"docker-archive:{tmp_path}/d.tar", "app:1")
    assert tagged(repo, "plain:1") == tagged(repo)
    layout.top(named(layout.image(), "v1"))
    (tmp_path / "o.tar").write_bytes(compress(Path(pack(layout.path, tmp_path / "p.tar")).read_bytes()))
    import_image(repo, f"oci-archive:{tmp_path}/o.tar", "oci:1")
    # no manifest can say that a layer is compressed like this: it becomes one that is not
    inner = docker_archive(tmp_path / "inner.tar", [("l.tar", compress(a_tar()))], ["l.tar"])
    import_image(repo, f"docker-archive:{inner}", "inner:1")
    assert tagged(repo, "plain:1") == tagged(repo, "inner:1")
    assert has_object(repo, CONTENT)


OTHER_ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zip": lambda data: b"PK\x03\x04" + data,
    "gzip once more": lambda data: gzip.compress(gzip.compress(data)),
    "xz once more": lambda data: bz2.compress(lzma.compress(data)),
    "lz4": lambda data: b"\x04\x22\x4d\x18" + data,
    "compress": lambda data: b"\x1f\x9d\x90" + data,
    "7z": lambda data: b"7z\xbc\xaf\x27\x1c" + data,
}


@pytest.mark.parametrize("name", OTHER_ARCHIVES)
def test_an_archive_of_another_format_is_refused_by_its_name(name: str, repo: Path, tmp_path: Path) -> None:
    whole = Path(docker_archive(tmp_path / "whole.tar", [("l.tar", a_tar())], ["l.tar"])).read_bytes()
    (tmp_path / "d").write_bytes(OTHER_ARCHIVES[name](whole))
    for kind in ("docker-archive", "oci-archive"):
        with pytest.raises(FormatError, match=f"found {name}"):
            import_image(repo, f"{kind}:{tmp_path}/d", "app:1")
    assert nothing_was_written(repo)


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress], ids=["xz", "bzip2"])
def test_a_damaged_compression_is_named_and_a_bomb_is_stopped(
    compress: Callable[[bytes], bytes], repo: Path, tmp_path: Path
) -> None:
    name = "xz" if compress is lzma.compress else "bzip2"
    data = compress(Path(docker_archive(tmp_path / "whole.tar", [("l.tar", a_tar())], ["l.tar"])).read_bytes())
    for damaged in (data[:-20], data[: len(data) // 2], data + b"behind", data[:40] + b"\xff" * 8 + data[48:]):
        (tmp_path / "d.tar").write_bytes(damaged)
        with pytest.raises(FormatError, match=name):
            import_image(repo, f"docker-archive:{tmp_path}/d.tar", "app:1")
    (tmp_path / "d.tar").write_bytes(compress(tars.END + bytes(20 << 20)))
    with raises("layer-too-large"):
        import_image(repo, f"docker-archive:{tmp_path}/d.tar", "app:1", Options(limit=1 << 20))


def test_a_layer_that_an_archive_names_two_thousand_times_is_measured_once(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfs_tags.apps.importing.source.archive import Part

    read = 0
    plain = Part.read

    def counted(self: Part, size: int) -> bytes:
        nonlocal read
        data = plain(self, size)
        read += len(data)
        return data

    monkeypatch.setattr(Part, "read", counted)
    for number, pack_layer in enumerate((zipped, lzma.compress)):
        layer = pack_layer(a_tar(hashlib.shake_256(b"x").digest(1 << 20)))
        rows = [{"Config": "c.json", "RepoTags": ["localhost/x:1"], "Layers": ["l.tar", "m.tar"] * 1000}]
        rootfs = {"type": "layers", "diff_ids": [sha(b"%d" % number) for number in range(2000)]}
        config = json.dumps({"architecture": MINE, "os": "linux", "rootfs": rootfs}).encode()
        members = [("manifest.json", json.dumps(rows).encode()), ("c.json", config), ("l.tar", layer)]
        path = packed(tmp_path / f"{number}.tar", [*members, ("m.tar", (tarfile.LNKTYPE, "l.tar"))])
        read = 0
        with raises("digest-mismatch"):
            import_image(repo, f"docker-archive:{path}", "app:1")
        assert read < 4 << 20


# -- entries without content -------------------------------------------------------------------------------------------


def sized(kind: bytes, name: bytes = b"usr/odd", size: int = 1000, **more: Any) -> bytes:
    return tars.header(name, size, kind, **more)


ODD_ENTRIES = {
    "a symbolic link": sized(b"2", link=b"file", size=4),
    "a hard link": sized(b"1", link=b"usr/file", size=len(CONTENT)),
    "a character device": sized(b"3", device=(1, 3)),
    "a block device": sized(b"4", device=(7, 0)),
    "a pipe": sized(b"6"),
    "a directory": sized(b"5", b"usr/odd/", 4096),
    "a directory of an old archive": sized(b"\0", b"usr/odd/", 4096, magic=bytes(8)),
    "a hard link whose size is in a PAX header": tars.pax({"size": "70000"}) + sized(b"1", link=b"usr/file", size=0),
    "a hard link of more than 8 GiB": sized(
        b"1", link=b"usr/file", length=b"\x80" + (9 << 30).to_bytes(11, "big"), magic=tars.GNU
    ),
    "a link with a long target": tars.gnu_long(b"t" * 200, b"K") + sized(b"2", link=b"t" * 99, magic=tars.GNU),
    "several of them": sized(b"2", b"usr/a", 3, link=b"x") + sized(b"5", b"usr/b/", 10240) + sized(b"3", b"usr/c", 5),
}


@pytest.mark.parametrize("what", ODD_ENTRIES)
@pytest.mark.parametrize("end", ["a file", "a header that is for a link", "the end"])
def test_links_devices_and_directories_have_no_content_whatever_their_size(
    what: str, end: str, layout: Layout, repo: Path
) -> None:
    """tar-stream issues 44 and 68, golang/go issue 76468, modern-tar issue 114, tar-rs pull request 314."""
    last = CONTENT[::-1]
    behind = {
        "a file": tars.entry(b"usr/last", last),
        "a header that is for a link": tars.pax({"linkpath": "file"})
        + tars.header(b"usr/l", kind=b"2")
        + tars.entry(b"usr/last", last),
        "the end": b"",
    }[end]
    tar = tars.usr() + tars.entry(b"usr/file", CONTENT) + ODD_ENTRIES[what] + behind + tars.END
    config = {"rootfs": {"type": "layers", "diff_ids": [sha(tar)]}}
    image = layout.image(layers=[{"mediaType": LAYER, **layout.blob(tar)}], config=config)
    import_image(repo, layout.top(named(image, "v1")), "app:1")
    assert has_object(repo, CONTENT)
    assert has_object(repo, last) == (end != "the end")
    done = export_image(repo, "app:1", f"oci:{layout.path}:again")
    assert done.is_original


@pytest.mark.parametrize("what", [name for name in ODD_ENTRIES if "PAX" not in name])
def test_entries_without_content_in_an_archive_of_images_are_passed_over(what: str, repo: Path, tmp_path: Path) -> None:
    rows = json.dumps([{"Config": "c.json", "Layers": ["l.tar"]}]).encode()
    members = tars.entry(b"manifest.json", rows) + ODD_ENTRIES[what] + tars.entry(b"c.json", config_for(a_tar()))
    (tmp_path / "d.tar").write_bytes(members + ODD_ENTRIES[what] + tars.entry(b"l.tar", a_tar()) + tars.END)
    import_image(repo, f"docker-archive:{tmp_path}/d.tar", "app:1")
    assert has_object(repo, CONTENT)


def test_content_of_a_link_that_is_there_stays_its_content(layout: Layout, repo: Path) -> None:
    """As ``pax -o linkdata`` writes it, and cfsctl reads it."""
    hidden = CONTENT.upper()
    tar = tars.usr() + tars.entry(b"usr/l", hidden, b"1", link=b"usr/x") + tars.entry(b"usr/file", CONTENT) + tars.END
    config = {"rootfs": {"type": "layers", "diff_ids": [sha(tar)]}}
    image = layout.image(layers=[{"mediaType": LAYER, **layout.blob(tar)}], config=config)
    import_image(repo, layout.top(named(image, "v1")), "app:1")
    assert has_object(repo, CONTENT)
    assert not has_object(repo, hidden)


# -- a layout with links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "blobs/sha256/MANIFEST"])
def test_a_link_in_a_layout_is_refused_and_named(part: str, layout: Layout, repo: Path, tmp_path: Path) -> None:
    """``skopeo`` follows it; who can write into a layout could have us read any file (docs/apps.md)."""
    image = layout.image()
    source = layout.top(named(image, "v1"))
    place = layout.path / part.replace("MANIFEST", image["digest"].removeprefix("sha256:"))
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="a link") as caught:
        import_image(repo, source, "app:1")
    assert str(place) in str(caught.value)
    assert nothing_was_written(repo)


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "named_as"),
    [
        ("quay.io/org/app:1", ["quay.io/org/app:1"]),
        ("app", ["docker.io/library/app:latest"]),
        ("docker://quay.io/org/app:1", ["quay.io/org/app:1"]),
        ("localhost:5000/app:1", ["localhost:5000/app:1"]),
        ("Not for Docker", None),
    ],
)
def test_an_exported_archive_of_dockers_has_the_name_of_the_image(
    tag: str, named_as: list[str] | None, skopeo: Path, layout: Layout, repo: Path, tmp_path: Path
) -> None:
    import_image(repo, layout.top(named(layout.image(), "v1")), tag)
    export_image(repo, tag, f"docker-archive:{tmp_path}/d.tar")
    with tarfile.open(tmp_path / "d.tar") as archive:
        document = archive.extractfile("manifest.json")
        assert document is not None
        assert (json.load(document)[0]["RepoTags"] or None) == named_as
    if named_as is not None:
        assert import_image(repo, f"docker-archive:{tmp_path}/d.tar", None, Options(force=True)).plan.names[0][0] == named_as[0]
    export_image(repo, tag, f"docker-archive:{tmp_path}/e.tar:other:2")
    assert import_image(repo, f"docker-archive:{tmp_path}/e.tar", None).plan.names[0][0] == "docker.io/library/other:2"


def test_a_layout_of_more_images_than_an_index_may_have_asks_which_one(layout: Layout, repo: Path) -> None:
    image = layout.image()
    entries = [named({**image, "digest": sha(b"%d" % number)}, f"v{number}") for number in range(1500)]
    source = layout.top(*entries, named(image, "mine"))
    with raises("ambiguous-name"):
        import_image(repo, source, "x:1")
    import_image(repo, f"{source}:mine", "x:1")
    assert tagged(repo, "x:1") == image["digest"]


def test_a_layer_that_could_not_be_read_again_is_refused_and_not_tagged(layout: Layout, repo: Path) -> None:
    """docs/limits.md: what a stream is inflated to is bounded; nothing is imported that fsck and export then refuse."""
    for rest, fits in ((b"x" * (10 << 20), True), (bytes(100 << 20), True), (b"x" * (100 << 20), False)):
        tar = a_tar() + rest
        config = {"rootfs": {"type": "layers", "diff_ids": [sha(tar)]}}
        blob = layout.blob(zipped(tar))
        image = layout.image(layers=[{"mediaType": f"{LAYER}+gzip", **blob}], config=config)
        source = layout.top(named(image, "v1"))
        if fits:
            import_image(repo, source, f"fits:{len(rest)}")
            export_image(repo, f"fits:{len(rest)}", f"oci:{layout.path}:again")
            continue
        with pytest.raises(FormatError, match="beside files of more than 64 bytes") as caught:
            import_image(repo, source, "x:1")
        assert blob["digest"] in str(caught.value)
        assert not (repo / "streams" / f"oci-manifest-{image['digest']}").is_symlink()
