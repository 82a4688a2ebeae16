"""The one strict reader of JSON: every format that is JSON is read by it, and refuses the same things."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from cfs_tags.errors import FormatError
from cfs_tags.formats import json_fields, oci, repometa
from cfs_tags.formats.boot import origin

DIGEST = "sha256:" + "1" * 64
DESCRIPTOR = {"mediaType": "t", "digest": DIGEST, "size": 1}
READERS: list[tuple[Callable[[bytes], Any], dict[str, Any]]] = [
    (repometa.parse, {"version": 1, "algorithm": "fsverity-sha256-12"}),
    (oci.parse_manifest, {"schemaVersion": 2, "config": DESCRIPTOR, "layers": [DESCRIPTOR]}),
    (oci.parse_index, {"schemaVersion": 2, "manifests": [DESCRIPTOR]}),
    (oci.parse_config, {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}),
    (
        origin.parse_imginfo,
        {"manifest": {"config": {"digest": DIGEST}}, "config": {"rootfs": {"type": "layers", "diff_ids": [DIGEST]}}},
    ),
    (origin.parse_staged, {"depl_id": "1" * 128, "finalization_locked": False}),
]


def with_key(document: dict[str, Any], value: bytes) -> bytes:
    """The document with one key more, which nothing reads."""
    return json.dumps(document).encode()[:-1] + b', "note": ' + value + b"}"


def levels(count: int, opening: bytes, closing: bytes) -> bytes:
    return opening * count + b"1" + closing * count


@pytest.mark.parametrize(("parse", "document"), READERS)
@pytest.mark.parametrize(
    "value",
    [
        *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 310, b"-" + b"9" * 310),
        *(levels(128, b"[", b"]"), levels(128, b'{"a":', b"}"), levels(30_000, b"[", b"]"), levels(5000, b'[{"a":', b"}]")),
        *(b'"\xff"', b"'a'", b"01", b"[1,]", b"tru", b'"a', b'"\t"'),
    ],
)
def test_what_is_no_json_or_too_deep_is_refused_wherever_it_stands(
    parse: Callable[[bytes], Any], document: dict[str, Any], value: bytes
) -> None:
    with pytest.raises(FormatError) as caught:
        parse(with_key(document, value))
    assert caught.value.wanted in ("JSON", "UTF-8")


@pytest.mark.parametrize(("parse", "document"), READERS)
@pytest.mark.parametrize(
    "value",
    [
        *(b"1e308", b"-0", b"9" * 308, b'"\\ud800"', b"null", b"[[], {}]", b'"[[[[[["'),
        *(levels(127, b"[", b"]"), levels(127, b'{"a":', b"}"), b"[" + b"[1]," * 1000 + b"1]"),
    ],
)
def test_what_nothing_reads_may_be_any_json(parse: Callable[[bytes], Any], document: dict[str, Any], value: bytes) -> None:
    parse(with_key(document, value))


@pytest.mark.parametrize(("parse", "document"), READERS)
def test_a_key_that_is_read_stands_there_once(parse: Callable[[bytes], Any], document: dict[str, Any]) -> None:
    for key, value in document.items():
        with pytest.raises(FormatError):
            parse(json.dumps(document).encode()[:-1] + f', "{key}": {json.dumps(value)}}}'.encode())


def test_the_place_of_what_is_no_json_is_in_bytes() -> None:
    with pytest.raises(FormatError) as caught:
        json_fields.load('{"ä": 1 x'.encode(), "document", 100)
    assert caught.value.offset == 9


def test_the_longest_document_is_read_in_memory_of_bounded_size() -> None:
    """So much is taken by the hostile document of the largest size that is read: 40 times its length and not more."""
    data = b"[" + b"[]," * ((1 << 20) // 3) + b"1]"
    tracemalloc.start()
    try:
        json_fields.load_any(data, "document", 4 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * len(data)
