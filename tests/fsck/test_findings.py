"""One real damage for each code: what is found, and what the real cfsctl makes of it.

``stops`` says whether the collector of cfsctl (``gc --dry-run``) fails at the damage, ``seen`` whether ``cfsctl fsck`` does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from cfs_tags import Repository
from cfs_tags.fsck.findings import CODES, SEVERITIES
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, instructions
from fsck.damage import (
    APP,
    OTHER,
    SMALL,
    check,
    codes,
    cut,
    document,
    drop,
    facts,
    flip,
    link,
    manifest,
    put,
    relink,
    stream,
)
from support.images import Cfsctl, Layer, build_image, directory, file, host_image, pull_image
from support.interrupt import stopped_after

DOCUMENTATION = Path(__file__).parent.parent.parent / "docs" / "fsck.md"
ABSENT = "sha256:" + "0" * 64


class Damage(NamedTuple):
    """``make`` damages a repository and says where the finding is; ``also`` are codes that follow from it."""

    code: str
    make: Callable[[Path], str]
    stops: bool
    seen: bool
    also: tuple[str, ...] = ()


def _object_named(name: str) -> Callable[[Path], str]:
    def make(repo: Path) -> str:
        path = link(repo, stream(repo, APP, "layer")).parent / name
        path.write_bytes(b"x")
        return str(path.relative_to(repo))

    return make


def _object_is_a_directory(repo: Path) -> str:
    path = link(repo, stream(repo, APP, "layer"))
    path.unlink()
    path.mkdir()
    return str(path.relative_to(repo))


def _parent_is_a_file(repo: Path) -> str:
    path = link(repo, stream(repo, APP, "layer")).parent
    path.rename(repo / "elsewhere")
    path.write_bytes(b"")
    return str(path.relative_to(repo))


def _object_is_gone(repo: Path) -> str:
    path = _file_of(repo, APP)
    path.unlink()
    return str(path.relative_to(repo))


def _file_is_emptied(repo: Path) -> str:
    path = _file_of(repo, APP)
    path.unlink()
    path.write_bytes(b"")
    return stream(repo, APP, "manifest")


def _file_of(repo: Path, tag: str) -> Path:
    """An object that is a file in the own layer of a tag."""
    from cfs_tags.formats import splitstream

    name = splitstream.parse(link(repo, stream(repo, tag, "layer", 1)).read_bytes()).object_refs[0]
    return repo / "objects" / name[:2] / name[2:]


def _directory_in(place: str) -> Callable[[Path], str]:
    def make(repo: Path) -> str:
        (repo / place).mkdir(parents=True)
        return place

    return make


def _mode(place: str, mode: int) -> Callable[[Path], str]:
    def make(repo: Path) -> str:
        (repo / place).mkdir(parents=True, exist_ok=True)
        (repo / place).chmod(mode)
        return place

    return make


def _file_in(place: str) -> Callable[[Path], str]:
    def make(repo: Path) -> str:
        (repo / place).parent.mkdir(parents=True, exist_ok=True)
        (repo / place).write_bytes(b"no link")
        return place

    return make


def _odd_object_link(repo: Path) -> str:
    path = stream(repo, APP, "layer")
    relink(repo / path, "/" + os.readlink(repo / path).lstrip("./"))
    return path


def _link_without_object(repo: Path) -> str:
    path = f"streams/oci-layer-{ABSENT}"
    relink(repo / path, "../objects/00/" + "0" * 126)
    return path


def _undecodable_stream(repo: Path) -> str:
    path = repo / os.fsdecode(b"streams/\xff")
    relink(path, os.readlink(repo / stream(repo, APP, "layer")))
    return str(path.relative_to(repo))


def _stream_of_noise(repo: Path) -> str:
    path = stream(repo, APP, "layer", 1)
    name = put(repo, b"no splitstream at all, but long enough for a header")
    relink(repo / path, f"../objects/{name[:2]}/{name[2:]}")
    return path


def _stream_with(tag: str, kind: str, change: Callable[[bytearray], None]) -> Callable[[Path], str]:
    """Behind a link another object, under its right name, whose bytes are changed."""

    def make(repo: Path) -> str:
        path = stream(repo, tag, kind)
        data = bytearray(link(repo, path).read_bytes())
        change(data)
        name = put(repo, bytes(data))
        relink(repo / path, f"../objects/{name[:2]}/{name[2:]}")
        return path

    return make


def _version(data: bytearray) -> None:
    data[11] = 9


def _size(data: bytearray) -> None:
    info = int.from_bytes(data[16:24], "little")
    data[info + 72] ^= 1


def _no_names(data: bytearray) -> None:
    """Named refs become an empty frame: the range of another one that says nothing."""
    empty = bytes.fromhex("28b52ffd2000010000")
    info = int.from_bytes(data[16:24], "little")
    at = len(data)
    data[info + 48 : info + 64] = at.to_bytes(8, "little") + (at + len(empty)).to_bytes(8, "little")
    data += empty


def _config_names_nothing(repo: Path) -> str:
    path = stream(repo, SMALL, "config")
    before = _raw(repo, path)
    _stream_with(SMALL, "config", _no_names)(repo)
    after = _raw(repo, path)

    def rename(data: bytearray) -> None:
        data[:] = data.replace(before, after)

    _stream_with(SMALL, "manifest", rename)(repo)
    return path


def _links_exchanged(first: str, second: str) -> Callable[[Path], str]:
    """The link of one kind of stream leads to another's object."""

    def make(repo: Path) -> str:
        path = stream(repo, SMALL, first)
        relink(repo / path, os.readlink(repo / stream(repo, APP, second)))
        return path

    return make


def _link_is_gone(repo: Path) -> str:
    path = stream(repo, SMALL, "layer")
    drop(repo / path)
    return path


def _named_ref_elsewhere(repo: Path) -> str:
    """A manifest's stream whose named ref of the config leads to a layer's stream."""
    path = stream(repo, SMALL, "manifest")
    data = link(repo, path).read_bytes()
    config = _raw(repo, stream(repo, SMALL, "config"))
    layer = _raw(repo, stream(repo, SMALL, "layer"))
    assert config in data
    name = put(repo, data.replace(config, layer))
    relink(repo / path, f"../objects/{name[:2]}/{name[2:]}")
    return path


def _raw(repo: Path, path: str) -> bytes:
    target = link(repo, path)
    return bytes.fromhex(target.parent.name + target.name)


def _document_is(tag: str, kind: str, data: bytes) -> Callable[[Path], str]:
    """A document of other bytes, under a link of the right name for them, and a tag to it."""

    def make(repo: Path) -> str:
        import hashlib

        from cfs_tags.formats import splitstream, splitwriter
        from cfs_tags.values import Algorithm, ObjectId

        writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_MANIFEST)
        writer.add_external(ObjectId(put(repo, data)), len(data))
        name = put(repo, writer.finish())
        digest = hashlib.sha256(data).hexdigest()
        relink(repo / f"streams/oci-manifest-sha256:{digest}", f"../objects/{name[:2]}/{name[2:]}")
        relink(repo / "streams/refs/oci/odd", f"../../oci-manifest-sha256:{digest}")
        return f"streams/oci-manifest-sha256:{digest}"

    return make


def _config_without_rootfs(repo: Path) -> str:
    import hashlib

    from cfs_tags.formats import splitstream, splitwriter
    from cfs_tags.values import Algorithm, ObjectId

    config = b'{"architecture":"amd64"}'
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_CONFIG)
    writer.add_external(ObjectId(put(repo, config)), len(config))
    name = put(repo, writer.finish())
    relink(repo / f"streams/oci-config-{digest}", f"../objects/{name[:2]}/{name[2:]}")
    text = json.loads(document(repo, manifest(repo, SMALL)))
    text["config"].update(digest=digest, size=len(config))
    data = json.dumps(text).encode()
    writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_MANIFEST)
    writer.add_named_ref(f"config:{digest}", ObjectId(name))
    writer.add_external(ObjectId(put(repo, data)), len(data))
    name = put(repo, writer.finish())
    relink(repo / f"streams/oci-manifest-sha256:{hashlib.sha256(data).hexdigest()}", f"../objects/{name[:2]}/{name[2:]}")
    return f"streams/oci-config-{digest}"


def _image(repo: Path) -> Path:
    return sorted(path for path in (repo / "images").iterdir() if path.is_symlink())[0]


def _image_with_a_name(repo: Path) -> str:
    relink(repo / "images/latest", os.readlink(_image(repo)))
    return "images/latest"


def _images_exchanged(repo: Path) -> str:
    first, second, *_ = sorted(path for path in (repo / "images").iterdir() if path.is_symlink())
    relink(first, os.readlink(second))
    return f"images/{first.name}"


def _image_of(change: Callable[[bytearray], None]) -> Callable[[Path], str]:
    def make(repo: Path) -> str:
        data = bytearray(link(repo, f"images/{_image(repo).name}").read_bytes())
        change(data)
        name = put(repo, bytes(data))
        relink(repo / "images" / name, f"../objects/{name[:2]}/{name[2:]}")
        return f"images/{name}"

    return make


def _no_root(data: bytearray) -> None:
    data[1024 + 14 : 1024 + 16] = b"\xff\xff"


def _ref(path: str, text: str) -> Callable[[Path], str]:
    def make(repo: Path) -> str:
        relink(repo / path, text)
        return path

    return make


def _ref_to(path: str, tag: str, kind: str = "manifest") -> Callable[[Path], str]:
    def make(repo: Path) -> str:
        relink(repo / path, "../" * (path.count("/") - 1) + stream(repo, tag, kind).partition("/")[2])
        return path

    return make


def _manifest_is_gone(repo: Path) -> str:
    link(repo, stream(repo, SMALL, "manifest")).unlink()
    return "streams/refs/oci/quay.io%2Fapps%2Fsmall:1"


def _referrer_of_nothing(repo: Path) -> str:
    digest = manifest(repo, APP)
    return _ref_to(f"streams/refs/oci-referrers/{ABSENT}/{digest}", APP)(repo)


def _loop(repo: Path) -> str:
    relink(repo / "streams/refs/oci/b", "a")
    return _ref("streams/refs/oci/a", "b")(repo)


def _deployment(repo: Path) -> str:
    return next((repo / "images/refs/cfs-tags/deployments").iterdir()).name


def _deployment_without_config(repo: Path) -> str:
    name = _deployment(repo)
    (repo / "streams/refs/cfs-tags/configs" / name).unlink()
    return f"streams/refs/cfs-tags/deployments/{name}"


def _deployment_without_manifest(repo: Path) -> str:
    name = _deployment(repo)
    (repo / "streams/refs/cfs-tags/configs" / name).unlink()
    (repo / "streams/refs/cfs-tags/deployments" / name).unlink()
    return f"images/refs/cfs-tags/deployments/{name}"


def _deployment_of_another(repo: Path) -> str:
    path = f"streams/refs/cfs-tags/configs/{_deployment(repo)}"
    return _ref_to(path, APP, "config")(repo)


def _batch(repo: WriteRepo) -> None:
    lines = [f"create one {APP}", f"create two {APP}"]
    run.transact(repo, lambda: edit.plan(repo, list(instructions.parse_instructions(lines))))


def _interrupted(calls: int) -> Callable[[Path], str]:
    """A batch that was stopped after so many changes to the disk."""

    def make(repo: Path) -> str:
        with Repository.open(repo, write=True) as opened:
            assert stopped_after(calls, lambda: _batch(opened))
        return next(str(path.relative_to(repo)) for path in (repo / "cfs-tags/journal").iterdir())

    return make


def _left_over(repo: Path) -> str:
    relink(repo / "cfs-tags/tmp/0123.0", "../nowhere")
    return "cfs-tags/tmp/0123.0"


def _torn_log(repo: Path) -> str:
    path = max((repo / "cfs-tags/reflog").iterdir())
    path.write_bytes(path.read_bytes() + b'00000000 {"ref":"str')
    return "cfs-tags/reflog"


def _record(repo: Path) -> str:
    """What a repair leaves of a ref that led to nothing."""
    from cfs_tags.fsck.repair import repair

    path = _ref("streams/refs/oci/gone", f"../../oci-manifest-{ABSENT}")(repo)
    with Repository.open(repo, write=True) as opened:
        repair(opened, jobs=1)
    return path


DAMAGES = [
    Damage("bad-object-name", _object_named("no-digest"), stops=True, seen=True),
    Damage(
        "not-an-object",
        _object_is_a_directory,
        stops=True,
        seen=True,
        also=("broken-link", "missing-object", "content-missing"),
    ),
    Damage(
        "not-a-directory",
        _parent_is_a_file,
        stops=True,
        seen=True,
        also=("broken-link", "missing-object", "dangling-ref", "missing-link", "content-missing"),
    ),
    Damage("missing-object", _object_is_gone, stops=False, seen=True, also=("content-missing",)),
    Damage("content-missing", _file_is_emptied, stops=False, seen=True, also=("wrong-stream-size",)),
    Damage("not-a-link", _file_in("streams/refs/oci/file"), stops=True, seen=True),
    Damage("not-a-link", _file_in("streams/file"), stops=True, seen=True),
    Damage("not-a-link", _file_in("images/file"), stops=True, seen=True),
    Damage("bad-object-link", _odd_object_link, stops=True, seen=True),
    Damage("broken-link", _link_without_object, stops=False, seen=True),
    Damage("undecodable-name", _undecodable_stream, stops=True, seen=True),
    Damage("bad-stream", _stream_of_noise, stops=False, seen=True),
    Damage("unsupported-stream", _stream_with(APP, "layer", _version), stops=False, seen=True),
    Damage("wrong-stream-size", _stream_with(APP, "layer", _size), stops=False, seen=False),
    Damage("wrong-stream-link", _links_exchanged("layer", "manifest"), stops=False, seen=False),
    Damage("wrong-manifest-digest", _links_exchanged("manifest", "manifest"), stops=False, seen=False),
    Damage("wrong-config-digest", _links_exchanged("config", "config"), stops=False, seen=False),
    Damage("missing-link", _link_is_gone, stops=False, seen=False),
    Damage("missing-named-ref", _stream_with(SMALL, "manifest", _no_names), stops=False, seen=False),
    Damage("missing-named-ref", _config_names_nothing, stops=False, seen=False),
    Damage("wrong-named-ref", _named_ref_elsewhere, stops=False, seen=False),
    Damage("bad-manifest", _document_is(SMALL, "manifest", b"{}"), stops=False, seen=False),
    Damage("bad-config", _config_without_rootfs, stops=False, seen=False),
    Damage("bad-image-name", _image_with_a_name, stops=False, seen=False),
    Damage("wrong-image-link", _images_exchanged, stops=False, seen=False),
    Damage("bad-image", _image_of(_no_root), stops=False, seen=True),
    Damage("dangling-ref", _ref("streams/refs/oci/gone", f"../../oci-manifest-{ABSENT}"), stops=True, seen=True),
    Damage("dangling-ref", _ref("images/refs/gone", "../" + "0" * 128), stops=True, seen=True),
    Damage("dangling-ref", _ref("streams/refs/ostree/gone", "../../gone"), stops=True, seen=True),
    Damage("dangling-ref", _manifest_is_gone, stops=True, seen=True, also=("broken-link",)),
    Damage("absent-subject", _referrer_of_nothing, stops=False, seen=False),
    Damage("nested-ref", _ref("streams/refs/oci/nested", "quay.io%2Fapps%2Fweb:1"), stops=True, seen=False),
    Damage("looping-ref", _loop, stops=True, seen=True),
    Damage("looping-ref", _ref("streams/refs/oci/self", "self"), stops=True, seen=True),
    Damage("bad-ref-link", _ref("streams/refs/oci/out", "/etc/hostname"), stops=True, seen=False),
    Damage("bad-ref-link", _ref("streams/refs/oci/out", "../../../meta.json"), stops=True, seen=False),
    Damage("bad-tag-target", _ref_to("streams/refs/oci/layer", APP, "layer"), stops=False, seen=False),
    Damage("undecodable-ref", _ref_to(os.fsdecode(b"streams/refs/oci/\xff"), APP), stops=False, seen=False),
    Damage("reserved-name", _ref_to("streams/refs/oci/@at", APP), stops=False, seen=False),
    Damage("name-in-two-homes", _ref_to("streams/refs/cfs-tags/tags/quay.io%2Fapps%2Fweb:1", APP), stops=False, seen=False),
    Damage("left-over-link", _ref_to("streams/refs/oci/.symlink-a1b2", APP), stops=False, seen=False),
    Damage("expired-lease", _ref_to("streams/refs/cfs-tags/leases/20200101T000000Z.0/x", APP), stops=False, seen=False),
    Damage("expired-trash", _ref_to("streams/refs/cfs-tags/trash/20200101T000000Z.0/x", APP), stops=False, seen=False),
    Damage("expired-pin", _ref_to("streams/refs/cfs-tags/pins/20200101T000000Z.0/x", APP), stops=False, seen=False),
    Damage("partial-pin", _ref_to("streams/refs/cfs-tags/pins/always/x", APP), stops=False, seen=False),
    Damage("bad-expiry", _ref_to("streams/refs/cfs-tags/pins/never/x", APP), stops=False, seen=False),
    Damage("orphaned-index", _ref_to("streams/refs/cfs-tags/indexes/gone", APP), stops=False, seen=False),
    Damage("bad-expiry", _ref_to("streams/refs/cfs-tags/leases/never/x", APP), stops=False, seen=False),
    Damage("bad-referrer", _ref_to(f"streams/refs/oci-referrers/{ABSENT}/x", APP), stops=False, seen=False),
    Damage("bad-deployment-ref", _ref_to("streams/refs/cfs-tags/deployments/x", APP), stops=False, seen=False),
    Damage("bad-deployment-ref", _deployment_of_another, stops=False, seen=False),
    Damage("partial-deployment-ref", _deployment_without_config, stops=False, seen=False),
    Damage("image-only-deployment", _deployment_without_manifest, stops=False, seen=False),
    Damage("open-to-everybody", _mode("objects", 0o777), stops=False, seen=False),
    Damage("open-to-everybody", _mode("streams/refs/oci", 0o1777), stops=False, seen=False),
    Damage("open-to-group", _mode("streams", 0o775), stops=False, seen=False),
    Damage("open-to-group", _mode("cfs-tags/journal", 0o2775), stops=False, seen=False),
    Damage("pending-transaction", _interrupted(5), stops=False, seen=False),
    Damage("left-over-file", _left_over, stops=False, seen=False),
    Damage("damaged-reflog", _torn_log, stops=False, seen=False),
    Damage("damaged-state", _file_in("cfs-tags/seen.json"), stops=False, seen=False),
    Damage("damaged-state", _file_in("cfs-tags/quarantine/0.json"), stops=False, seen=False),
    Damage("damaged-state", _directory_in("cfs-tags/tmp/x"), stops=False, seen=False),
    Damage("damaged-state", _directory_in("cfs-tags/journal/x"), stops=False, seen=False),
    Damage("quarantined-ref", _record, stops=False, seen=False),
]


ELSEWHERE = {
    "no-metadata": "test_healthy.py",
    "wrong-object-digest": "test_content.py",
    "sparse-content": "test_small_inputs.py",
    "wrong-layer-digest": "test_content.py",
    "unreadable": "test_content.py",
    "no-verity": "test_content.py",
    "foreign-directory": "test_owners.py",
    "wrong-verity-digest": "test_content.py",
}
"""Where the other codes are tried."""


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.code)
def test_a_damage_is_found_where_it_is(repo: Path, cfsctl: Cfsctl, damage: Damage) -> None:
    path = damage.make(repo)

    findings = check(repo).findings

    found = codes(findings)
    assert path in found.pop(damage.code)
    assert set(found) <= set(damage.also)
    assert cfsctl(repo, "--no-upgrade", "gc", "--dry-run", check=False).returncode == (1 if damage.stops else 0)
    assert cfsctl(repo, "--no-upgrade", "fsck", check=False).returncode == (1 if damage.seen else 0)
    if damage.stops:
        assert any(one.severity == "error" for one in findings if one.code == damage.code)


def test_every_code_is_tried() -> None:
    here = {damage.code for damage in DAMAGES} | {"stale-named-ref"}

    assert here | set(ELSEWHERE) == set(CODES)
    for code, name in ELSEWHERE.items():
        assert f'"{code}"' in (Path(__file__).parent / name).read_text(), code


def test_every_code_is_described() -> None:
    described = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", DOCUMENTATION.read_text(), re.MULTILINE)

    assert dict(described) == {code: meaning.severity for code, meaning in CODES.items()}
    assert [code for code, _ in described] == list(CODES)
    assert {meaning.severity for meaning in CODES.values()} == set(SEVERITIES)


def test_an_object_without_its_link_is_a_note(new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path) -> None:
    repo = new_repo()
    host = host_image(tmp_path / "layout", "41.1")
    pull_image(cfsctl, repo, host, "first")
    again = build_image(tmp_path / "layout", "again", host.layers, config=host.config, annotations={"made": "again"})
    pull_image(cfsctl, repo, again, "second", bootable=True)

    findings = check(repo).findings

    assert codes(findings) == {"stale-named-ref": [f"streams/oci-manifest-{host.manifest_digest}"]}
    assert not findings[0].fails
    cfsctl(repo, "fsck")


def test_what_the_note_announced_is_an_error_when_it_has_come(
    new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path
) -> None:
    repo = new_repo()
    host = host_image(tmp_path / "layout", "41.1")
    pull_image(cfsctl, repo, host, "first")
    again = build_image(tmp_path / "layout", "again", host.layers, config=host.config, annotations={"made": "again"})
    pull_image(cfsctl, repo, again, "second", bootable=True)
    cfsctl(repo, "oci", "untag", "second")
    cfsctl(repo, "gc")

    found = codes(check(repo).findings)

    cfsctl(repo, "fsck")  # sees nothing of it
    assert f"streams/oci-config-{host.config_digest}" in found["missing-link"]
    assert found["missing-object"]


def test_a_missing_object_names_who_needs_it(repo: Path) -> None:
    path = _object_is_gone(repo)

    (missing,) = facts(repo, "missing-object")

    assert missing.path == path
    # a layer and the EROFS image
    assert re.fullmatch(r"needed by \S.* and 1 more", missing.message)


def test_a_damaged_stream_behind_a_tag_is_no_end_of_the_check(repo: Path) -> None:
    stream_of_app, stream_of_other = stream(repo, APP, "manifest"), stream(repo, OTHER, "config")
    cut(link(repo, stream_of_app))
    flip(link(repo, stream_of_other), 3)

    found = codes(check(repo).findings)

    assert set(found["bad-stream"]) == {
        stream_path for stream_path in found["bad-stream"] if stream_path.startswith("streams/")
    }
    assert len(found["bad-stream"]) == 2


@pytest.mark.parametrize("name", ["streams", "images", "objects"])
def test_a_directory_that_is_a_file_is_a_finding(repo: Path, name: str) -> None:
    (repo / name).rename(repo / "elsewhere")
    (repo / name).write_bytes(b"")

    assert name in codes(check(repo).findings)["not-a-directory"]


def test_a_writer_at_work_has_left_nothing_over(repo: Path) -> None:
    from support.stock import before_call

    found: list[object] = []

    def look() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(len([one for one in check(repo).findings if one.fails]))
        found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    with Repository.open(repo, write=True) as opened, before_call("append", look):
        _batch(opened)

    assert found == [0]


def test_a_torn_journal_is_told_from_a_whole_one(repo: Path) -> None:
    path = repo / _interrupted(5)(repo)
    cut(path)

    (pending,) = facts(repo, "pending-transaction")

    assert "torn" in pending.message


def test_what_others_make_while_a_check_runs_is_no_finding(repo: Path, cfsctl: Cfsctl, tmp_path: Path) -> None:
    from cfs_tags.fsck import check as module

    original = module.read_links

    def pull_between(*arguments: object) -> object:
        links = original(*arguments)  # type: ignore[arg-type]
        layers = [Layer([directory("usr"), file("usr/new", b"new" * 100)])]
        pull_image(cfsctl, repo, build_image(tmp_path / "layout", "new", layers), "new")
        return links

    with patch.object(module, "read_links", pull_between):
        assert [one for one in check(repo).findings if one.fails] == []
