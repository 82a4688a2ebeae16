"""What requests mean, and where tags are served: text in, values out, whatever the text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfs_tags.apps.manifests import ORIGINAL_DIGEST, NewLayer, plain_index, with_layers
from cfs_tags.registry import routes
from cfs_tags.registry.names import Place, is_reference, is_repository, place_of
from cfs_tags.registry.routes import Page, Problem, Route
from cfs_tags.values import Digest

DIGEST = Digest("sha256:" + "ab" * 32)
OTHER = Digest("sha256:" + "cd" * 32)

# the specification's own expression, "Pulling manifests"
REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")

# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "repository", "reference"),
    [
        ("quay.io/org/app:1", "quay.io/org/app", "1"),
        ("quay.io/org/app", "quay.io/org/app", "latest"),
        ("app:v1.2_3-rc", "app", "v1.2_3-rc"),
        ("docker://quay.io/org/app:1", "quay.io/org/app", "1"),
        ("docker://quay.io/org/app", "quay.io/org/app", "latest"),
        (f"quay.io/org/app@{DIGEST}", "quay.io/org/app", None),
        (f"docker://quay.io/org/app:1@{DIGEST}", "quay.io/org/app", None),
        (f"localhost/bootc-{DIGEST}", "localhost/bootc-sha256", "ab" * 32),
        ("@deployment/" + "0f" * 64, "deployments", "0f" * 64),
    ],
)
def test_a_tag_is_served_as_repository_and_reference(tag: str, repository: str, reference: str | None) -> None:
    place = place_of(tag)

    assert isinstance(place, Place)
    assert place[:2] == (repository, reference)


@pytest.mark.parametrize(
    "tag",
    [
        *("", ":", "App:1", "a b:1", "a//b:1", "/a:1", "a/:1", "a:1:2", "localhost:5000/app:1", "../x:1", "a/../b:1"),
        *("a:", "a:-1", "a:.x", "a:" + "x" * 129, "a" * 230 + ":1", "ä:1", "a:ä", "a\n:1", "oci:/tmp/x:1", "a:٣", "x@y:1"),
        *("@trash/app:1", "@deployment/", "@deployment/../x", "docker://", "docker://docker://a:1", "%2e%2e/x:1"),
    ],
)
def test_a_name_that_no_client_can_ask_for_is_not_served_and_the_reason_is_given(tag: str) -> None:
    reason = place_of(tag)

    assert isinstance(reason, str)
    assert reason


def test_of_several_tags_in_one_place_the_plainest_has_it() -> None:
    tags = ["app:latest", "app", "docker://app:latest", "docker://app"]
    places = [place_of(tag) for tag in tags]

    assert {place[:2] for place in places if isinstance(place, Place)} == {("app", "latest")}
    assert [place.rank for place in places if isinstance(place, Place)] == [0, 1, 2, 3]


@given(st.text() | st.from_regex(r"(docker://)?[a-zA-Z0-9._/:@%-]{0,40}", fullmatch=True))
def test_any_tag_has_a_place_within_the_grammar_or_a_reason(tag: str) -> None:
    place = place_of(tag)

    if isinstance(place, Place):
        assert REPOSITORY.fullmatch(place.repository)
        assert place.reference is None or re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", place.reference)


# -- routes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/v2", Route("base")),
        ("/v2/", Route("base")),
        ("/v2/?x=1", Route("base")),
        ("http://registry.example/v2/", Route("base")),
        ("/v2/_catalog", Route("catalog", page=Page())),
        ("/v2/_catalog?n=5&last=b%2Fc", Route("catalog", page=Page(5, "b/c"))),
        ("/v2/a/b/tags/list?n=0", Route("tags", "a/b", page=Page(0))),
        ("/v2/a/manifests/1", Route("manifest", "a", tag="1")),
        (f"/v2/a/manifests/{DIGEST}", Route("manifest", "a", digest=DIGEST)),
        (f"/v2/a/manifests/{DIGEST.replace(':', '%3A')}", Route("manifest", "a", digest=DIGEST)),
        (f"/v2/manifests/manifests/{DIGEST}", Route("manifest", "manifests", digest=DIGEST)),
        ("/v2/a/manifests/tags/list", Route("tags", "a/manifests", page=Page())),
        (f"/v2/a/b/c/blobs/{DIGEST}", Route("blob", "a/b/c", digest=DIGEST)),
        (f"/v2/a/referrers/{DIGEST}", Route("referrers", "a", digest=DIGEST)),
        (f"/v2/a/referrers/{DIGEST}?artifactType=x%2Fy%2Bz", Route("referrers", "a", digest=DIGEST, artifact_type="x/y+z")),
    ],
)
def test_an_endpoint_of_the_specification_is_found(target: str, wanted: object) -> None:
    assert routes.route("GET", target) == wanted
    assert routes.route("HEAD", target) == wanted


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("PUT", "/v2/a/manifests/1", 405, "UNSUPPORTED"),
        ("POST", "/v2/a/blobs/uploads/", 405, "UNSUPPORTED"),
        ("PATCH", "/v2/a/blobs/uploads/x", 405, "UNSUPPORTED"),
        ("DELETE", f"/v2/a/blobs/{DIGEST}", 405, "UNSUPPORTED"),
        ("BREW", "/v2/", 501, "UNSUPPORTED"),
        ("GET", "/", 404, "UNSUPPORTED"),
        ("GET", "/v1/search", 404, "UNSUPPORTED"),
        ("GET", "*", 404, "UNSUPPORTED"),
        ("GET", "/v2/../etc/passwd", 404, "UNSUPPORTED"),
        ("GET", "/v2/a/blobs/uploads/", 404, "UNSUPPORTED"),
        ("GET", "/v2/../../etc/manifests/passwd", 400, "NAME_INVALID"),
        ("GET", "/v2/%2e%2e/%2e%2e/manifests/1", 400, "NAME_INVALID"),
        ("GET", "/v2/a%2f..%2fb/manifests/1", 400, "NAME_INVALID"),
        ("GET", "/v2/A/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2//tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a/manifests/..", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/manifests/%00", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/manifests/sha256:0", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/sha256:" + "AB" * 32, 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/../../objects", 400, "NAME_INVALID"),
        ("GET", "/v2/a/blobs/md5:00", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/referrers/latest", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
        ("GET", "/v2/a/tags/list?n=" + "9" * 5000, 400, "PAGINATION_NUMBER_INVALID"),
        ("GET", "/v2/%ff/tags/list", 404, "UNSUPPORTED"),
    ],
)
def test_anything_else_is_answered_by_an_error(method: str, target: str, status: int, code: str) -> None:
    answer = routes.route(method, target)

    assert isinstance(answer, Problem)
    if "blobs/../.." not in target:
        assert (answer.status, answer.code) == (status, code)
    else:
        assert answer.status in (400, 404)


pieces = st.sampled_from(
    [
        *("v2", "..", ".", "", "a", "A", "manifests", "blobs", "tags", "list", "referrers", "_catalog", "uploads", DIGEST, "1"),
        *("%2e%2e", "%2F", "%00", "%", "%zz", "%ff", "?n=1", "?last=%2F", "#", "ä", "\n", "\0", "sha256:", "x" * 300),
    ]
)


@given(
    st.sampled_from(["GET", "HEAD", "PUT", "get", "", "\0"]) | st.text(max_size=8),
    st.text() | st.lists(pieces, max_size=9).map(lambda parts: "/" + "/".join(parts)),
)
def test_any_request_is_a_route_within_the_grammar_or_a_problem(method: str, target: str) -> None:
    answer = routes.route(method, target)

    if isinstance(answer, Problem):
        assert 400 <= answer.status < 600
        assert answer.code in routes.ERROR_STATUS
        return
    assert is_repository(answer.name) != (answer.kind in ("base", "catalog"))
    if answer.kind == "manifest":
        assert (answer.tag is None) != (answer.digest is None)
        assert answer.tag is None or is_reference(answer.tag)


# -- ranges and pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-9", (0, 10)),
        ("bytes=5-", (5, 5)),
        ("bytes=5-100", (5, 5)),
        ("bytes=-3", (7, 3)),
        ("bytes=-100", (0, 10)),
        ("bytes=9-9", (9, 1)),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=4-2", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=٣-٤", None),
    ],
)
def test_a_range_is_read_as_http_says(header: str, wanted: tuple[int, int] | None) -> None:
    assert routes.byte_range(header, 10) == wanted


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=9999999999999999999-"])
def test_a_range_without_a_byte_is_refused(header: str) -> None:
    answer = routes.byte_range(header, 10)

    assert isinstance(answer, Problem)
    assert (answer.status, answer.code) == (416, "RANGE_INVALID")


@given(st.text(max_size=30) | st.from_regex(r"bytes=\d{0,21}-\d{0,21}", fullmatch=True), st.integers(0, 1 << 62))
def test_any_range_lies_within_the_blob(header: str, size: int) -> None:
    part = routes.byte_range(header, size)

    if part is not None and not isinstance(part, Problem):
        start, length = part
        assert 0 <= start < start + length <= size


@given(st.lists(st.text(min_size=1, max_size=4), unique=True).map(sorted), st.integers(1, 5))
def test_pages_make_the_whole_list(names: list[str], limit: int) -> None:
    found: list[str] = []
    last: str | None = ""
    while last is not None:
        part, last = routes.page(names, Page(limit, last))
        found += part

    assert found == names


def test_no_name_is_wanted_and_none_is_given() -> None:
    assert routes.page(["a", "b"], Page(0)) == ([], None)


# -- manifests ---------------------------------------------------------------------------------------------------------


def manifest(**more: Any) -> bytes:
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": DIGEST,
        "size": 5,
        "annotations": {"org.opencontainers.image.title": "t", "io.github.containers.zstd-chunked.manifest-checksum": "x"},
    }
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": OTHER, "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": [layer, layer], "x-unknown": [1], **more}).encode()


def test_a_manifest_of_plain_layers_stays_as_it_is() -> None:
    raw = manifest()

    assert with_layers(raw, DIGEST, [None, None]) is raw


def test_a_compressed_layer_is_replaced_and_everything_else_kept() -> None:
    raw = manifest(annotations={"a": "b"})
    before, after = json.loads(raw), json.loads(with_layers(raw, DIGEST, [None, NewLayer(OTHER, 7)]))

    assert after["layers"][0] == before["layers"][0]
    assert after["layers"][1] == {
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": OTHER,
        "size": 7,
        "annotations": {"org.opencontainers.image.title": "t"},
    }
    assert after["annotations"] == {"a": "b", ORIGINAL_DIGEST: DIGEST}
    assert {**after, "layers": 0, "annotations": 0} == {**before, "layers": 0, "annotations": 0}
    assert list(after) == list(before)


def test_the_same_manifest_is_made_every_time() -> None:
    layers = [NewLayer(OTHER, 7), None]

    assert with_layers(manifest(), DIGEST, layers) == with_layers(manifest(), DIGEST, layers)


def test_an_index_leads_to_what_is_there_by_the_digests_that_it_has_here() -> None:
    def entry(digest: Digest, **more: Any) -> dict[str, Any]:
        return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 5, **more}

    absent = Digest("sha256:" + "00" * 32)
    here = Digest("sha256:" + "11" * 32)
    attested = {"annotations": {"vnd.docker.reference.digest": DIGEST}}
    raw = json.dumps({"schemaVersion": 2, "manifests": [entry(DIGEST), entry(absent), entry(OTHER, **attested)]}).encode()
    made = json.loads(plain_index(raw, absent, {DIGEST: (here, 9), OTHER: (OTHER, 5)}))

    assert [(one["digest"], one["size"]) for one in made["manifests"]] == [(here, 9), (OTHER, 5)]
    assert made["manifests"][1]["annotations"] == {"vnd.docker.reference.digest": here}
    assert made["annotations"] == {ORIGINAL_DIGEST: absent}
    assert plain_index(raw, absent, {DIGEST: (DIGEST, 5), OTHER: (OTHER, 5), absent: (absent, 5)}) is raw
