"""What is large for real: a file beyond 8 GiB, which no octal number in a tar header can say, and a layer of a million files.

Minutes, and 20 GB of disk, each: ``make large`` runs these, and nothing else does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cfs_tags import Repository
from cfs_tags.repo import layout
from cfs_tags.values import ContentId, Digest
from support import tars
from support.importing import export_image, import_image
from support.serving import serving

if TYPE_CHECKING:
    from support.peers import Cfsctl

pytestmark = pytest.mark.large


SIZE = (8 << 30) + 4097
MARKS = {0: b"the beginning", (4 << 30) - 3: b"across 4 GiB", (8 << 30) - 5: b"across 8 GiB", SIZE - 7: b"the end"}
"""What is not zero in the file, by offset: the source is a sparse file, and no part can be taken for another."""
CHUNK = 4 << 20
PEAK = """
import re, resource, sys
from cfs_tags.cli.main import main
status = main(sys.argv[1:])
own = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""
"""A command, and the most memory that it and its largest child had, in KiB."""


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """pytest keeps what its last runs wrote."""
    yield
    for path in tmp_path.iterdir():
        shutil.rmtree(path)


class Large(NamedTuple):
    """The image: its source, the diff_id of its one layer, bytes of that, and where the file begins in it."""

    source: str
    diff_id: str
    length: int
    start: int


def layout_of(home: Path, layer: Path, length: int) -> str:
    """Makes the layer, a file in the directory of blobs, the only one of an image; gives its diff_id."""
    diff_id = sha256(layer)
    layer.rename(layer.parent / diff_id.removeprefix("sha256:"))
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    kind = "application/vnd.oci.image"
    digest, size = put(home, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", "digest": digest, "size": size},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": diff_id, "size": length}],
    }
    digest, size = put(home, manifest)
    entry = {"mediaType": manifest["mediaType"], "digest": digest, "size": size}
    (home / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (home / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return diff_id


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def put(home: Path, document: object) -> tuple[str, int]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (home / "blobs/sha256" / digest).write_bytes(data)
    return f"sha256:{digest}", len(data)


def large_image(home: Path, pax_header: bool) -> Large:
    """A layout whose only layer has a small file, the large one and another small one; on disk it has holes."""
    if pax_header:
        head = tars.pax({"size": str(SIZE)}) + tars.header(b"usr/large", length=b"77777777777\0")
    else:
        head = tars.header(b"usr/large", length=b"\x80" + SIZE.to_bytes(11, "big"), magic=tars.GNU)
    before = tars.usr() + tars.entry(b"usr/before", b"b" * 100) + head
    after = tars.entry(b"usr/after", b"a" * 100) + tars.END
    blobs = home / "blobs/sha256"
    blobs.mkdir(parents=True)
    with (blobs / "layer").open("wb") as file:
        file.write(before)
        for offset, text in MARKS.items():
            file.seek(len(before) + offset)
            file.write(text[: SIZE - offset])
        file.seek(len(before) + SIZE + -SIZE % 512)
        file.write(after)
        length = file.tell()
    diff_id = layout_of(home, blobs / "layer", length)
    return Large(f"oci:{home}", diff_id, length, len(before))


@pytest.mark.parametrize("pax_header", [True, False], ids=["PAX", "GNU"])
def test_a_file_beyond_8_gib_comes_in_goes_out_and_is_served_with_every_byte(
    cfsctl: Cfsctl, repo: Path, tmp_path: Path, pax_header: bool
) -> None:
    image = large_image(tmp_path / "layout", pax_header)
    import_image(repo, image.source)

    with Repository.open(repo) as opened:
        stream = opened.stream_object(ContentId.layer(Digest(image.diff_id)))
        assert stream is not None
        (large,) = [
            path
            for one in opened.stream(stream, "the layer").object_refs
            if (path := repo / layout.object_path(one)).stat().st_size != 100
        ]
    assert large.stat().st_size == SIZE
    with large.open("rb") as file:
        for offset, text in MARKS.items():
            file.seek(offset)
            assert file.read(len(text)) == text[: SIZE - offset]

    # what cfsctl makes of the stream
    found = hashlib.sha256()
    command = cfsctl.command(repo, "--no-upgrade", "cat", f"oci-layer-{image.diff_id}")
    with subprocess.Popen(command, env=cfsctl.environment, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        while data := reader.stdout.read(CHUNK):
            found.update(data)
    assert reader.returncode == 0
    assert f"sha256:{found.hexdigest()}" == image.diff_id

    export_image(repo, "app", f"oci:{tmp_path}/out")
    out = tmp_path / "out/blobs/sha256" / image.diff_id.removeprefix("sha256:")
    assert sha256(out) == image.diff_id
    listed = subprocess.run(["tar", "-tvf", out], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [(words[2], words[-1]) for words in map(str.split, listed)][-3:] == [
        ("100", "usr/before"),
        (str(SIZE), "usr/large"),
        ("100", "usr/after"),
    ]
    out.unlink()

    with serving(repo) as served:
        place = f"/v2/app/blobs/{image.diff_id}"
        assert served.get(place, "HEAD").headers["content-length"] == str(image.length)
        for offset, text in MARKS.items():
            first = image.start + offset
            part = served.get(place, headers={"Range": f"bytes={first}-{first + len(text) - 1}"})
            assert part.status == 206
            assert part.body[: SIZE - offset] == text[: SIZE - offset]
        tail = served.get(place, headers={"Range": f"bytes={image.start + (8 << 30) - 5}-"})
        assert tail.body.startswith(b"across 8 GiB")
        assert tail.body.endswith(tars.entry(b"usr/after", b"a" * 100) + tars.END)


def test_a_layer_of_a_million_files_takes_little_memory(repo: Path, tmp_path: Path) -> None:
    """In processes of their own, whose peaks are looked at: the helper's, too."""
    blobs = tmp_path / "layout/blobs/sha256"
    blobs.mkdir(parents=True)
    with (blobs / "layer").open("wb") as file:
        file.write(tars.usr())
        for number in range(1_000_000):
            file.write(tars.entry(b"usr/%d" % number, b"%020d" % number * 5))
        file.write(tars.END)
        length = file.tell()
    diff_id = layout_of(tmp_path / "layout", blobs / "layer", length)
    peaks = []
    for words in (
        ("import", f"oci:{tmp_path}/layout", "app"),
        ("import", f"oci:{tmp_path}/layout", "app"),
        ("export", "app", f"oci:{tmp_path}/out:app"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "--repo", str(repo), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(sum(map(int, done.stderr.split()[-2:])) >> 10)
    assert sha256(tmp_path / "out/blobs/sha256" / diff_id.removeprefix("sha256:")) == diff_id
    assert peaks[0] < 110
    assert max(peaks[1:]) < 60
