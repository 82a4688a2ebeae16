"""What a collection does besides: what runs out, what is kept for a while, referrers, deployments, locks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository, gc
from cfs_tags.errors import BrokenRoots, FormatError, LockTimeout, PlaceUnread, SystemFailure, UnresolvedDeployment
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.repo import beneath, reflog
from cfs_tags.repo.lock import Lock
from cfs_tags.tags import rows
from cfs_tags.values import Algorithm
from cli.conftest import Run, call  # noqa: F401  (call is a fixture here too)
from deployments.conftest import view_of
from support import tagging
from support.collecting import collect, plan, unresolve
from support.garbage import (
    add_artifact,
    add_stream,
    content,
    copy_of,
    link_of,
    manifest_of,
    model,
    names,
    object_of,
    object_paths,
    outside_state,
    parse_stream,
    settle,
)
from support.peers import Cfsctl
from support.peers_beside import hold_shared
from support.stock import before_call, refs
from support.sysroots import Host

Fresh = Callable[..., Path]


def logged(path: Path) -> list[tuple[str, str]]:
    with Repository.open(path) as repo:
        return [(entry.action, entry.ref) for entry in reflog.all_entries(repo).entries]


# -- leases and trash --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["leases", "trash"])
def test_what_has_run_out_goes_and_what_has_not_stays(repo: Path, cfsctl: Cfsctl, kind: str) -> None:
    top = f"streams/refs/cfs-tags/{kind}"
    one = manifest_of(repo, "one")
    past, future = rows.expiry(-1), rows.expiry(3600)
    for number, moment in enumerate((past, future, "20200101T000000Z")):
        link_of(repo, f"{top}/{moment}.{number}/name", f"oci-manifest-{one}")
    (repo / f"{top}/20210101T000000Z.5").mkdir()
    (repo / "streams/refs/oci/one").unlink()
    stays = [f"{top}/{future}.1/name"]

    planned = plan(repo)
    done = collect(repo)

    assert {change.path for change in planned.changes} == {change.path for change in done.changes}
    assert [ref for ref in refs(repo) if ref.startswith(top)] == stays
    assert [path.name for path in (repo / top).iterdir()] == [f"{future}.1"], "and the directories that are empty"
    assert model(repo, cfsctl, stays).objects <= set(object_paths(repo))
    assert sorted(entry for entry in logged(repo) if entry[0] not in ("found", "collect")) == sorted(
        ("expire", ref.path) for ref in done.changes
    )


def test_what_stands_among_leases_and_is_none_stays(repo: Path) -> None:
    one = manifest_of(repo, "one")
    odd = [
        "streams/refs/cfs-tags/leases/20200101T000000Z/no-number",
        "streams/refs/cfs-tags/leases/whatever.1/name",
        "streams/refs/cfs-tags/leases/20200101T000000Z.1/deeper/name",
        "streams/refs/cfs-tags/leases/name",
    ]
    for ref in odd:
        link_of(repo, ref, f"oci-manifest-{one}")
    assert collect(repo).changes == ()
    assert set(odd) <= set(refs(repo))


# -- keeping for a while -----------------------------------------------------------------------------------------------


def test_grace_keeps_what_is_young_and_what_it_leads_to(repo: Path, cfsctl: Cfsctl) -> None:
    before = set(object_paths(repo)), names(repo, "streams"), names(repo, "images")
    for ref in refs(repo):
        (repo / ref).unlink()

    assert plan(repo, grace=3600.0).swept == collect(repo, grace=3600.0).swept == gc.Swept()
    assert (set(object_paths(repo)), names(repo, "streams"), names(repo, "images")) == before

    time.sleep(0.3)
    collect(repo, grace=0.2)
    assert object_paths(repo) == {}


def test_grace_counts_from_when_a_link_was_made_too(fresh: Fresh) -> None:
    """A pull that finds all its objects makes links alone."""
    repo = fresh()
    one = f"oci-manifest-{manifest_of(repo, 'one')}"
    objects = model_of_stream(repo, one)
    for ref in refs(repo):
        (repo / ref).unlink()
    time.sleep(1.5)
    link = os.readlink(repo / "streams" / one)
    (repo / "streams" / one).unlink()
    (repo / "streams" / one).symlink_to(link)

    collect(repo, grace=1.0)

    assert one in names(repo, "streams")
    assert set(object_paths(repo)) == objects


@pytest.mark.parametrize("which", ["link", "object"])
def test_what_the_system_would_not_look_at_may_be_young(repo: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    link = f"oci-manifest-{manifest_of(repo, 'one')}"
    name = link if which == "link" else content(repo, object_of(repo, f"streams/{link}")).name
    for ref in refs(repo):
        (repo / ref).unlink()
    before = outside_state(repo)
    original = beneath.status

    def fail(fd: int, path: str) -> os.stat_result:
        if path.endswith(name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return original(fd, path)

    monkeypatch.setattr(beneath, "status", fail)
    with pytest.raises(SystemFailure, match=os.strerror(errno.EIO)):
        collect(repo, grace=3600.0)
    monkeypatch.undo()

    assert outside_state(repo) == before


def model_of_stream(repo: Path, name: str) -> set[str]:
    ref = link_of(repo, "streams/refs/only", name)
    try:
        found: set[str] = set()
        pending = [object_of(repo, "streams/refs/only")]
        while pending:
            stream = parse_stream(content(repo, pending[-1]).read_bytes(), 64)
            found.add(pending.pop())
            found |= stream.objects | set(stream.named.values())
            pending += [one for key, one in stream.named.items() if not key.startswith("composefs")]
        return found
    finally:
        ref.unlink()


def test_grace_is_not_stopped_by_something_young_and_broken_that_no_ref_needs(repo: Path) -> None:
    inner = add_stream(repo, "inner", objects=[b"i" * 300])
    add_stream(repo, "outer", objects=[b"o" * 300], named={"inner": inner})
    content(repo, inner).unlink()
    (repo / "streams/inner").unlink()
    settle()
    collect(repo, grace=3600.0)
    assert "outer" in names(repo, "streams")


def test_a_root_is_named_like_those_of_cfsctl(fresh: Fresh, cfsctl: Cfsctl) -> None:
    mine = fresh()
    one = f"oci-manifest-{manifest_of(mine, 'one')}"
    image = os.path.basename(os.readlink(mine / "images/refs/tree/named"))
    for ref in refs(mine):
        (mine / ref).unlink()
    theirs = copy_of(mine, mine.parent / "theirs")

    planned = plan(mine, roots=(one, image, "not-there"))
    done = collect(mine, roots=(one, image, "not-there"))
    cfsctl(theirs, "--no-upgrade", "gc", "-r", one, "-r", image, "-r", "not-there")

    assert planned.swept == done.swept
    assert set(object_paths(mine)) == set(object_paths(theirs)) != set()
    assert names(mine, "streams") == names(theirs, "streams")


def test_a_root_that_is_broken_stops_a_collection(repo: Path) -> None:
    add_stream(repo, "root", objects=[b"o" * 300])
    content(repo, object_of(repo, "streams/root")).unlink()
    with pytest.raises(BrokenRoots) as error:
        collect(repo, roots=("root",))
    assert error.value.problems[0][1] == ("streams/root",)


def test_a_root_that_is_broken_and_young_stops_a_collection_with_grace_too(repo: Path) -> None:
    add_stream(repo, "root", objects=[b"o" * 300])
    place = content(repo, object_of(repo, "streams/root"))
    place.unlink()
    place.write_bytes(b"no stream")
    with pytest.raises(BrokenRoots) as error:
        collect(repo, roots=("root",), grace=3600.0)
    assert error.value.problems[0][1] == ("streams/root",)


# -- referrers ---------------------------------------------------------------------------------------------------------


def referrers(repo: Path) -> set[str]:
    return {os.path.basename(ref) for ref in refs(repo) if ref.startswith("streams/refs/oci-referrers/")}


def test_referrers_are_roots_unless_they_are_to_be_pruned(repo: Path) -> None:
    before = referrers(repo)
    (repo / "streams/refs/oci/one").unlink()
    collect(repo)
    assert referrers(repo) == before


@pytest.mark.parametrize("first", ["with", "after"])
def test_referrers_of_the_dead_are_pruned_to_a_fixed_point(repo: Path, cfsctl: Cfsctl, first: str) -> None:
    one, two = manifest_of(repo, "one"), manifest_of(repo, "two")
    of_two = add_artifact(repo, "of two", two)
    index = add_artifact(repo, "of another index", f"sha256:{'cd' * 32}")
    of_index = add_artifact(repo, "of that", index)
    if first == "after":
        with Repository.open(repo, write=True) as opened:
            tagging.delete(opened, ["one"])
        collect(repo)  # the subject goes; the log knows that it was here
        assert f"oci-manifest-{one}" not in names(repo, "streams")
    else:
        (repo / "streams/refs/oci/one").unlink()
    settle()

    planned = plan(repo, prune_referrers=True)
    done = collect(repo, prune_referrers=True)

    assert planned.swept == done.swept
    assert set(planned.changes) == set(done.changes)
    assert len(done.changes) == 2, "the signature and the signature of the signature"
    assert referrers(repo) >= {of_two, index, of_index}
    assert len(referrers(repo)) == 4
    assert [action for action, ref in logged(repo) if "oci-referrers" in ref and action != "found"] == ["prune"] * 2
    assert set(object_paths(repo)) == model(repo, cfsctl).objects


def test_a_ref_of_others_that_is_called_like_one_of_a_referrer_is_not_pruned(repo: Path) -> None:
    one, two = manifest_of(repo, "one"), manifest_of(repo, "two")
    ref = f"streams/refs/oci-referrers-{one}/mine"
    link_of(repo, ref, f"oci-manifest-{two}")
    (repo / "streams/refs/oci/one").unlink()
    settle()
    assert len(collect(repo, prune_referrers=True).changes) == 2
    assert (repo / ref).is_symlink()


@pytest.mark.parametrize("kind", ["leases", "trash"])
def test_a_dry_run_knows_that_a_subject_was_here_which_only_the_ref_tells_that_runs_out(repo: Path, kind: str) -> None:
    """The run has it from the log, where it has just written down that the ref went."""
    before = referrers(repo)
    gone = f"sha256:{'ef' * 32}"
    of_gone = add_artifact(repo, "of what is gone", gone)
    link_of(repo, f"streams/refs/cfs-tags/{kind}/20200101T000000Z.1/name", f"oci-manifest-{gone}")
    settle()

    planned = plan(repo, prune_referrers=True)
    done = collect(repo, prune_referrers=True)

    assert planned.changes == done.changes
    assert planned.swept == done.swept != gc.Swept()
    assert referrers(repo) == before - {of_gone}


def test_the_signature_of_what_a_root_keeps_is_not_pruned(repo: Path) -> None:
    before = referrers(repo)
    one = f"oci-manifest-{manifest_of(repo, 'one')}"
    (repo / "streams/refs/oci/one").unlink()
    collect(repo, prune_referrers=True, roots=(one,))
    collect(repo, prune_referrers=True, grace=3600.0)
    assert referrers(repo) == before


def test_the_signature_of_what_gets_a_tag_just_now_is_not_pruned(repo: Path, cfsctl: Cfsctl) -> None:
    before = referrers(repo)
    one = manifest_of(repo, "one")
    (repo / "streams/refs/oci/one").unlink()
    # right before the exclusive lock is taken for pruning
    original = Lock.hold
    came = []

    def hold(self: Lock, mode: str, *words: object, **named: object) -> object:
        if mode == "exclusive" and words[1] == "." and not came:
            came.append(cfsctl(repo, "oci", "tag", one, "again"))
        return original(self, mode, *words, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lock, "hold", hold)
        collect(repo, prune_referrers=True)

    assert came
    assert referrers(repo) == before
    assert model(repo, cfsctl).objects == set(object_paths(repo))


# -- deployments -------------------------------------------------------------------------------------------------------


def on(host: Host, **options: object) -> gc.GcResult:
    view = view_of(host)
    planned = plan(host.repo, view, **options)
    done = collect(host.repo, lambda: view_of(host), **options)
    assert planned.swept == done.swept
    assert planned.adopted == done.adopted
    return done


def test_deployments_are_adopted_before_anything_goes(three: Host) -> None:
    three.untag_bootc()

    done = on(three)

    assert set(done.adopted) == {three.id(name) for name in ("same", "old", "new")}
    assert [three.missing(name) for name in ("same", "old", "new")] == [[], [], []]


def test_the_ref_of_a_deployment_that_is_gone_is_retired_and_its_content_collected(three: Host) -> None:
    on(three)
    three.undeploy("old")
    three.untag_bootc()

    done = on(three, retire_grace=0.0)

    assert done.retired is not None
    assert [row.id for row in done.retired.rows if row.done == "retired"] == [three.id("old")]
    assert three.missing("old")
    assert [three.missing(name) for name in ("same", "new")] == [[], []]


def test_a_deployment_that_cannot_be_resolved_stops_a_collection(three: Host) -> None:
    unresolve(three, "old", "new")
    before = three.object_hashes(), refs(three.repo)

    with pytest.raises(UnresolvedDeployment) as error:
        collect(three.repo, lambda: view_of(three))
    with pytest.raises(UnresolvedDeployment):
        plan(three.repo, view_of(three))

    assert error.value.status == 4
    said = f"{error.value.deployment} {' '.join(error.value.notes)}"
    assert all(three.id(name) in said for name in ("old", "new")), "all of them are named"
    assert error.value.hint
    assert (three.object_hashes(), refs(three.repo)) == before


def test_unless_its_image_alone_is_to_be_kept(three: Host) -> None:
    unresolve(three, "old")

    on(three, image_only=True)

    assert three.missing("old", image_only=True) == []
    assert [three.missing(name) for name in ("same", "new")] == [[], []]
    on(three)  # that is decided, and asked for once


def test_an_image_that_has_lost_its_link_is_not_given_up(three: Host, call: Run) -> None:  # noqa: F811
    """No ref can be made to it; its object, and all that its deployment was made from, is there."""
    unresolve(three, "old")
    link = three.repo / "images" / three.id("old")
    text = os.readlink(link)
    link.unlink()
    before = three.object_hashes(), refs(three.repo)

    with pytest.raises(UnresolvedDeployment, match="make the link again"):
        collect(three.repo, lambda: view_of(three), image_only=True)
    assert (three.object_hashes(), refs(three.repo)) == before
    assert call("--sysroot", three.root, "df", *three.options, "--json").result["problems"]

    link.symlink_to(text)
    on(three, image_only=True)
    assert three.missing("old", image_only=True) == []


def test_nothing_goes_while_the_state_directories_cannot_be_read(three: Host) -> None:
    three.untag_bootc()
    before = three.object_hashes(), refs(three.repo)
    (three.root / "state").rename(three.root / "elsewhere")

    with pytest.raises(PlaceUnread, match="state/deploy"):
        plan(three.repo, view_of(three))
    with pytest.raises(PlaceUnread) as caught:
        collect(three.repo, lambda: view_of(three))

    assert (caught.value.status, caught.value.place) == (4, "state")
    assert (three.object_hashes(), refs(three.repo)) == before


def test_a_boot_entry_that_cannot_be_read_is_no_reason(three: Host) -> None:
    """Deployments are seen in their state directories, too."""
    three.untag_bootc()
    (three.root / "boot").rename(three.root / "unmounted")
    collect(three.repo, lambda: view_of(three))
    assert [three.missing(name) for name in ("same", "old", "new")] == [[], [], []]


def test_what_is_running_is_never_another_systems(three: Host) -> None:
    """Its state directory, the link of its image and the names of its manifest and config are gone; its objects are there."""
    unresolve(three, "same")
    shutil.rmtree(three.state("same"))
    running = three.id("same")
    (three.repo / "images" / running).unlink()

    def view() -> SysrootView:
        sysroot = view_of(three).sysroot._replace(cmdline=f"composefs={running}")
        return SysrootView.read(sysroot, Algorithm.SHA512)

    with pytest.raises(UnresolvedDeployment, match=running[:12]):
        collect(three.repo, view)
    assert running in object_paths(three.repo)


def config_without_a_name(host: Host) -> None:
    (host.repo / "streams" / next(one for one in host.pool.images["new"].streams if one.startswith("oci-config-"))).unlink()
    settle()


@pytest.mark.parametrize("image_only", [False, True])
def test_a_dry_run_knows_the_names_that_adopting_makes(three: Host, cfsctl: Cfsctl, image_only: bool) -> None:
    config_without_a_name(three)
    planned = plan(three.repo, view_of(three), image_only=image_only)
    done = on(three, image_only=image_only)
    assert [three.missing(name) for name in ("same", "old", "new")] == [[], [], []]
    cfsctl(three.repo, "--no-upgrade", "gc", "--dry-run")
    assert (planned.swept, planned.adopted, planned.live) == (done.swept, done.adopted, done.live)


def test_so_does_a_full_disk(three: Host) -> None:
    from support.stock import disk_full_after

    config_without_a_name(three)
    three.untag(next(iter(three.pool.apps)))
    with disk_full_after(0), pytest.raises(SystemFailure, match="space"):
        collect(three.repo, lambda: view_of(three))
    assert [three.missing(name) for name in ("same", "old")] == [[], []]
    assert len(three.missing("new")) == 1, "the name that it had lost before"
    on(three)
    assert three.missing("new") == []


def test_a_full_disk_keeps_what_would_have_been_adopted(three: Host) -> None:
    from support.stock import disk_full_after

    three.untag_bootc()
    for tag in three.pool.apps:
        three.untag(tag)
    with disk_full_after(0), pytest.raises(SystemFailure, match="space"):
        collect(three.repo, lambda: view_of(three))
    assert [three.missing(name) for name in ("same", "old", "new")] == [[], [], []]
    assert three.missing_of_app(next(iter(three.pool.apps)))
    on(three)
    assert [three.missing(name) for name in ("same", "old", "new")] == [[], [], []]


@pytest.fixture
def unseen(three: Host, call: Run) -> Path:  # noqa: F811
    """bootc's repository as a bind mount shows it: its state directories are not beside it.  ``old`` has no tag of bootc's."""
    tag = three.repo / f"streams/refs/oci/localhost%2Fbootc-{three.pool.images['old'].manifest}"
    tag.unlink()
    return three.repo.rename(three.root.parent / "bound-here")


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_bootcs_repository_without_its_sysroot_is_not_collected_where_a_deployment_may_go(
    three: Host,
    unseen: Path,
    call: Run,  # noqa: F811
    words: tuple[str, ...],
) -> None:
    before = outside_state(unseen)

    said = call("--repo", unseen, "gc", "--json", *words)

    assert (said.status, said.json["error"]["code"]) == (4, "sysroot-unseen")
    assert three.id("old") in said.json["error"]["facts"]["images"]
    assert "--sysroot DIR" in said.json["error"]["hint"]
    assert outside_state(unseen) == before


def test_unless_its_deployments_do_not_matter(
    three: Host,
    unseen: Path,
    call: Run,  # noqa: F811
    cfsctl: Cfsctl,
) -> None:
    theirs = copy_of(unseen, unseen.with_name("theirs"))
    planned = call("--repo", unseen, "gc", "--no-sysroot", "--dry-run", "--json").json
    done = call("--repo", unseen, "gc", "--no-sysroot", "--json").json
    cfsctl(theirs, "--no-upgrade", "gc")
    assert planned["result"]["images"] == done["result"]["images"] > 0
    assert planned["warnings"] == done["warnings"] == []
    assert outside_state(unseen) == outside_state(theirs)


def test_nor_is_anything_adopted_where_there_is_a_sysroot_that_does_not_matter(three: Host, call: Run) -> None:  # noqa: F811
    three.untag_bootc()
    for where in (("--repo", three.repo), ("--sysroot", three.root)):
        said = call(*where, "gc", "--no-sysroot", "--dry-run", "--json").json["result"]
        assert said["adopted"] == []
        assert said["images"] > 0
    said = call("--repo", three.repo, "gc", "--no-sysroot", "--image-only")
    assert (said.status, "--image-only and --no-sysroot exclude each other" in said.err) == (2, True)


def test_bootcs_repository_in_which_every_image_has_a_ref_is_collected_and_that_it_was_not_looked_for_is_said(
    three: Host,
    call: Run,  # noqa: F811
) -> None:
    on(three)
    for tag in three.pool.apps:
        three.untag(tag)
    path = three.repo.rename(three.root.parent / "bound-here")

    said = call("--repo", path, "gc", "--json").json

    assert said["result"]["images"] > 0, "app images have some, too, which are of no deployment"
    assert [warning["code"] for warning in said["warnings"]] == ["sysroot-unseen"]
    assert "no deployment is adopted or retired" in call("--repo", path, "gc").err


def test_a_repository_of_app_images_is_never_asked_for_a_sysroot(fresh: Fresh, call: Run) -> None:  # noqa: F811
    path = fresh()
    for ref in refs(path):
        (path / ref).unlink()
    said = call("--repo", path, "gc", "--json")
    assert (said.status, said.json["warnings"]) == (0, [])
    assert said.json["result"]["images"] > 0


@pytest.mark.parametrize("name", ["life-staged", "life-finalized", "life-rebooted", "life-rolled-back"])
def test_a_recorded_host_is_never_refused_and_loses_nothing(
    bootc_host: Callable[[str], Path],
    call: Run,  # noqa: F811
    cfsctl: Cfsctl,
    hosts: Path,
    name: str,
) -> None:
    sysroot = bootc_host(name)
    facts = json.loads((hosts / f"{name}.json").read_text())
    words = ["--run", sysroot / "run", "--booted", facts["booted"], "--esp", "none"]
    before = model(sysroot / "composefs", cfsctl).objects
    settle()

    planned = call("--sysroot", sysroot, "gc", *words, "--dry-run", "--json").result
    done = call("--sysroot", sysroot, "gc", *words, "--json").result

    same = ("objects", "bytes", "content_bytes", "streams", "images", "adopted", "retired")
    assert {key: planned[key] for key in same} == {key: done[key] for key in same}
    assert done["adopted"]
    assert before <= set(object_paths(sysroot / "composefs"))
    again = call("--sysroot", sysroot, "gc", *words, "--json").result
    assert [again[key] for key in same] == [0, 0, 0, 0, 0, [], []]


@pytest.mark.parametrize("name", ["a", "b", "e", "g2", "h", "i3", "w", "w2"])
def test_a_damaged_host_can_be_collected_once_it_is_migrated(
    bootc_host: Callable[[str], Path],
    call: Run,  # noqa: F811
    hosts: Path,
    name: str,
) -> None:
    sysroot = bootc_host(name)
    facts = json.loads((hosts / f"{name}.json").read_text())
    words = ["--run", sysroot / "run", "--booted", facts.get("booted") or "none", "--esp", "none"]
    settle()
    migrated = call("--sysroot", sysroot, "migrate", *words)
    done = call("--sysroot", sysroot, "gc", *words, "--json")
    assert done.status == (0 if migrated.status == 0 else 4), (migrated, done)
    assert call("--sysroot", sysroot, "gc", *words, "--image-only", "--json").status == 0


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_lock_that_is_not_to_be_had_names_who_has_it(repo: Path, cfsctl: Cfsctl) -> None:
    (repo / "streams/refs/oci/one").unlink()
    with hold_shared(cfsctl, repo) as pid, Repository.open(repo, write=True) as opened:
        plan(repo)
        started = time.monotonic()
        with pytest.raises(LockTimeout) as error:
            gc.collect(opened, timeout=0.2)
        assert time.monotonic() - started < 5
    assert error.value.status == 5
    assert [holder["pid"] for holder in error.value.holders] == [pid]
    assert "cfsctl" in error.value.message


# -- at the command line -----------------------------------------------------------------------------------------------


def test_all_that_is_broken_is_listed(repo: Path, call: Run) -> None:  # noqa: F811
    for number in range(12):
        link_of(repo, f"streams/refs/oci/dangling-{number:02}", f"oci-manifest-sha256:{number:064x}")
    said = call("--repo", repo, "gc")
    assert said.status == 6
    assert sum(line.startswith("broken: ") for line in said.lines) == 12
    facts = call("--repo", repo, "gc", "--json").json["error"]
    assert len(facts["facts"]["problems"]) == 12
    for words in (("--dry-run",), ()):
        said = call("--repo", repo, "gc", "--keep-broken", *words)
        assert said.status == 0
        assert sum(line.startswith("broken: ") for line in said.lines) == 12


def test_a_request_to_end_is_handled_while_a_collection_runs_and_only_then(repo: Path) -> None:
    import signal

    seen = []

    def look() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    from cfs_tags.cli.main import main

    (repo / "streams/refs/oci/one").unlink()
    with before_call("remove", look):
        assert main(["--repo", str(repo), "gc"]) == 0
    assert seen[0] not in (signal.SIG_DFL, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# -- what does not belong there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gc.stamp", "seen.json"])
def test_a_pipe_in_place_of_a_file_of_ours_stops_nothing(repo: Path, name: str) -> None:
    """``gc.stamp`` is what older versions kept there."""
    (repo / "cfs-tags").mkdir(exist_ok=True)
    os.mkfifo(repo / "cfs-tags" / name)
    (repo / "streams/refs/oci/one").unlink()
    settle()
    before = set(object_paths(repo))

    collect(repo)

    assert set(object_paths(repo)) < before


def test_a_directory_of_objects_that_is_a_link_is_said_before_anything_goes(repo: Path) -> None:
    for tag in ("one", "two", "three"):
        (repo / "streams/refs/oci" / tag).unlink()
    shard = max(path.name for path in (repo / "objects").iterdir())
    (repo / "objects" / shard).rename(repo.parent / f"moved-{shard}")
    (repo / "objects" / shard).symlink_to(repo.parent / f"moved-{shard}")
    settle()
    before = names(repo, "streams"), set(object_paths(repo))
    with pytest.raises(FormatError, match="link"):
        collect(repo)
    assert (names(repo, "streams"), set(object_paths(repo))) == before


def test_what_is_freed_first_is_the_same_every_time(fresh: Fresh) -> None:
    path = fresh()
    for ref in refs(path):
        (path / ref).unlink()
    home = path / "objects/00"
    home.mkdir(exist_ok=True)
    for number in range(200):
        (home / f"{number * 7919:0126x}").write_bytes(b"x")
    settle()
    before = sorted(object_paths(path))
    collect(path, free_bytes=4096 * 20)
    gone = set(before) - set(object_paths(path))
    assert sorted(gone) == before[: len(gone)]


@pytest.mark.parametrize(
    "words",
    [("gc", "--image-only"), ("gc", "--booted", "none"), ("gc", "--boot", "none"), ("df", "--run", "none")],
    ids=" ".join,
)
def test_what_is_about_a_sysroot_is_refused_where_there_is_none(
    repo: Path,
    call: Run,  # noqa: F811
    words: tuple[str, ...],
) -> None:
    before = outside_state(repo)

    said = call("--repo", repo, *words)

    assert said.status == 2
    assert f"{words[1]} is for a repository with a sysroot" in said.err
    assert outside_state(repo) == before


def test_a_root_that_is_not_there_is_a_warning(repo: Path, call: Run) -> None:  # noqa: F811
    words = ("--repo", repo, "gc", "--dry-run", "--root", "nowhere", "--root", f"oci-manifest-{manifest_of(repo, 'one')}")

    said = call(*words)
    document = call(*words, "--json").json

    assert said.status == 0
    assert said.err == "cfs-tag: warning: no stream or image 'nowhere' in the repository\n"
    assert [(one["code"], one["facts"]["name"]) for one in document["warnings"]] == [("target-not-found", "nowhere")]
