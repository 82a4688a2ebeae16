"""What holds for any bytes: a parser gives a value or one of our errors, and what is written is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cfs_tags.errors import FormatError, UnsupportedError
from cfs_tags.formats import oci, repometa, splitstream
from cfs_tags.formats.fsverity import Measurer, measure
from cfs_tags.formats.repometa import RepoMeta
from cfs_tags.formats.splitwriter import Writer
from cfs_tags.values import Algorithm, ObjectId

REFUSALS = (FormatError, UnsupportedError)

algorithms = st.sampled_from(Algorithm)
sizes = st.integers(0, 1 << 40)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def ids(algorithm: Algorithm) -> st.SearchStrategy[ObjectId]:
    # few, so that they repeat
    return st.integers(0, 7).map(lambda n: ObjectId(f"{n}" * algorithm.hex_length))


def read_all_of_a_stream(data: bytes) -> None:
    stream = splitstream.parse(data)
    assert len(stream.stream_refs) * stream.algorithm.size == len(stream.raw_stream_refs)
    assert len(stream.object_refs) * stream.algorithm.size == len(stream.raw_object_refs)
    for chunk in splitstream.chunks(stream):
        assert 0 < len(chunk) <= splitstream.PIECE_SIZE
    splitstream.sole_object(stream)


PARSERS: list[Callable[[bytes], object]] = [
    read_all_of_a_stream,
    repometa.parse,
    oci.parse_manifest,
    oci.parse_config,
    oci.parse_index,
    oci.parse_manifest_or_index,
    oci.kind,
]


def value_or_refusal(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except REFUSALS as refused:
        # it can be shown, and kept as JSON
        str(refused).encode()
        json.dumps(refused.facts())


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_value_or_refused(parse: Callable[[bytes], object], data: bytes) -> None:
    value_or_refusal(parse, data)


KEYS = (
    *("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "annotations", "platform"),
    *("architecture", "os", "rootfs", "type", "diff_ids", "history", "Labels", "Cmd", "version", "algorithm"),
    *("features", "incompatible", "erofs_formats", "default", "extra", "created", "subject", "urls", "empty_layer"),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["sha256:" + "0" * 64, "fsverity-sha256-12", "v1_erofs", "amd64"]),
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=8)),
    max_leaves=25,
)


@pytest.mark.parametrize("parse", PARSERS[1:])
@given(document=DOCUMENTS)
def test_any_json_is_a_value_or_refused(parse: Callable[[bytes], object], document: object) -> None:
    value_or_refusal(parse, json.dumps(document).encode())


# -- valid bytes, damaged ----------------------------------------------------------------------------------------------


def a_stream() -> bytes:
    writer = Writer(Algorithm.SHA256, splitstream.CONTENT_TYPE_LAYER)
    for number in range(3):
        writer.add_named_ref(f"sha256:{number}", ObjectId(f"{number}" * 64))
        writer.add_inline(b"some inline bytes " * number)
        writer.add_external(ObjectId(f"{number}" * 64), 100)
    return writer.finish()


MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":'
    b'"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":325},"layers":[{"mediaType":'
    b'"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":10,"annotations":{"a":"b"}}]}'
    % (b"1" * 64, b"2" * 64)
)
CONFIG = (
    b'{"architecture":"amd64","os":"linux","created":"2026-01-01T00:00:00Z","config":{"Labels":{"a":"b"},"Cmd":["x"]},'
    b'"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"x","empty_layer":false}]}' % (b"1" * 64)
)
META = repometa.render(RepoMeta(1, Algorithm.SHA512, ("a",), ("v1_erofs",), (), 1, (2,)))
VALID = [
    (read_all_of_a_stream, a_stream()),
    (repometa.parse, META),
    (oci.parse_manifest, MANIFEST),
    (oci.parse_config, CONFIG),
]


@pytest.mark.parametrize(("parse", "valid"), VALID)
@given(data=st.data())
def test_a_flipped_bit_or_a_cut_is_a_value_or_refused(
    parse: Callable[[bytes], object], valid: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(valid) - 1))
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.one_of(st.just(len(valid)), st.integers(0, len(valid))))

    value_or_refusal(parse, bytes(damaged[:end]))


def test_every_cut_of_a_stream_is_refused() -> None:
    whole = a_stream()

    for end in range(len(whole)):
        with pytest.raises(REFUSALS):
            read_all_of_a_stream(whole[:end])


# -- round trips -------------------------------------------------------------------------------------------------------


@given(data=st.data(), algorithm=algorithms, content_type=st.integers(0, (1 << 64) - 1))
def test_a_stream_is_read_as_it_was_written(data: st.DataObject, algorithm: Algorithm, content_type: int) -> None:
    named = data.draw(st.dictionaries(names, ids(algorithm), max_size=6))
    items = data.draw(
        st.lists(st.one_of(st.binary(max_size=200), st.tuples(ids(algorithm), st.integers(0, 1000))), max_size=12)
    )
    writer = Writer(algorithm, content_type)
    expected: list[bytes | ObjectId] = []
    size = 0
    by_id: dict[ObjectId, int] = {}
    for name, digest in named.items():
        writer.add_named_ref(name, digest)
    for item in items:
        if isinstance(item, bytes):
            writer.add_inline(item)
            size += len(item)
            if item and expected and not isinstance(expected[-1], ObjectId):
                expected[-1] += item
            elif item:
                expected.append(item)
        else:
            digest, length = item[0], by_id.setdefault(item[0], item[1])
            writer.add_external(digest, length)
            size += length
            expected.append(digest)

    stream = splitstream.parse(writer.finish(), algorithm)

    assert stream.content_type == content_type
    assert stream.stream_size == size
    assert stream.named_refs == named
    assert list(stream.named_refs) == sorted(named)
    assert stream.stream_refs == tuple(dict.fromkeys(named.values()))
    assert stream.object_refs == tuple(dict.fromkeys(item for item in expected if isinstance(item, ObjectId)))
    assert list(splitstream.chunks(stream)) == expected
    splitstream.check_size(stream, [by_id[digest] for digest in stream.object_refs])


flags = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=3).map(tuple)


@given(
    meta=st.builds(
        RepoMeta,
        version=st.integers(0, 1),
        algorithm=algorithms,
        compatible=flags,
        read_only_compatible=flags,
        incompatible=st.just(()),
        erofs_default=st.one_of(st.none(), st.integers(0, 2)),
        erofs_extra=st.sets(st.integers(0, 2)).map(lambda found: tuple(sorted(found))),
    )
)
def test_metadata_is_read_as_it_was_written(meta: RepoMeta) -> None:
    assume(meta.erofs_default is not None or not meta.erofs_extra)

    assert repometa.parse(repometa.render(meta)) == meta


@given(
    algorithm=algorithms,
    seed=st.binary(min_size=1, max_size=8),
    size=st.integers(0, 600_000),
    cuts=st.lists(st.integers(0, 600_000), max_size=6),
)
@example(algorithm=Algorithm.SHA512, seed=b"x", size=64 * 4096, cuts=[4096])
@example(algorithm=Algorithm.SHA256, seed=b"x", size=128 * 4096, cuts=[1, 4097])
def test_a_digest_does_not_depend_on_the_pieces(algorithm: Algorithm, seed: bytes, size: int, cuts: list[int]) -> None:
    content = (seed * (size // len(seed) + 1))[:size]
    measurer = Measurer(algorithm)
    ends = [0, *sorted(min(cut, size) for cut in cuts), size]

    for start, end in pairwise(ends):
        measurer.update(content[start:end])

    assert measurer.digest() == measure(content, algorithm)


def described(value: Any) -> Any:
    """A descriptor as JSON, for the comparison below."""
    return {"mediaType": value.media_type, "digest": value.digest, "size": value.size, "annotations": value.annotations}


@given(
    layers=st.lists(
        st.fixed_dictionaries(
            {
                "mediaType": names,
                "digest": st.integers(0, 1 << 255).map(lambda number: f"sha256:{number:064x}"),
                "size": st.integers(0, (1 << 64) - 1),
                "annotations": st.dictionaries(names, names, max_size=3),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_descriptors_are_kept_as_they_stand(layers: list[dict[str, Any]]) -> None:
    document = {"schemaVersion": 2, "config": layers[0], "layers": layers}

    found = oci.parse_manifest(json.dumps(document).encode())

    assert described(found.config) == layers[0]
    assert [described(layer) for layer in found.layers] == layers
