"""``--repair``: what it mends, what it leaves, and that nothing is lost, wherever it is stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository, gc
from cfs_tags.errors import BrokenRoots, CfsTagsError, ExpectationFailed, LockTimeout, SystemFailure
from cfs_tags.formats import splitstream
from cfs_tags.formats.erofswalk import image_refs
from cfs_tags.fsck.repair import Repaired, repair
from cfs_tags.repo import fsops, reflog
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, instructions
from cfs_tags.values import Algorithm, ObjectId
from fsck.damage import APP, HOST, SMALL, check, codes, cut, drop, failing, flip, link, manifest, object_at, relink, stream
from support.garbage import add_stream
from support.images import Cfsctl, host_image, pull_image
from support.interrupt import Interruption, every_stop, failed_after, kill_after, stopped_after, torn_after
from support.peers_beside import hold_shared
from support.stock import before_call, disk_full_after, hard_copy, leftovers, refs
from support.trees import tree

ABSENT = "sha256:" + "0" * 64
GONE = "streams/refs/oci/gone"


def mend(repo: Path, *owners: str, dry_run: bool = False, content: bool = False) -> Repaired:
    with Repository.open(repo, write=True) as opened:
        return repair(opened, owners=owners, dry_run=dry_run, content=content, jobs=1)


def dangle(repo: Path, path: str = GONE, name: str = f"oci-manifest-{ABSENT}") -> Path:
    relink(repo / path, "../" * (path.count("/") - 1) + name)
    return repo / path


def collects(cfsctl: Cfsctl, repo: Path) -> bool:
    return cfsctl(repo, "--no-upgrade", "gc", "--dry-run", check=False).returncode == 0


def image_link(repo: Path) -> str:
    """The link of the image that the deployment ref leads to."""
    return f"images/{next((repo / 'images/refs/cfs-tags/deployments').iterdir()).name}"


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["gone", "of another object", "leads nowhere", "leads out"])
@pytest.mark.parametrize("part", ["composefs.image.v1", "composefs.image.boot.v1"])
def test_a_link_of_an_erofs_image_that_a_config_names_is_made_again(repo: Path, cfsctl: Cfsctl, part: str, spoil: str) -> None:
    """Without it the image can be neither mounted nor booted, and nothing else notices."""
    with Repository.open(repo) as opened:
        name = str(opened.image(HOST).erofs[part])
    path = f"images/{name}"
    before = drop(repo / path)
    texts = {
        "gone": None,
        "of another object": f"../objects/00/{'0' * 126}",
        "leads nowhere": "nowhere",
        "leads out": "/etc/passwd",
    }
    text = texts[spoil]
    if text is not None:
        relink(repo / path, text)
    assert ("missing-link", path) in failing(repo)
    dry = tree(repo)
    assert [one.path for one in mend(repo, dry_run=True).plan.links] == [path]
    assert tree(repo) == dry
    done = mend(repo)
    assert [one.path for one in done.plan.links] == [path]
    assert os.readlink(repo / path) == before
    assert failing(repo) == []
    cfsctl.assert_healthy(repo)


def test_a_link_of_an_erofs_image_is_not_made_for_one_that_is_damaged_or_lacks_files(repo: Path) -> None:
    path = image_link(repo)
    image = link(repo, path)
    drop(repo / path)
    kept = image.read_bytes()
    flip(image, 1200)
    assert path not in [one.path for one in mend(repo).plan.links]
    image.unlink()
    image.write_bytes(kept)
    object_at(repo, min(image_refs(kept, Algorithm.SHA512))).unlink()
    assert path not in [one.path for one in mend(repo).plan.links]
    assert ("missing-link", path) in failing(repo)


def test_what_stands_in_the_place_of_the_link_of_an_image_is_left(repo: Path) -> None:
    path = repo / image_link(repo)
    path.unlink()
    path.write_bytes(b"a file")
    assert [one.path for one in mend(repo).plan.links] == []
    assert path.read_bytes() == b"a file"


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"], indirect=True)
@pytest.mark.parametrize("kinds", [["layer"], ["config"], ["manifest"], ["manifest", "config", "layer"]], ids="-".join)
@pytest.mark.parametrize("tag", [SMALL, HOST])
def test_a_link_whose_object_is_there_is_made_again(repo: Path, cfsctl: Cfsctl, tag: str, kinds: list[str]) -> None:
    before = tree(repo)
    for path in [stream(repo, tag, kind) for kind in kinds]:
        drop(repo / path)

    done = mend(repo)

    assert not any(one.fails for one in done.findings)
    assert tree(repo, exclude=["cfs-tags"]) == {name: node for name, node in before.items() if not name.startswith("cfs-tags")}
    assert failing(repo, content=True) == []
    assert cfsctl(repo, "gc").returncode == 0
    assert failing(repo, content=True) == []


def test_what_a_link_leads_to_is_on_disk_before_the_link_is_made(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash may have left objects that are not."""
    drop(repo / stream(repo, HOST, "layer"))
    calls: list[str] = []

    def record(name: str) -> None:
        original = getattr(fsops, name)

        def recorded(*words: Any) -> Any:
            calls.append(name)
            return original(*words)

        monkeypatch.setattr(fsops, name, recorded)

    record("sync_filesystem")
    record("make_link")
    mend(repo)
    assert calls == ["sync_filesystem", "make_link"]


def test_a_collector_would_have_taken_what_is_behind_a_missing_link(repo: Path, cfsctl: Cfsctl) -> None:
    drop(repo / stream(repo, HOST, "layer", 1))
    taken = hard_copy(repo, repo.parent / "taken")
    cfsctl(taken, "gc")
    mend(repo)
    cfsctl(repo, "gc")

    assert codes(check(taken).findings)["missing-object"]
    assert failing(repo) == []


def test_the_link_of_an_image_is_made_again(repo: Path, cfsctl: Cfsctl) -> None:
    path = image_link(repo)
    text = drop(repo / path)
    assert not collects(cfsctl, repo)

    done = mend(repo)

    assert os.readlink(repo / path) == text
    assert {one.code for one in done.findings if one.repaired} == {"dangling-ref", "missing-link"}
    assert collects(cfsctl, repo)
    assert failing(repo) == []


def test_a_link_that_leads_to_nothing_is_replaced_where_another_object_has_the_content(
    new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path
) -> None:
    repo = new_repo()
    pull_image(cfsctl, repo, host_image(tmp_path / "layout", "41.1"), "os")
    before = os.readlink(repo / stream(repo, "os", "manifest"))
    pull_image(cfsctl, repo, host_image(tmp_path / "layout", "41.1"), "os", bootable=True)
    path = stream(repo, "os", "manifest")
    assert os.readlink(repo / path) != before
    link(repo, path).unlink()

    done = mend(repo)

    assert os.readlink(repo / path) == before
    assert {one.code for one in done.findings if one.repaired} == {"broken-link", "dangling-ref"}
    assert not any(one.fails for one in done.findings)
    assert (repo / "streams/refs/oci/os").exists()


def test_of_several_objects_with_the_content_the_one_with_most_behind_it_is_linked(
    new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path
) -> None:
    repo = new_repo()
    pull_image(cfsctl, repo, host_image(tmp_path / "layout", "41.1"), "os", bootable=True)
    path = stream(repo, "os", "manifest")
    text = drop(repo / path)

    mend(repo)

    assert os.readlink(repo / path) == text


@pytest.mark.parametrize("number", range(6))
def test_the_better_object_is_not_passed_over_where_it_could_not_be_read_once(
    new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path, number: int
) -> None:
    repo = new_repo()
    pull_image(cfsctl, repo, host_image(tmp_path / "layout", "41.1"), "os", bootable=True)
    path = stream(repo, "os", "manifest")
    text = drop(repo / path)
    better = text.replace("../objects/", "").replace("/", "")
    opened: list[str] = []
    original = WriteRepo.open_object

    def refuse(self: WriteRepo, object_id: ObjectId, needed_by: str) -> int:
        opened.extend([object_id] if object_id == better else [])
        if object_id == better and len(opened) == number + 1:
            raise SystemFailure(operation="open", path=object_id, reason="Permission denied", errno=errno.EACCES)
        return original(self, object_id, needed_by)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WriteRepo, "open_object", refuse)
        with suppress(SystemFailure):
            mend(repo)

    assert opened
    assert not (repo / path).is_symlink() or os.readlink(repo / path) == text
    mend(repo)
    assert os.readlink(repo / path) == text


@pytest.mark.parametrize("kind", ["layer", "config", "manifest"])
def test_a_link_to_something_that_is_not_whole_is_not_made_and_no_ref_is_taken_out(repo: Path, kind: str) -> None:
    path = stream(repo, HOST, kind, 1)
    layer = stream(repo, HOST, "layer", 1)
    name = splitstream.parse(link(repo, layer).read_bytes()).object_refs[0]
    (repo / "objects" / name[:2] / name[2:]).unlink()
    drop(repo / path)
    before = tree(repo, exclude=["cfs-tags"])

    done = mend(repo, "bootc", "deployment")

    assert done.plan.empty
    assert tree(repo, exclude=["cfs-tags"]) == before
    assert path in {one.path for one in done.findings if one.fails} or kind == "manifest"


@pytest.mark.parametrize("kind", ["layer", "config", "manifest", "image"])
def test_a_link_to_a_stream_or_image_of_another_digest_is_not_made(repo: Path, kind: str) -> None:
    """It can be read, and what it says may be wrong: no reader uses a stream's flags, or what stands before the superblock."""
    path = image_link(repo) if kind == "image" else stream(repo, HOST, kind, 1)
    flip(link(repo, path), 500 if kind == "image" else 12)
    drop(repo / path)
    before = tree(repo, exclude=["cfs-tags"])

    done = mend(repo, "bootc", "deployment")

    assert done.plan.links == ()
    assert tree(repo, exclude=["cfs-tags"]) == before


def _blob(repo: Path) -> tuple[str, str]:
    """As ``import --keep-index`` leaves it."""
    data = b"index" * 1000
    name = f"oci-blob-sha256:{hashlib.sha256(data).hexdigest()}"
    add_stream(repo, name, objects=[data], content_type=splitstream.CONTENT_TYPE_BLOB)
    return "streams/refs/cfs-tags/indexes/app", name


def _layer(repo: Path) -> tuple[str, str]:
    return "streams/refs/layers/one", stream(repo, HOST, "layer", 1).rpartition("/")[2]


@pytest.mark.parametrize("make", [_blob, _layer])
def test_the_link_that_a_ref_of_others_leads_to_is_made_again(
    repo: Path, make: Callable[[Path], tuple[str, str]], cfsctl: Cfsctl
) -> None:
    ref, name = make(repo)
    for other in refs(repo):
        (repo / other).unlink()
    dangle(repo, ref, name)
    text = drop(repo / "streams" / name)

    mend(repo, "foreign")

    assert os.readlink(repo / "streams" / name) == text
    assert failing(repo) == []
    assert collects(cfsctl, repo)


def test_a_long_chain_behind_a_link_is_followed_to_its_end(repo: Path) -> None:
    layer = ""
    for number in range(1500):
        named = {f"sha256:{number:064x}": layer} if layer else {}
        layer = add_stream(repo, "chain", inside=b"%d" % number, named=named, content_type=0x77)
        drop(repo / "streams/chain")
    blob = b"{}" * 50
    config = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    target = add_stream(
        repo,
        f"oci-config-{config}",
        objects=[blob],
        named={f"sha256:{'2' * 64}": layer},
        content_type=splitstream.CONTENT_TYPE_CONFIG,
    )
    text = drop(repo / f"streams/oci-config-{config}")
    dangle(repo, "streams/refs/other/chain", f"oci-config-{config}")

    assert [link.object for link in mend(repo, "foreign").plan.links] == [target]
    assert os.readlink(repo / f"streams/oci-config-{config}") == text


# -- refs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (GONE, f"oci-manifest-{ABSENT}"),
        ("streams/refs/oci/nested", "refs/oci/quay.io%2Fapps%2Fweb:1"),
        ("streams/refs/oci/self", "refs/oci/self"),
        ("streams/refs/cfs-tags/tags/gone", f"oci-manifest-{ABSENT}"),
        ("streams/refs/cfs-tags/leases/20990101T000000Z.0/gone", f"oci-manifest-{ABSENT}"),
    ],
)
def test_a_ref_at_which_collectors_stop_is_taken_out_and_recorded(repo: Path, cfsctl: Cfsctl, path: str, name: str) -> None:
    text = os.readlink(dangle(repo, path, name))
    assert not collects(cfsctl, repo)
    before = tree(repo, exclude=["cfs-tags"])

    done = mend(repo)

    assert collects(cfsctl, repo)
    assert [ref.path for ref in done.plan.refs] == [path]
    (record,) = [json.loads(file.read_text()) for file in (repo / "cfs-tags/quarantine").iterdir()]
    assert (record["ref"], record["link"]) == (path, text)
    after = tree(repo, exclude=["cfs-tags"])
    assert {name: node for name, node in before.items() if name != path} == after
    with Repository.open(repo) as opened:
        entry = reflog.history(opened, path).entries[-1]
    assert (entry.old, entry.new, entry.action) == (text, None, "quarantine")


@pytest.mark.parametrize(
    ("path", "name", "owner"),
    [
        ("streams/refs/oci/localhost%2Fbootc-gone", f"oci-manifest-{ABSENT}", "bootc"),
        ("streams/refs/ostree/gone", "ostree-gone", "foreign"),
        ("images/refs/gone", "0" * 128, "foreign"),
        ("streams/refs/cfs-tags/deployments/" + "0" * 128, f"oci-manifest-{ABSENT}", "deployment"),
    ],
)
def test_refs_of_others_go_only_where_their_owner_is_named(
    repo: Path, cfsctl: Cfsctl, path: str, name: str, owner: str
) -> None:
    dangle(repo, path, name)

    for others in ((), tuple({"bootc", "foreign", "deployment"} - {owner})):
        left = mend(repo, *others)
        assert left.plan.refs == ()
        assert ("dangling-ref", path) in [(one.code, one.path) for one in left.findings if one.fails]
        assert not collects(cfsctl, repo)
    assert [ref.path for ref in mend(repo, owner).plan.refs] == [path]
    assert collects(cfsctl, repo)


def _manifest_without_its_json(repo: Path) -> str:
    path = stream(repo, SMALL, "manifest")
    sole = splitstream.parse(link(repo, path).read_bytes()).object_refs[0]
    (repo / "objects" / sole[:2] / sole[2:]).unlink()
    return path.rpartition("/")[2]


def _layer_without_a_file(repo: Path) -> str:
    path = stream(repo, HOST, "layer", 1)
    file = splitstream.parse(link(repo, path).read_bytes()).object_refs[0]
    (repo / "objects" / file[:2] / file[2:]).unlink()
    return path.rpartition("/")[2]


def _blob_without_its_bytes(repo: Path) -> str:
    name = _blob(repo)[1]
    sole = splitstream.parse(link(repo, f"streams/{name}").read_bytes()).object_refs[0]
    (repo / "objects" / sole[:2] / sole[2:]).unlink()
    return name


def _stream_of_another_program(repo: Path) -> str:
    add_stream(repo, "other", objects=[b"o" * 5000])
    return "other"


def _torn(repo: Path) -> str:
    """It begins as a splitstream does, and that is all."""
    path = stream(repo, SMALL, "manifest")
    cut(link(repo, path), 40)
    return path.rpartition("/")[2]


@pytest.mark.parametrize(
    "make", [_manifest_without_its_json, _layer_without_a_file, _blob_without_its_bytes, _stream_of_another_program, _torn]
)
def test_a_ref_stays_while_an_object_may_be_what_it_led_to(repo: Path, make: Callable[[Path], str]) -> None:
    name = make(repo)
    for other in refs(repo):
        (repo / other).unlink()
    ref = "streams/refs/other/ref"
    dangle(repo, ref, name)
    target = "".join(drop(repo / "streams" / name).split("/")[-2:])
    before = tree(repo, exclude=["cfs-tags"])

    done = mend(repo, "foreign")

    (said,) = [one for one in done.findings if (one.code, one.path) == ("dangling-ref", ref)]
    assert said.fails
    assert said.message.endswith(f"not taken out, because object {target[:12]}… is there and may be what it led to")
    with Repository.open(repo, write=True) as opened, pytest.raises(BrokenRoots):
        gc.collect(opened)
    assert tree(repo, exclude=["cfs-tags"]) == before


def test_what_is_known_to_be_something_else_keeps_no_ref(new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path) -> None:
    """The older writings of manifest and config that a pull of a bootable image leaves."""
    repo = new_repo()
    pull_image(cfsctl, repo, host_image(tmp_path / "layout", "41.1"), "os", bootable=True)
    dangle(repo)
    dangle(repo, "streams/refs/ostree/gone", "ostree-gone")

    done = mend(repo, "foreign")

    assert [ref.path for ref in done.plan.refs] == [GONE, "streams/refs/ostree/gone"]
    assert collects(cfsctl, repo)


def test_a_ref_that_a_peer_moves_meanwhile_stays_as_the_peer_made_it(repo: Path) -> None:
    path = dangle(repo)
    better = f"../../oci-manifest-{manifest(repo, APP)}"

    with before_call("rename", lambda: relink(path, better)), pytest.raises(ExpectationFailed):
        mend(repo)

    assert os.readlink(path) == better
    assert failing(repo) == []


def test_what_is_no_link_and_what_cfsctl_left_is_named_and_stays(repo: Path, cfsctl: Cfsctl) -> None:
    (repo / "streams/refs/oci/file").write_text("whose?")
    relink(repo / "streams/refs/oci/.symlink-a1", f"../../oci-manifest-{manifest(repo, APP)}")
    before = tree(repo, exclude=["cfs-tags"])

    done = mend(repo)

    assert tree(repo, exclude=["cfs-tags"]) == before
    assert codes(done.findings) == {
        "not-a-link": ["streams/refs/oci/file"],
        "left-over-link": ["streams/refs/oci/.symlink-a1"],
    }


# -- state -------------------------------------------------------------------------------------------------------------


def _batch(repo: WriteRepo) -> None:
    lines = [f"create one {APP}", f"create two {APP}"]
    run.transact(repo, lambda: edit.plan(repo, list(instructions.parse_instructions(lines))))


@pytest.mark.parametrize("stop", range(4, 9))
def test_an_interrupted_change_is_finished(repo: Path, stop: int) -> None:
    with Repository.open(repo, write=True) as opened:
        assert stopped_after(stop, lambda: _batch(opened))
    (repo / "cfs-tags/tmp/other.0").symlink_to("../nowhere")

    done = mend(repo)

    assert leftovers(repo) == []
    assert "pending-transaction" in {one.code for one in done.findings if one.repaired}
    assert not any(one.fails for one in done.findings)
    assert {"one", "two"} <= set(os.listdir(repo / "streams/refs/oci"))


def test_the_record_of_a_ref_that_is_back_is_removed(repo: Path) -> None:
    path = dangle(repo)
    mend(repo)
    relink(path, f"../../oci-manifest-{manifest(repo, APP)}")

    assert check(repo).findings == ()
    mend(repo)

    assert list((repo / "cfs-tags/quarantine").iterdir()) == []


# -- planning, locks, stops ------------------------------------------------------------------------------------------------


def _damage(repo: Path) -> Path:
    """Everything that is mended, at once."""
    for path in [stream(repo, SMALL, kind) for kind in ("config", "layer")] + [stream(repo, HOST, "layer", 1)]:
        drop(repo / path)
    drop(repo / image_link(repo))
    dangle(repo)
    dangle(repo, "streams/refs/oci/also-gone")
    dangle(repo, "streams/refs/ostree/gone", "ostree-gone")
    (repo / "cfs-tags/tmp/0123.0").symlink_to("../nowhere")
    return repo


def test_a_dry_run_writes_nothing_and_says_what_the_run_does(repo: Path) -> None:
    before = tree(_damage(repo))

    planned = mend(repo, "foreign", dry_run=True)

    assert tree(repo) == before
    done = mend(repo, "foreign")
    assert planned.plan == done.plan
    assert [(one.code, one.path, one.repaired) for one in planned.findings] == [
        (one.code, one.path, one.repaired) for one in done.findings
    ]


def test_a_healthy_repository_is_left_as_it_is(repo: Path) -> None:
    before = tree(repo)

    assert mend(repo).plan.empty

    assert tree(repo) == before


def test_a_second_repair_has_nothing_to_do(repo: Path) -> None:
    mend(_damage(repo), "foreign")
    before = tree(repo)

    assert mend(repo, "foreign").plan.empty
    assert tree(repo) == before


def test_content_that_is_wrong_is_still_said_after_a_repair(repo: Path) -> None:
    large = max((repo / "objects").glob("*/*"), key=lambda path: path.stat().st_size)
    flip(large)
    dangle(repo)

    done = mend(repo, content=True)

    assert {one.code for one in done.findings if one.fails} == {"wrong-object-digest", "wrong-layer-digest"}
    assert [one.code for one in done.findings if one.repaired] == ["dangling-ref"]


def test_nobody_else_may_have_the_repository_open(repo: Path, cfsctl: Cfsctl) -> None:
    dangle(repo)
    before = tree(repo)

    with hold_shared(cfsctl, repo), Repository.open(repo, write=True) as opened, pytest.raises(LockTimeout):
        repair(opened, timeout=0.05, jobs=1)

    assert tree(repo) == before


def _state(repo: Path) -> tuple[object, ...]:
    """What a repair comes to, without times."""
    records = sorted(
        tuple(json.loads(path.read_text())[key] for key in ("ref", "link")) for path in (repo / "cfs-tags/quarantine").iterdir()
    )
    with Repository.open(repo) as opened:
        log = {(entry.ref, entry.old, entry.new, entry.action) for entry in reflog.all_entries(opened).entries}
    return refs(repo), tree(repo, exclude=["cfs-tags"]), records, log, leftovers(repo), failing(repo)


def _full_after(n: int, function: Callable[[], object]) -> bool:
    with disk_full_after(n) as seen:
        try:
            function()
        except CfsTagsError:
            pass
        else:
            assert not seen["failed"]
    return seen["failed"] > 0


INTERRUPTIONS: dict[str, Interruption] = {
    "stopped": stopped_after,
    "torn": torn_after,
    "killed": kill_after,
    "full": _full_after,
    "failing once": failed_after(errno.EIO, once=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_a_repair_that_was_interrupted_anywhere_comes_to_the_same_when_run_again(
    repo: Path, cfsctl: Cfsctl, tmp_path: Path, how: str
) -> None:
    _damage(repo)
    wanted = hard_copy(repo, tmp_path / "wanted")
    mend(wanted, "foreign")
    end = _state(wanted)
    everything = tree(repo, exclude=["cfs-tags"])
    stops = 0

    for attempt in every_stop(
        lambda number: hard_copy(repo, tmp_path / "attempt"), lambda path: mend(path, "foreign"), INTERRUPTIONS[how]
    ):
        path = attempt.subject
        stops += attempt.interrupted
        # at no instant is anything gone but what is recorded
        recorded = [json.loads(file.read_text())["ref"] for file in (path / "cfs-tags/quarantine").glob("*.json")]
        now = tree(path, exclude=["cfs-tags"])
        lost = {name for name, node in everything.items() if now.get(name) != node}
        assert lost <= set(recorded)
        mend(path, "foreign")
        assert _state(path) == end
    assert stops > 15
    cfsctl(path, "gc")
    assert failing(path) == []


def test_a_collector_between_a_stop_and_the_next_repair_takes_nothing_that_is_needed(
    repo: Path, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    for path in [stream(repo, SMALL, kind) for kind in ("layer", "config", "manifest")]:
        drop(repo / path)

    for attempt in every_stop(lambda number: hard_copy(repo, tmp_path / "attempt"), mend):
        cfsctl(attempt.subject, "gc", check=False)
        mend(attempt.subject)
        assert failing(attempt.subject, content=True) == []
