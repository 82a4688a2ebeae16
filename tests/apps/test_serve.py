"""The registry over HTTP: what the real tools pull, what is reachable, and what hostile clients get."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cfs_tags import Repository
from cfs_tags.apps.importing.choose import Options
from cfs_tags.apps.manifests import ORIGINAL_DIGEST
from cfs_tags.cli.main import main
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.registry import view
from cfs_tags.registry.app import Limits
from cfs_tags.registry.server import ConnectionLimits
from cfs_tags.repo import layout
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.store import WriteRepo
from cfs_tags.tags import rows
from cfs_tags.tags.rows import ENDED
from cfs_tags.values import ContentId, Digest, ObjectId
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
    pull_image,
    random_bytes,
    skopeo_copy,
)
from support.importing import import_image
from support.peers import Cfsctl
from support.serving import Served, client, exclusive, fetch, memory_of, program, serving

WEB, PLAIN, ZSTD, BOOTC = "quay.io/apps/web", "quay.io/apps/plain", "quay.io/apps/z", "localhost/bootc-sha256"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Shop(NamedTuple):
    """A repository with images, and what they were made from."""

    repo: Path
    web: Image
    plain: Image
    zstd: Image
    large: Image


def _many() -> Layer:
    """Files of all kinds of sizes: inline, small, larger than a buffer, and large enough for the kernel to send."""
    sizes = [0, 1, 64, 65, 511, 512, 513, 4096, 100_000, 131_071, 131_072, 524_288, 600_000, 3_000_000, *range(70, 1500, 7)]
    entries = [file(f"usr/f{number}", random_bytes(f"many {number}", size)) for number, size in enumerate(sizes)]
    return Layer([directory("usr"), *entries], "zstd")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Image, Image, Image]:
    source = tmp_path_factory.mktemp("serve") / "layout"
    many = _many()
    huge = Layer([directory("usr"), file("usr/huge", random_bytes("huge", 24_000_000))], "none")
    return (
        app_image(source, "web"),
        build_image(source, "plain", [base_layer().compressed("none"), many.compressed("none")]),
        build_image(source, "zstd", [base_layer(), many]),
        build_image(source, "large", [huge]),
    )


@pytest.fixture
def shop(sources: tuple[Image, Image, Image, Image], filled_repo: Callable[..., Path]) -> Shop:
    web, plain, zstd, large = sources

    def fill(cfsctl: Cfsctl, repo: Path) -> None:
        pull_image(cfsctl, repo, web, f"{WEB}:1")
        cfsctl(repo, "oci", "tag", web.manifest_digest, f"{WEB}:stable")
        pull_image(cfsctl, repo, plain, PLAIN)
        pull_image(cfsctl, repo, zstd, f"docker://{ZSTD}:2")
        pull_image(cfsctl, repo, large, "large:1")
        cfsctl(repo, "oci", "tag", web.manifest_digest, f"localhost/bootc-{web.manifest_digest}")
        cfsctl(repo, "oci", "tag", plain.manifest_digest, "Not A Repository")

    return Shop(filled_repo("serve", fill), *sources)


@pytest.fixture
def served(shop: Shop) -> Iterator[Served]:
    with serving(shop.repo) as found:
        yield found


def store_artifact(repo: Path, image: Image, subject: str | None = None, tag: str | None = None) -> None:
    """Put an artifact into a repository, as composefs-rs does (``oci_image.rs``): no cfsctl command writes one."""
    with Repository.open(repo, write=True) as opened:
        layers = {
            layer["digest"]: _stream(
                opened, ContentId.blob(Digest(layer["digest"])), splitstream.CONTENT_TYPE_BLOB, _blob(image, layer), {}
            )
            for layer in image.manifest["layers"]
        }
        config = _stream(
            opened,
            ContentId.config(Digest(image.config_digest)),
            splitstream.CONTENT_TYPE_CONFIG,
            image.config_bytes,
            layers,
        )
        content_id = ContentId.manifest(Digest(image.manifest_digest))
        refs = {f"config:{image.config_digest}": config, **layers}
        _stream(opened, content_id, splitstream.CONTENT_TYPE_MANIFEST, image.manifest_bytes, refs)
    paths = []
    if subject is not None:
        paths.append(f"{layout.REFERRERS}/{subject}/{image.manifest_digest}")
    if tag is not None:
        paths.append(f"{layout.SHARED_TAGS}/{layout.encode_name(tag)}")
    for path in paths:
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).symlink_to(layout.ref_link(path, content_id))


def _blob(image: Image, layer: dict[str, Any]) -> bytes:
    return (image.layout / "blobs/sha256" / layer["digest"].removeprefix("sha256:")).read_bytes()


def _stream(repo: WriteRepo, content_id: ContentId, kind: int, content: bytes, refs: dict[str, ObjectId]) -> ObjectId:
    writer = splitwriter.Writer(repo.algorithm, kind)
    for name, target in refs.items():
        writer.add_named_ref(name, target)
    writer.add_external(ObjectStore(repo).add(content), len(content))
    return ObjectStore(repo).add_stream(content_id, writer.finish())


# -- the protocol ------------------------------------------------------------------------------------------------------


def test_the_base_says_that_the_protocol_is_spoken(served: Served) -> None:
    answer = served.get("/v2/")

    assert (answer.status, answer.json) == (200, {})
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


def test_the_catalog_has_the_repositories_of_apps_in_pages(served: Served) -> None:
    first = served.get("/v2/_catalog?n=3")
    following = re.fullmatch(r'<(.*)>; rel="next"', first.headers["link"])

    assert first.json == {"repositories": ["large", PLAIN, WEB]}
    assert following is not None
    assert served.get(following[1]).json == {"repositories": [ZSTD]}
    assert served.get("/v2/_catalog").json == {"repositories": ["large", PLAIN, WEB, ZSTD]}


def test_tags_are_listed_in_order_and_in_pages(served: Served) -> None:
    assert served.get(f"/v2/{WEB}/tags/list").json == {"name": WEB, "tags": ["1", "stable"]}
    assert served.get(f"/v2/{WEB}/tags/list?n=1").json["tags"] == ["1"]
    assert served.get(f"/v2/{WEB}/tags/list?n=1&last=1").json["tags"] == ["stable"]
    assert served.get(f"/v2/{WEB}/tags/list?n=0").json["tags"] == []
    assert served.get("/v2/absent/tags/list").code == "NAME_UNKNOWN"


def test_a_manifest_of_plain_layers_is_served_as_it_came(served: Served, shop: Shop) -> None:
    for reference in ("latest", shop.plain.manifest_digest):
        answer = served.get(f"/v2/{PLAIN}/manifests/{reference}")

        assert answer.status == 200
        assert answer.body == shop.plain.manifest_bytes
        assert answer.headers["content-type"] == MANIFEST_TYPE
        assert answer.headers["docker-content-digest"] == shop.plain.manifest_digest
        assert answer.headers["etag"] == f'"{shop.plain.manifest_digest}"'


@pytest.mark.parametrize(("repository", "reference"), [(WEB, "1"), (ZSTD, "2")])
def test_an_image_of_compressed_layers_has_its_config_and_its_layers_as_plain_tars(
    served: Served, shop: Shop, repository: str, reference: str
) -> None:
    image = shop.web if repository == WEB else shop.zstd
    answer = served.get(f"/v2/{repository}/manifests/{reference}")
    manifest = answer.json

    assert manifest["config"] == image.manifest["config"]
    assert [layer["digest"] for layer in manifest["layers"]] == image.diff_ids
    assert [layer["size"] for layer in manifest["layers"]] == [len(layer.tar) for layer in image.layers]
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar"}
    assert manifest["annotations"][ORIGINAL_DIGEST] == image.manifest_digest
    digest = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
    assert answer.headers["docker-content-digest"] == digest
    assert served.get(f"/v2/{repository}/manifests/{digest}").body == answer.body
    for layer in image.layers:
        assert served.get(f"/v2/{repository}/blobs/{layer.diff_id}").body == layer.tar
    assert served.get(f"/v2/{repository}/blobs/{image.config_digest}").body == image.config_bytes


def test_the_answer_for_a_manifest_with_missing_blobs_says_where_the_image_is(served: Served, shop: Shop) -> None:
    answer = served.get(f"/v2/{WEB}/manifests/{shop.web.manifest_digest}")
    here = served.get(f"/v2/{WEB}/manifests/1").headers["docker-content-digest"]

    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert here in answer.json["errors"][0]["message"]
    assert served.get(f"/v2/{WEB}/blobs/{shop.web.layers[0].digest}").code == "BLOB_UNKNOWN"


def test_head_says_what_get_would(served: Served, shop: Shop) -> None:
    for path in (
        "/v2/",
        f"/v2/{WEB}/manifests/1",
        f"/v2/{ZSTD}/blobs/{shop.zstd.diff_ids[1]}",
        f"/v2/{WEB}/blobs/{shop.web.config_digest}",
        f"/v2/{WEB}/tags/list",
        f"/v2/{WEB}/manifests/absent",
    ):
        head, get = served.get(path, "HEAD"), served.get(path)

        assert head.body == b""
        assert head.status == get.status
        assert {**head.headers, "date": ""} == {**get.headers, "date": ""}
        assert int(head.headers["content-length"]) == len(get.body)


def test_a_part_of_a_blob_is_that_part(served: Served, shop: Shop) -> None:
    tar, path = shop.zstd.layers[1].tar, f"/v2/{ZSTD}/blobs/{shop.zstd.diff_ids[1]}"
    chance = random.Random(1)
    spans = [(0, 0), (0, len(tar) - 1), (len(tar) - 1, len(tar) - 1), (511, 512), (131_000, 2_000_000)]
    spans += [tuple(sorted((chance.randrange(len(tar)), chance.randrange(len(tar))))) for _ in range(40)]  # type: ignore[misc]
    for first, last in spans:
        answer = served.get(path, headers={"Range": f"bytes={first}-{last}"})

        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(tar)}"
        assert answer.body == tar[first : last + 1], (first, last)


def test_head_knows_no_ranges(served: Served, shop: Shop) -> None:
    path = f"/v2/{PLAIN}/blobs/{shop.plain.diff_ids[0]}"
    answer = served.get(path, "HEAD", {"Range": "bytes=0-3"})

    assert (answer.status, int(answer.headers["content-length"])) == (200, len(shop.plain.layers[0].tar))


def test_ranges_follow_http(served: Served, shop: Shop) -> None:
    path, size = f"/v2/{PLAIN}/blobs/{shop.plain.diff_ids[0]}", len(shop.plain.layers[0].tar)
    digest = shop.plain.diff_ids[0]

    refused = served.get(path, headers={"Range": f"bytes={size}-"})
    assert (refused.status, refused.headers["content-range"], refused.code) == (416, f"bytes */{size}", "RANGE_INVALID")
    assert served.get(path, headers={"Range": "bytes=-5"}).body == shop.plain.layers[0].tar[-5:]
    for unread in ("bytes=0-1,4-5", "nonsense", "bytes=9-1"):
        assert served.get(path, headers={"Range": unread}).status == 200
    assert served.get(path, headers={"Range": "bytes=0-1", "If-Range": f'"{digest}"'}).status == 206
    assert served.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status == 200
    unchanged = served.get(path, headers={"If-None-Match": f'"{digest}"'})
    assert (unchanged.status, unchanged.body) == (304, b"")


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(served: Served, method: str) -> None:
    answer = served.get(f"/v2/{WEB}/manifests/1", method, body=b"x" * 100_000)

    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
    assert served.get(f"/v2/{WEB}/manifests/1").status == 200


def test_several_requests_go_over_one_connection(served: Served, shop: Shop) -> None:
    connection = client(served.address)
    for _ in range(3):
        for layer in shop.zstd.layers:
            connection.request("GET", f"/v2/{ZSTD}/blobs/{layer.diff_id}")
            assert connection.getresponse().read() == layer.tar
    connection.close()

    assert len({line.partition(" ")[0] for line in served.log}) == 1


# -- referrers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(shop: Shop, tmp_path: Path) -> tuple[Image, Image]:
    """A signature of the web image, and an attestation about that signature."""
    signature = build_artifact(tmp_path / "artifacts", "sig", [("application/x", b"signed" * 100)], subject=shop.web)
    about = build_artifact(
        tmp_path / "artifacts", "about", [("text/plain", b"")], "application/x-about", subject=signature, annotations={"a": "b"}
    )
    store_artifact(shop.repo, signature, shop.web.manifest_digest)
    store_artifact(shop.repo, about, signature.manifest_digest)
    return signature, about


def test_referrers_are_listed_for_the_original_digest_and_for_that_of_here(
    shop: Shop, signed: tuple[Image, Image], served: Served
) -> None:
    signature, about = signed
    here = served.get(f"/v2/{WEB}/manifests/1").headers["docker-content-digest"]
    for digest in (shop.web.manifest_digest, here):
        answer = served.get(f"/v2/{WEB}/referrers/{digest}")

        assert answer.headers["content-type"] == "application/vnd.oci.image.index.v1+json"
        assert answer.json["manifests"] == [{**signature.descriptor, "artifactType": "application/vnd.example.signature.v1"}]
    further = served.get(f"/v2/{WEB}/referrers/{signature.manifest_digest}").json["manifests"]
    assert further == [{**about.descriptor, "artifactType": "application/x-about", "annotations": {"a": "b"}}]
    assert served.get(f"/v2/{WEB}/manifests/{signature.manifest_digest}").body == signature.manifest_bytes
    layer = signature.manifest["layers"][0]["digest"]
    assert served.get(f"/v2/{WEB}/blobs/{layer}").body == b"signed" * 100
    assert served.get(f"/v2/{WEB}/blobs/{about.manifest['layers'][0]['digest']}").body == b""


def test_referrers_are_filtered_by_type(shop: Shop, signed: tuple[Image, Image], served: Served) -> None:
    path = f"/v2/{WEB}/referrers/{shop.web.manifest_digest}?artifactType="
    some, none = served.get(path + "application%2Fvnd.example.signature.v1"), served.get(path + "text/x")

    assert (len(some.json["manifests"]), len(none.json["manifests"])) == (1, 0)
    assert some.headers["oci-filters-applied"] == none.headers["oci-filters-applied"] == "artifactType"


def test_what_has_no_referrers_has_an_empty_list(served: Served, shop: Shop) -> None:
    for path in (f"{PLAIN}/referrers/{shop.plain.manifest_digest}", f"absent/referrers/sha256:{'0' * 64}"):
        answer = served.get(f"/v2/{path}")
        assert (answer.status, answer.json["manifests"]) == (200, [])


def test_a_referrer_is_reachable_through_its_subject_only(shop: Shop, signed: tuple[Image, Image], served: Served) -> None:
    signature, _ = signed

    assert served.get(f"/v2/{PLAIN}/manifests/{signature.manifest_digest}").status == 404
    assert served.get(f"/v2/{PLAIN}/referrers/{shop.web.manifest_digest}").json["manifests"] == []
    assert served.get(f"/v2/{PLAIN}/blobs/{signature.manifest['layers'][0]['digest']}").status == 404


def test_an_artifact_with_a_tag_is_an_image_like_any_other(shop: Shop, tmp_path: Path) -> None:
    chart = build_artifact(tmp_path / "artifacts", "chart", [("application/x", b"chart")], subject=shop.plain)
    store_artifact(shop.repo, chart, tag=f"{PLAIN}:chart")
    with serving(shop.repo) as served:
        assert served.get(f"/v2/{PLAIN}/manifests/chart").body == chart.manifest_bytes
        listed = served.get(f"/v2/{PLAIN}/referrers/{shop.plain.manifest_digest}").json["manifests"]
        assert [one["digest"] for one in listed] == [chart.manifest_digest]


# -- what is reachable -------------------------------------------------------------------------------------------------


def test_nothing_of_another_repository_is_reachable(served: Served, shop: Shop) -> None:
    own = shop.web.layers[1].diff_id

    assert served.get(f"/v2/{WEB}/blobs/{own}").status == 200
    assert served.get(f"/v2/{PLAIN}/blobs/{own}").code == "BLOB_UNKNOWN"
    assert served.get(f"/v2/absent/blobs/{own}").code == "BLOB_UNKNOWN"
    assert served.get(f"/v2/{WEB}/manifests/{shop.plain.manifest_digest}").code == "MANIFEST_UNKNOWN"


def test_tags_of_bootc_are_hidden_unless_a_pattern_fits(shop: Shop) -> None:
    reference = shop.web.manifest_digest.removeprefix("sha256:")
    with serving(shop.repo) as served:
        assert served.get(f"/v2/{BOOTC}/manifests/{reference}").status == 404
    with serving(shop.repo, ["localhost/bootc-*"]) as served:
        assert served.get(f"/v2/{BOOTC}/manifests/{reference}").status == 200
        assert served.get("/v2/_catalog").json == {"repositories": [BOOTC]}
        assert served.get(f"/v2/{WEB}/manifests/1").status == 404


def test_a_pattern_hides_tags_and_all_that_only_they_lead_to(shop: Shop) -> None:
    with serving(shop.repo, ["*/web:stable", "*plain*"]) as served:
        assert served.get(f"/v2/{WEB}/tags/list").json["tags"] == ["stable"]
        assert served.get(f"/v2/{WEB}/manifests/1").status == 404
        assert served.get(f"/v2/{WEB}/manifests/stable").status == 200
        assert served.get(f"/v2/{ZSTD}/blobs/{shop.zstd.diff_ids[0]}").status == 404
        assert served.get("/v2/_catalog").json == {"repositories": [PLAIN, WEB]}


def test_private_tags_and_leases_are_served_and_the_trash_is_not(shop: Shop) -> None:
    def run(*words: str) -> None:
        assert main(["--repo", str(shop.repo), *words]) == 0

    run("create", "own:1", PLAIN, "--private")
    run("create", "lent:1", PLAIN, "--expires", "1d")
    run("delete", f"{WEB}:1", "--keep-for", "1d")
    with serving(shop.repo) as served:
        assert served.get("/v2/own/manifests/1").status == 200
        assert served.get("/v2/lent/manifests/1").status == 200
        assert served.get(f"/v2/{WEB}/tags/list").json["tags"] == ["stable"]


def test_a_lease_is_served_until_its_time_is_over(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its link stands until the next collection; and it takes no place from a tag that is one."""
    assert main(["--repo", str(shop.repo), "create", "lent:1", PLAIN, "--expires", "1d"]) == 0
    assert main(["--repo", str(shop.repo), "create", "docker://lent:1", f"{WEB}:1"]) == 0
    with serving(shop.repo) as served:
        assert served.get("/v2/lent/manifests/1").json["config"]["digest"] == shop.plain.manifest["config"]["digest"]
        for module in (rows, view):
            monkeypatch.setattr(module, "moment", lambda now=None: "20990101T000000Z")
        assert served.get("/v2/lent/manifests/1").json["config"]["digest"] == shop.web.manifest["config"]["digest"]
        assert main(["--repo", str(shop.repo), "delete", "docker://lent:1"]) == 0
        assert served.get("/v2/lent/manifests/1").status == 404
        assert served.get(f"/v2/lent/blobs/{shop.plain.diff_ids[0]}").status == 404
        assert "lent" not in served.get("/v2/_catalog").json["repositories"]
    capsys.readouterr()
    for words in (["serve", "--list"], ["list", "lent:1"]):
        assert main(["--repo", str(shop.repo), *words]) == 0
        assert ENDED in capsys.readouterr().out
    for preset in ("podman", "podman-json", "crane"):
        assert main(["--repo", str(shop.repo), "list", "--format", preset]) == 0
        assert "lent" not in capsys.readouterr().out
    assert main(["--repo", str(shop.repo), "export", "lent:1", f"oci:{shop.repo}-out"]) == 3
    assert not os.path.exists(f"{shop.repo}-out")
    assert main(["--repo", str(shop.repo), "show", "lent:1"]) == 0
    assert main(["--repo", str(shop.repo), "why", "lent:1"]) == 0


def test_a_manifest_cannot_say_that_it_is_a_page(shop: Shop, tmp_path: Path) -> None:
    chart = build_artifact(tmp_path / "artifacts", "chart", [("application/x", b"chart")])
    raw = json.dumps({**chart.manifest, "mediaType": "text/html", "annotations": {"x": "<script>alert(1)</script>"}}).encode()
    page = chart._replace(manifest_bytes=raw, manifest_digest=f"sha256:{hashlib.sha256(raw).hexdigest()}")
    store_artifact(shop.repo, page, shop.plain.manifest_digest, tag="page:1")
    with serving(shop.repo) as served:
        answer = served.get("/v2/page/manifests/1")
        assert (answer.body, answer.headers["content-type"]) == (raw, MANIFEST_TYPE)
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_change_of_a_tag_is_seen_at_once(served: Served, shop: Shop, cfsctl: Cfsctl) -> None:
    for round_ in range(5):
        assert served.get(f"/v2/new/manifests/{round_}").status == 404
        cfsctl(shop.repo, "oci", "tag", shop.plain.manifest_digest, f"new:{round_}")
        assert served.get(f"/v2/new/manifests/{round_}").status == 200
        (shop.repo / layout.SHARED_TAGS / f"new:{round_}").unlink()
        assert served.get(f"/v2/new/manifests/{round_}").status == 404


def test_a_tag_that_leads_nowhere_is_not_there(served: Served, shop: Shop) -> None:
    path = f"{layout.SHARED_TAGS}/gone:1"
    (shop.repo / path).symlink_to(layout.ref_link(path, f"oci-manifest-sha256:{'0' * 64}"))

    assert served.get("/v2/gone/manifests/1").status == 404
    assert served.get(f"/v2/{WEB}/manifests/1").status == 200


def test_an_image_that_lacks_a_layer_is_not_served_and_the_reason_is_given(served: Served, shop: Shop) -> None:
    with Repository.open(shop.repo) as repo:
        stream = repo.stream_object(ContentId.layer(Digest(shop.web.diff_ids[1])))
    assert stream is not None
    (shop.repo / layout.object_path(stream)).unlink()
    answer = served.get(f"/v2/{WEB}/manifests/1")

    assert answer.code == "MANIFEST_UNKNOWN"
    assert "missing" in answer.json["errors"][0]["message"]


def test_a_blob_that_lacks_an_object_is_cut_short_and_the_log_says_why(served: Served, shop: Shop) -> None:
    with Repository.open(shop.repo) as repo:
        stream = repo.stream_object(ContentId.layer(Digest(shop.zstd.diff_ids[1])))
        assert stream is not None
        gone = repo.stream(stream, "test").object_refs[-1]
    (shop.repo / layout.object_path(gone)).unlink()
    with pytest.raises(http.client.IncompleteRead):
        served.get(f"/v2/{ZSTD}/blobs/{shop.zstd.diff_ids[1]}")

    assert f"cut short: object {gone}" in served.log[-1]
    assert served.get("/v2/").status == 200


SPOILED: dict[str, Callable[[Path], object]] = {
    "is removed": lambda _: None,
    "is empty": Path.touch,
    "is other bytes": lambda path: path.write_bytes(b"x"),
    "is a directory": Path.mkdir,
    "is a link to nothing": lambda path: path.symlink_to("/nonexistent"),
    "is a link to what is not of here": lambda path: path.symlink_to("/etc/passwd"),
    "is a pipe": os.mkfifo,
}


@pytest.mark.parametrize(
    ("what", "spoiled"),
    [
        (what, spoiled)
        for what in ("a file of a layer", "a layer", "the config")
        for spoiled in SPOILED
        if (what, spoiled) != ("a file of a layer", "is other bytes")  # whoever takes that layer sees it: nobody else reads it
    ],
)
def test_an_image_of_which_something(served: Served, shop: Shop, what: str, spoiled: str) -> None:
    """Is not served, by tag and by digest, until it is back; the others are."""
    path = f"/v2/{ZSTD}/manifests/2"
    digest = served.get(path).headers["docker-content-digest"]
    with Repository.open(shop.repo) as repo:
        layer = repo.stream_object(ContentId.layer(Digest(shop.zstd.diff_ids[1])))
        config = repo.stream_object(ContentId.config(Digest(shop.zstd.config_digest)))
        assert layer is not None
        assert config is not None
        file_of_it = repo.stream(layer, "test").object_refs[-1]
    lost = {"a file of a layer": file_of_it, "a layer": layer, "the config": config}[what]
    gone = shop.repo / layout.object_path(lost)
    content = gone.read_bytes()
    time.sleep(0.2)
    assert served.get(path).status == 200
    gone.unlink()
    SPOILED[spoiled](gone)
    for reference in ("2", digest):
        answer = served.get(f"/v2/{ZSTD}/manifests/{reference}")
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
        assert what != "a file of a layer" or "lacks usr/f" in answer.json["errors"][0]["message"]
        assert served.get(f"/v2/{ZSTD}/manifests/{reference}", method="HEAD").status == 404
    assert served.get(f"/v2/{WEB}/manifests/1").status == 200
    if spoiled == "is a directory":
        gone.rmdir()
    else:
        gone.unlink(missing_ok=True)
    gone.write_bytes(content)
    assert served.get(path).status == 200


def test_the_list_names_what_is_missing(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    with Repository.open(shop.repo) as repo:
        stream = repo.stream_object(ContentId.layer(Digest(shop.zstd.diff_ids[1])))
        assert stream is not None
        (shop.repo / layout.object_path(repo.stream(stream, "test").object_refs[-1])).unlink()
    assert main(["--repo", str(shop.repo), "serve", "--list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["result"]}
    assert rows[f"docker://{ZSTD}:2"]["served_digest"] is None
    assert "lacks usr/f" in rows[f"docker://{ZSTD}:2"]["note"]
    assert rows[f"{WEB}:1"]["served_digest"] is not None


def test_content_that_cannot_be_sent_is_looked_for_again_by_the_next_request(served: Served, shop: Shop) -> None:
    """A file that was cut in its place changes no directory, so that nothing but the broken response tells of it."""
    path = f"/v2/{ZSTD}/manifests/2"
    time.sleep(0.2)
    assert served.get(path).status == 200
    with Repository.open(shop.repo) as repo:
        stream = repo.stream_object(ContentId.layer(Digest(shop.zstd.diff_ids[1])))
        assert stream is not None
        os.truncate(shop.repo / layout.object_path(repo.stream(stream, "test").object_refs[-1]), 0)
    with pytest.raises(http.client.IncompleteRead):
        served.get(f"/v2/{ZSTD}/blobs/{shop.zstd.diff_ids[1]}")
    assert served.get(path).status == 404


def test_what_is_collected_while_it_is_sent_is_cut_short_and_then_absent(served: Served, shop: Shop, cfsctl: Cfsctl) -> None:
    path = f"/v2/large/blobs/{shop.large.diff_ids[0]}"
    connection = client(served.address)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read(1000)
    with Repository.open(shop.repo) as repo:
        stream = repo.stream_object(ContentId.layer(Digest(shop.large.diff_ids[0])))
        assert stream is not None
        parts = repo.stream(stream, "test").object_refs
    assert main(["--repo", str(shop.repo), "delete", "large:1"]) == 0
    cfsctl(shop.repo, "gc")
    assert not any((shop.repo / layout.object_path(part)).exists() for part in parts)
    # what is open stays readable to the end: one file is the whole layer here
    assert len(response.read()) == len(shop.large.layers[0].tar) - 1000
    connection.close()
    assert served.get(path).code == "BLOB_UNKNOWN"
    assert served.get("/v2/large/manifests/1").code == "MANIFEST_UNKNOWN"


# -- the real tools ----------------------------------------------------------------------------------------------------


def tree_of(tars: list[bytes]) -> dict[str, Any]:
    """Names, kinds, modes and contents of a stack of tars without whiteouts."""
    found: dict[str, Any] = {}
    for data in tars:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                content = archive.extractfile(member)
                found[member.name] = (member.type, member.mode, content.read() if content is not None else None)
    return found


@pytest.mark.parametrize(("name", "which"), [(f"{WEB}:1", "web"), (PLAIN, "plain"), (f"{ZSTD}:2", "zstd")])
def test_skopeo_copies_an_image_whole(served: Served, shop: Shop, skopeo: Path, tmp_path: Path, name: str, which: str) -> None:
    image: Image = getattr(shop, which)
    skopeo_copy(skopeo, f"docker://{served.address}/{name}", f"dir:{tmp_path}/copy", "--src-tls-verify=false")
    copy = tmp_path / "copy"
    manifest = json.loads((copy / "manifest.json").read_bytes())

    assert (copy / image.config_digest.removeprefix("sha256:")).read_bytes() == image.config_bytes
    tars = [(copy / layer["digest"].removeprefix("sha256:")).read_bytes() for layer in manifest["layers"]]
    assert tars == [layer.tar for layer in image.layers]


def test_crane_reads_lists_and_pulls(served: Served, shop: Shop, crane: Path, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        return subprocess.run([crane, *words, "--insecure"], check=True, capture_output=True, timeout=60).stdout.decode()

    assert run("catalog", served.address).split() == ["large", PLAIN, WEB, ZSTD]
    assert run("ls", f"{served.address}/{WEB}").split() == ["1", "stable"]
    here = run("digest", f"{served.address}/{WEB}:1").strip()
    assert here == served.get(f"/v2/{WEB}/manifests/1").headers["docker-content-digest"]
    assert run("config", f"{served.address}/{WEB}@{here}") == shop.web.config_bytes.decode()
    run("pull", "--format", "oci", f"{served.address}/{ZSTD}:2", str(tmp_path / "oci"))
    blobs = tmp_path / "oci/blobs/sha256"
    for layer in shop.zstd.layers:
        data = (blobs / layer.diff_id.removeprefix("sha256:")).read_bytes()
        assert (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data) == layer.tar
    run("export", f"{served.address}/{ZSTD}:2", str(tmp_path / "flat.tar"))
    flat = tree_of([(tmp_path / "flat.tar").read_bytes()])
    assert flat == tree_of([layer.tar for layer in shop.zstd.layers])


def test_podman_pulls_an_image_with_its_id_and_tree(served: Served, shop: Shop, podman: Path, podman_home: Path) -> None:
    store = [podman, "--root", podman_home / "root", "--runroot", podman_home / "run", "--storage-driver", "vfs"]
    saved = podman_home / "saved"

    def run(*words: str | Path) -> str:
        done = subprocess.run([*store, *words], check=False, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    pulled = run("pull", "--quiet", "--tls-verify=false", f"{served.address}/{ZSTD}:2").strip()
    assert pulled == shop.zstd.config_digest.removeprefix("sha256:")
    run("save", "--quiet", "--format", "oci-archive", "-o", saved, f"{served.address}/{ZSTD}:2")
    with tarfile.open(saved) as archive:
        blobs = {member.name.rpartition("/")[2]: archive.extractfile(member) for member in archive if member.isfile()}
        content = {name: stream.read() for name, stream in blobs.items() if stream is not None}
    manifest = json.loads(content[json.loads(content["index.json"])["manifests"][0]["digest"][7:]])
    tars = [content[layer["digest"][7:]] for layer in manifest["layers"]]
    tars = [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in tars]
    assert tree_of(tars) == tree_of([layer.tar for layer in shop.zstd.layers])


def test_cfsctl_of_another_host_pulls_the_same_image(
    served: Served, shop: Shop, cfsctl: Cfsctl, new_repo: Callable[..., Path], tmp_path: Path
) -> None:
    settings = Path(cfsctl.environment["HOME"]) / ".config/containers"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "registries.conf").write_text(f'[[registry]]\nlocation = "{served.address}"\ninsecure = true\n')
    (settings / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    other = new_repo(tmp_path / "other")
    for name in (f"{ZSTD}:2", PLAIN):
        cfsctl(other, "oci", "pull", f"docker://{served.address}/{name}", name)
    cfsctl.assert_healthy(other)

    for name, here in ((f"{ZSTD}:2", f"docker://{ZSTD}:2"), (PLAIN, PLAIN)):
        ours, theirs = cfsctl.json(shop.repo, "oci", "inspect", here), cfsctl.json(other, "oci", "inspect", name)
        assert theirs["config"] == ours["config"]
        assert cfsctl.images_of(other, name) == cfsctl.images_of(shop.repo, here)
    assert cfsctl.tags(other)[PLAIN] == shop.plain.manifest_digest


def test_the_conformance_suite_passes_for_pull(served: Served, shop: Shop, conformance: Path, tmp_path: Path) -> None:
    manifest = served.get(f"/v2/{ZSTD}/manifests/2")
    blobs = [shop.zstd.config_digest, *shop.zstd.diff_ids]
    settings = {
        "OCI_REGISTRY": served.address,
        "OCI_TLS": "disabled",
        "OCI_REPO1": ZSTD,
        "OCI_API_PUSH": "false",
        "OCI_API_BLOBS_DELETE": "false",
        "OCI_API_MANIFESTS_DELETE": "false",
        "OCI_API_TAGS_DELETE": "false",
        "OCI_RO_DATA_TAGS": "2",
        "OCI_RO_DATA_MANIFESTS": manifest.headers["docker-content-digest"],
        "OCI_RO_DATA_BLOBS": " ".join(blobs),
        "OCI_RO_DATA_REFERRERS": shop.zstd.manifest_digest,
    }
    said = subprocess.run(
        [conformance], cwd=tmp_path, env=settings, capture_output=True, timeout=120, check=False
    ).stdout.decode()
    counts = dict(re.findall(r"^  (Pass|FAIL|Error)\.*: +(\d+)$", said, re.MULTILINE))

    assert int(counts["Pass"]) >= 15, said
    assert (counts["FAIL"], counts["Error"]) == ("0", "0"), said


# -- locks -------------------------------------------------------------------------------------------------------------


def test_the_lock_is_free_between_requests(served: Served, shop: Shop) -> None:
    connection = client(served.address)
    connection.request("GET", f"/v2/{ZSTD}/blobs/{shop.zstd.diff_ids[1]}")
    connection.getresponse().read()

    assert exclusive(shop.repo, 1) < 1
    connection.close()


def test_a_collector_at_work_keeps_no_request_waiting(served: Served, shop: Shop) -> None:
    fd = os.open(shop.repo, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert served.get(f"/v2/{WEB}/manifests/1").status == 200
    assert served.get(f"/v2/{WEB}/blobs/{shop.web.diff_ids[0]}").body == shop.web.layers[0].tar
    os.close(fd)


def test_a_reader_that_stalls_holds_up_no_collector_and_is_cut_off(shop: Shop) -> None:
    with serving(shop.repo, limits=Limits(stall_seconds=1.5)) as served:
        connection = client(served.address)
        connection.request("GET", f"/v2/large/blobs/{shop.large.diff_ids[0]}")
        response = connection.getresponse()
        response.read(10)
        assert exclusive(shop.repo, 1.4) < 0.1
        time.sleep(2)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        connection.close()
        assert "cut short: the reader is too slow" in served.log[-1]


def test_a_reader_that_pauses_gets_the_rest(shop: Shop) -> None:
    with serving(shop.repo) as served:
        connection = client(served.address)
        connection.request("GET", f"/v2/large/blobs/{shop.large.diff_ids[0]}")
        response = connection.getresponse()
        start = response.read(10)
        time.sleep(0.5)
        assert exclusive(shop.repo, 1) < 1
        assert start + response.read() == shop.large.layers[0].tar
        connection.close()


def test_readers_that_overlap_keep_no_collector_waiting(shop: Shop) -> None:
    code = (
        "import http.client, sys, time\n"
        "end = time.monotonic() + 4\n"
        "while time.monotonic() < end:\n"
        "    c = http.client.HTTPConnection(sys.argv[1]); c.request('GET', sys.argv[2]); r = c.getresponse()\n"
        "    assert len(r.read()) == int(r.headers['Content-Length']); c.close()\n"
    )
    with serving(shop.repo) as served:
        words = [sys.executable, "-c", code, served.address, f"/v2/large/blobs/{shop.large.diff_ids[0]}"]
        readers = [subprocess.Popen(words) for _ in range(4)]
        time.sleep(1)
        waited = exclusive(shop.repo, 3)
        assert [reader.wait(30) for reader in readers] == [0, 0, 0, 0]
    assert waited < 0.5


def test_a_collector_beside_200_slow_readers_does_its_work_as_if_they_were_not_there(
    shop: Shop, tmp_path: Path, cfsctl: Cfsctl
) -> None:
    with program(shop.repo, tmp_path / "log") as running:
        host, _, port = running.address.rpartition(":")
        request = f"GET /v2/large/blobs/{shop.large.diff_ids[0]} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        crowd = [socket.create_connection((host, int(port)), 20) for _ in range(200)]
        over = threading.Event()

        def read_slowly() -> None:
            while not over.wait(0.2):
                for connection in crowd:
                    connection.setblocking(False)
                    with suppress(OSError):
                        connection.recv(10_000)

        reader = threading.Thread(target=read_slowly)
        try:
            for connection in crowd:
                connection.sendall(request)
            reader.start()
            time.sleep(1)
            assert main(["--repo", str(shop.repo), "delete", "Not A Repository"]) == 0
            for _ in range(3):
                began = time.monotonic()
                cfsctl(shop.repo, "gc")
                assert main(["--repo", str(shop.repo), "gc", "--lock-timeout", "1"]) == 0
                assert time.monotonic() - began < 5
                assert exclusive(shop.repo, 5) < 0.1
            assert running.get(f"/v2/{WEB}/manifests/1").status == 200
        finally:
            over.set()
            reader.join()
            for connection in crowd:
                connection.close()
        assert running.stop() == 0


# -- hostile clients ---------------------------------------------------------------------------------------------------


def talk(address: str, data: bytes, timeout: float = 20.0) -> bytes:
    """Send bytes, then read until the server closes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout) as connection:
        connection.sendall(data)
        found = b""
        while piece := connection.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize(
    "path",
    [
        "/v2/../../../etc/passwd",
        "/../../etc/passwd",
        "//etc/passwd",
        "/v2/..%2f..%2f..%2fetc/manifests/passwd",
        "/v2/%2e%2e/%2e%2e/meta.json",
        "/v2/quay.io/apps/web/manifests/../../../../meta.json",
        "/v2/quay.io/apps/web/blobs/..%2f..%2fmeta.json",
        "/v2/quay.io%2fapps%2fweb%00/manifests/1",
        "/v2/quay.io/apps/web/manifests/1%00",
        "/v2/quay.io/apps/web/blobs/sha256:%2e%2e",
        "/v2/streams/refs/oci/manifests/1",
        "/v2/objects/blobs/meta.json",
    ],
)
def test_no_path_leads_out_of_the_tags(served: Served, path: str) -> None:
    answer = served.get(path)

    assert answer.status in (400, 404)
    assert answer.json["errors"]
    assert b"fsverity" not in answer.body


def test_a_huge_head_is_refused(served: Served) -> None:
    head = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 1000) for i in range(200))

    assert b" 431 " in talk(served.address, head + b"\r\n").split(b"\r\n")[0]
    assert b" 431 " in talk(served.address, b"GET /v2/" + b"a" * 100_000).split(b"\r\n")[0]


@pytest.mark.parametrize(("size", "status"), [(16_384, b"404"), (16_385, b"431"), (20_000, b"431")])
def test_the_size_of_a_head_is_counted_however_it_comes(served: Served, size: int, status: bytes) -> None:
    frame = b"GET /v2/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    request = frame % (b"a" * (size - len(frame) + 2))
    assert len(request) == size
    for first in (b"", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"):
        assert b"HTTP/1.1 " + status + b" " in talk(served.address, first + request)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"hello\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_logged_in_one_safe_line(served: Served, data: bytes) -> None:
    answer = talk(served.address, data)

    assert re.match(rb"HTTP/1\.1 (4|5)\d\d ", answer), answer
    assert served.log[-1].isprintable()
    assert served.get("/v2/").status == 200


def test_foreign_text_cannot_talk_to_the_terminal_that_shows_the_log(served: Served) -> None:
    talk(served.address, b"GET /v2/\xc2\x9b31m%1b[31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert all(line.isprintable() for line in served.log)


def test_smuggled_requests_are_not_answered(served: Served) -> None:
    inner = b"GET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = talk(served.address, b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)

    assert answer.count(b"HTTP/1.1") == 1
    assert b"repositories" not in answer


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 4\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 45\r\n",
        b"Content-Length: 45\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 45\r\nTransfer-Encoding: xchunked\r\n",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT"])
def test_after_a_request_that_has_a_body_nothing_is_read(served: Served, method: bytes, fields: bytes) -> None:
    inner = b"0\r\n\r\nGET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = talk(served.address, method + b" /v2/ HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + inner)

    assert answer.startswith((b"HTTP/1.1 405 ", b"HTTP/1.1 501 ") if method == b"PUT" else (b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert answer.count(b"HTTP/1.1") == 1
    assert b"repositories" not in answer


def test_a_body_of_no_bytes_is_none(served: Served) -> None:
    answer = talk(served.address, b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")


def test_requests_in_a_row_are_answered_in_order(served: Served) -> None:
    one = b"GET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = talk(served.address, one * 5 + last)

    assert answer.count(b"HTTP/1.1 200 OK") == 6
    assert answer.endswith(b"{}")


@pytest.mark.parametrize("first", [b"", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_request_that_comes_in_drops_is_cut_off(shop: Shop, first: bytes) -> None:
    with serving(shop.repo, connections=ConnectionLimits(head_seconds=0.5)) as served:
        host, _, port = served.address.rpartition(":")
        with socket.create_connection((host, int(port)), 20) as connection:
            connection.sendall(first)
            began = time.monotonic()
            with suppress(ConnectionError):
                for byte in b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 100:
                    connection.send(bytes([byte]))
                    time.sleep(0.05)
            assert time.monotonic() - began < 5


def test_a_thousand_silent_connections_shut_no_client_out(shop: Shop, tmp_path: Path) -> None:
    with program(shop.repo, tmp_path / "log") as running:
        host, _, port = running.address.rpartition(":")
        crowd = [socket.create_connection((host, int(port)), 20) for _ in range(1000)]
        try:
            assert running.get(f"/v2/{WEB}/manifests/1").status == 200
            assert len(running.get(f"/v2/large/blobs/{shop.large.diff_ids[0]}").body) == len(shop.large.layers[0].tar)
        finally:
            for connection in crowd:
                connection.close()
        assert running.stop() == 0


def test_a_thousand_readers_that_take_nothing_shut_out_neither_others_nor_collectors(shop: Shop, tmp_path: Path) -> None:
    with program(shop.repo, tmp_path / "log") as running:
        host, _, port = running.address.rpartition(":")
        request = f"GET /v2/large/blobs/{shop.large.diff_ids[0]} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        crowd = [socket.create_connection((host, int(port)), 20) for _ in range(1000)]
        try:
            for connection in crowd:
                connection.sendall(request)
            assert running.get(f"/v2/{WEB}/manifests/1").status == 200
            assert running.get(f"/v2/{WEB}/blobs/{shop.web.config_digest}").body == shop.web.config_bytes
            assert exclusive(shop.repo, 10) < 0.5
            assert memory_of(running.process.pid) < 100 << 20
        finally:
            for connection in crowd:
                connection.close()
        assert running.stop() == 0


def test_where_all_connections_are_taken_the_longest_idle_one_goes(shop: Shop) -> None:
    with serving(shop.repo, connections=ConnectionLimits(connections=10, young_seconds=0)) as served:
        host, _, port = served.address.rpartition(":")
        crowd = [socket.create_connection((host, int(port)), 20) for _ in range(40)]
        assert served.get("/v2/").status == 200
        assert crowd[0].recv(1) == b""
        for connection in crowd:
            connection.close()


def test_readers_of_a_large_manifest_take_turns_like_those_of_blobs(shop: Shop, tmp_path: Path) -> None:
    annotations = {f"key-{number}": "x" * 1000 for number in range(3900)}
    large = build_artifact(tmp_path / "artifacts", "large", [("text/plain", b"x")], annotations=annotations)
    store_artifact(shop.repo, large, tag="documents:1")
    with serving(shop.repo, limits=Limits(bodies=2)) as served:
        crowd = [client(served.address) for _ in range(20)]
        for connection in crowd:
            connection.request("GET", "/v2/documents/manifests/1")
        assert served.get("/v2/").status == 200
        for connection in crowd:
            assert connection.getresponse().read() == large.manifest_bytes
            connection.close()


def test_more_readers_than_there_are_places_wait_for_their_turn(shop: Shop) -> None:
    with serving(shop.repo, limits=Limits(bodies=1, queue_seconds=1.0)) as served:
        path = f"/v2/large/blobs/{shop.large.diff_ids[0]}"
        first = client(served.address)
        first.request("GET", path)
        slow = first.getresponse()
        refused = served.get(path)
        assert (refused.status, refused.code) == (429, "TOOMANYREQUESTS")
        assert exclusive(shop.repo, 3) < 3
        assert served.get(f"/v2/{WEB}/blobs/{shop.web.config_digest}").status == 200
        assert len(slow.read()) == len(shop.large.layers[0].tar)
        assert len(served.get(path).body) == len(shop.large.layers[0].tar)
        first.close()


# -- the program -------------------------------------------------------------------------------------------------------


def test_the_program_ends_cleanly_and_finishes_what_it_has_begun(shop: Shop, tmp_path: Path) -> None:
    with program(shop.repo, tmp_path / "log") as running:
        connection = client(running.address)
        connection.request("GET", f"/v2/large/blobs/{shop.large.diff_ids[0]}")
        response = connection.getresponse()
        start = response.read(1000)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionError):
            fetch(running.address, "/v2/")
        assert start + response.read() == shop.large.layers[0].tar
        assert running.process.wait(20) == 0
        connection.close()
    lines = running.log.read_text().splitlines()
    assert lines[0] == f"cfs-tag: serving {shop.repo} at http://{running.address}"
    assert "not served: Not A Repository: a repository is" in lines[1]
    assert re.fullmatch(r'127\.0\.0\.1:\d+ "GET /v2/large/blobs/sha256:[0-9a-f]{64}" 200 \d+ \d+\.\d{3}s', lines[-1])


def test_an_interrupt_ends_the_program_with_the_status_of_an_interrupt(shop: Shop, tmp_path: Path) -> None:
    with program(shop.repo, tmp_path / "log") as running:
        assert running.stop(signal.SIGINT) == 130


def test_a_unix_socket_is_served_and_removed(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with program(shop.repo, tmp_path / "log", "--listen", f"unix:{path}") as running:
        assert running.address == f"unix:{path}"
        assert running.get(f"/v2/{WEB}/manifests/1").status == 200
        assert len(running.get(f"/v2/large/blobs/{shop.large.diff_ids[0]}").body) == len(shop.large.layers[0].tar)
        assert running.stop() == 0
    assert not path.exists()


def test_systemd_hands_over_its_socket(shop: Shop, tmp_path: Path) -> None:
    launcher = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [sys.executable, "-c", launcher, str(listener.fileno())]
        with program(shop.repo, tmp_path / "log", launcher=words, fds=[listener.fileno()]) as running:
            assert running.address == "{}:{}".format(*listener.getsockname())
            assert running.get(f"/v2/{WEB}/manifests/1").status == 200
            assert running.stop() == 0


def test_the_list_says_what_would_be_served_and_what_not(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repo", str(shop.repo), "serve", "--list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["result"]}

    assert rows[PLAIN]["repository"] == PLAIN
    assert rows[PLAIN]["reference"] == "latest"
    assert rows[PLAIN]["served_digest"] == shop.plain.manifest_digest
    assert rows[f"docker://{ZSTD}:2"]["served_digest"] != shop.zstd.manifest_digest
    assert rows["Not A Repository"]["repository"] is None
    assert "lower-case" in rows["Not A Repository"]["note"]
    assert not [name for name in rows if name.startswith("localhost/bootc-")]


def test_a_pattern_that_fits_nothing_is_warned_about(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--allow", "quay.io/*", "--allow", "quai.io/*", "--allow", "*@x\n"]
    assert main(["--repo", str(shop.repo), "serve", "--list", *words]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"cfs-tag: warning: --allow {shown} fits no tag" for shown in ("'quai.io/*'", r"'*@x\n'")]
    assert main(["--repo", str(shop.repo), "serve", "--list", "--json", *words]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [one["facts"]["value"] for one in warnings] == ["quai.io/*", "*@x\n"]
    with program(shop.repo, tmp_path / "log", *words) as running:
        assert running.get(f"/v2/{WEB}/manifests/1").status == 200
    assert "--allow 'quai.io/*' fits no tag" in running.log.read_text()
    assert "--allow 'quay.io/*'" not in running.log.read_text()


def test_the_unit_starts_what_the_readme_installs() -> None:
    root = Path(__file__).parent.parent.parent
    installed = re.search(r"^ln -s \S+/(cfs-tag) (/\S*/)$", (root / "README.md").read_text(), re.MULTILINE)
    started = re.search(r"^ExecStart=(\S+) ", (root / "examples/systemd/cfs-tag-serve.service").read_text(), re.MULTILINE)

    assert installed is not None
    assert started is not None
    assert started[1] == installed[2] + installed[1]


@pytest.mark.parametrize(
    "address", ["", "5000", ":5000", "unix:", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:5000", "unix:/absent/x"]
)
def test_an_address_that_is_none_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert main(["--repo", str(shop.repo), "serve", "--listen", address]) in (1, 2)
    said = capsys.readouterr().err
    assert "listen" in said
    assert ("has a port above 65535" in said) == address.endswith(":99999")


@pytest.mark.parametrize("address", ["a..b:5000", "x" * 64 + ".example:5000"])
def test_a_name_that_no_host_can_have_is_a_wrong_option(shop: Shop, capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert main(["--repo", str(shop.repo), "serve", "--listen", address]) == 2
    assert "names no host" in capsys.readouterr().err


def test_where_one_address_of_several_fails_no_socket_is_left(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--listen", f"unix:{tmp_path}/socket", "--listen", "127.0.0.1:99999"]
    assert main(["--repo", str(shop.repo), "serve", *words]) == 2
    assert list(tmp_path.glob("socket")) == []
    assert "127.0.0.1:99999" in capsys.readouterr().err


def test_inherited_descriptors_that_are_no_sockets_are_an_error(shop: Shop) -> None:
    code = (
        "import os, sys\n"
        "from cfs_tags.cli.main import main\n"
        "os.environ.update(LISTEN_FDS='40', LISTEN_PID=str(os.getpid()))\n"
        "sys.exit(main(['--repo', sys.argv[1], 'serve']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, shop.repo], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "of LISTEN_FDS=40" in done.stderr


def test_a_socket_for_one_connection_is_refused_and_not_waited_on_for_ever(shop: Shop) -> None:
    """As systemd hands over with ``Accept=yes``: no connection will ever come of it."""
    code = (
        "import os, socket, sys\n"
        "from cfs_tags.cli.main import main\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(listener.getsockname())\n"
        "os.dup2(listener.accept()[0].detach(), 3)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "sys.exit(main(['--repo', sys.argv[1], 'serve']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, shop.repo], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "Accept=yes" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_registry_serves_without_standard_error(shop: Shop, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "cfs_tags", "--repo", str(shop.repo), "serve", "--listen", f"unix:{tmp_path}/s"]
    with subprocess.Popen(["sh", "-c", 'exec "$@" 2>&-', "sh", *words]) as running:
        until = time.monotonic() + 20
        while not (tmp_path / "s").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        assert fetch(f"unix:{tmp_path}/s", f"/v2/{WEB}/manifests/1").status == 200
        running.terminate()
        assert running.wait(20) == 0


def test_a_log_that_is_not_read_does_not_stop_the_server(shop: Shop, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    words = [sys.executable, "-m", "cfs_tags", "--repo", str(shop.repo), "serve", "--listen", f"unix:{tmp_path}/s"]
    with subprocess.Popen(words, stderr=writer) as running:
        os.close(writer)
        until = time.monotonic() + 20
        while not (tmp_path / "s").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        connection = client(f"unix:{tmp_path}/s")
        for _ in range(3000):
            connection.request("GET", "/v2/" + "a" * 300)
            assert connection.getresponse().read()
        connection.close()
        running.terminate()
        assert running.wait(20) == 0
    assert not (tmp_path / "s").exists()
    os.close(reader)


def test_a_target_is_logged_in_part_where_it_is_long(served: Served) -> None:
    talk(served.address, b"GET /v2/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (b"a" * 10_000))

    assert len(served.log[-1]) < 400


def test_without_the_http_library_the_command_says_how_to_get_it(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    assert main(["--repo", str(shop.repo), "serve"]) == 1
    said = capsys.readouterr().err
    assert "uvicorn" in said
    assert "pip install uvicorn" in said
    assert main(["--repo", str(shop.repo), "serve", "--list"]) == 0


# -- indexes that were kept --------------------------------------------------------------------------------------------


def test_a_tag_whose_index_was_kept_stands_for_the_images_of_it_that_are_there(
    new_repo: Callable[..., Path], skopeo: Path, tmp_path: Path
) -> None:
    source, repo = tmp_path / "layout", new_repo()
    images = {name: app_image(source, name, config={"architecture": name}) for name in ("amd64", "arm64")}
    original = build_index(source, "both", images)
    words = ["--keep-index", "--all-platforms", f"oci:{source}:both", "quay.io/apps/both:1"]
    assert main(["--repo", str(repo), "import", *words]) == 0
    with serving(repo, ["*/both:1*"]) as served:
        answer = served.get("/v2/quay.io/apps/both/manifests/1")
        index = answer.json
        assert answer.headers["content-type"] == "application/vnd.oci.image.index.v1+json"
        assert index["annotations"] == {ORIGINAL_DIGEST: original}
        assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
        digest = answer.headers["docker-content-digest"]
        assert served.get(f"/v2/quay.io/apps/both/manifests/{digest}").body == answer.body
        assert digest in served.get(f"/v2/quay.io/apps/both/manifests/{original}").json["errors"][0]["message"]
        for architecture, image in images.items():
            name = f"docker://{served.address}/quay.io/apps/both:1"
            options = ["--src-tls-verify=false", f"--override-arch={architecture}", "--override-os=linux"]
            skopeo_copy(skopeo, name, f"dir:{tmp_path}/{architecture}", *options)
            config = tmp_path / architecture / image.config_digest.removeprefix("sha256:")
            assert config.read_bytes() == image.config_bytes


def test_an_index_leads_to_nothing_that_no_tag_of_those_shown_names(new_repo: Callable[..., Path], tmp_path: Path) -> None:
    source, repo = tmp_path / "layout", new_repo()
    hidden = app_image(tmp_path / "other", "hidden", config={"architecture": "arm64"})
    shown = app_image(source, "amd64", config={"architecture": "amd64"})
    build_index(source, "both", {"amd64": shown, "arm64": hidden})
    import_image(repo, hidden.source, "internal/hidden:1")
    import_image(repo, f"oci:{source}:both", "pub/app:1", Options(keep_index=True))
    with serving(repo, ["pub/*"]) as served:
        entries = served.get("/v2/pub/app/manifests/1").json["manifests"]
        assert [entry["platform"]["architecture"] for entry in entries] == ["amd64"]
        for other in ("pub/app", "internal/hidden"):
            assert served.get(f"/v2/{other}/manifests/{hidden.manifest_digest}").status == 404
            for digest in (hidden.config_digest, *hidden.diff_ids[1:]):
                assert served.get(f"/v2/{other}/blobs/{digest}").status == 404


def test_an_index_is_the_same_for_a_server_that_has_run_for_long_and_for_a_new_one(
    new_repo: Callable[..., Path], tmp_path: Path
) -> None:
    source, repo = tmp_path / "layout", new_repo()
    images = {name: app_image(source, name, config={"architecture": name}) for name in ("amd64", "arm64", "riscv64")}
    build_index(source, "all", images)
    import_image(repo, f"oci:{source}:all", "app:1", Options(all_platforms=True, keep_index=True))
    path, seen = "/v2/app/manifests/1", []

    def look(served: Served) -> None:
        with serving(repo) as other:
            old, new = served.get(path), other.get(path)
        assert old.body == new.body
        seen.append(old.headers["docker-content-digest"])

    with serving(repo) as served:
        look(served)
        assert main(["--repo", str(repo), "delete", "app:1-linux-arm64"]) == 0
        look(served)
        assert main(["--repo", str(repo), "gc"]) == 0
        look(served)
        (repo / "streams" / f"oci-manifest-{images['riscv64'].manifest_digest}").unlink()
        look(served)
    assert len(set(seen)) == 3
