"""Who takes how much: the sums of a slow model, and what a collection would free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cfs_tags import Repository, df
from cfs_tags.errors import TagNotFound
from cfs_tags.gc.early_refs import plan_expiry
from cli.conftest import Run, call  # noqa: F401  (call is a fixture here too)
from deployments.conftest import fill_three, view_of
from fsck.damage import check
from support import tagging
from support.collecting import collect, plan
from support.garbage import HOSTS, add_stream, content, link_of, manifest_of, model, object_paths, settle
from support.peers import Cfsctl
from support.stock import refs
from support.sysroots import fill_hosts, new_host

Fresh = Callable[..., Path]


def measure(path: Path, without: Iterable[str] = ()) -> df.Usage:
    with Repository.open(path) as repo, repo.locked("shared"):
        return df.measure(repo, without, tuple(plan_expiry(repo)))


def used(path: Path, objects: Iterable[str]) -> df.Used:
    present = [one for one in objects if content(path, one).exists()]
    return df.Used(len(present), sum(content(path, one).stat().st_blocks * 512 for one in present))


def name_of(ref: str) -> str:
    for top in ("streams/refs/oci/", "streams/refs/cfs-tags/tags/"):
        if ref.startswith(top):
            return ref.removeprefix(top).replace("%2F", "/")
    return ref


@pytest.fixture
def mixed(fresh: Fresh) -> Path:
    """Tags that share everything, a layer or nothing; a lease and a deleted tag; garbage."""
    path = fresh()
    with Repository.open(path, write=True) as repo:
        tagging.create(repo, "again/one", "one")
        tagging.create(repo, "hidden", "two", home="private")
        tagging.create(repo, "leased", "three", expires="20990101T000000Z")
        tagging.delete(repo, ["three"], expires="20990101T000000Z")
    add_stream(path, "dead", objects=[b"d" * 9000])
    (path / f"streams/refs/oci/localhost%2Fbootc-{HOSTS[0]}").unlink()
    settle()
    return path


def test_rows_have_the_sums_of_the_model(mixed: Path, cfsctl: Cfsctl) -> None:
    found = measure(mixed)
    named = {
        ref: name_of(ref) if "cfs-tags/" not in ref or "/tags/" in ref else ("@trash/three" if "/trash/" in ref else "leased")
        for ref in refs(mixed)
    }
    reach = {ref: model(mixed, cfsctl, [ref]).objects for ref in named}
    everything = set().union(*reach.values())
    rows = {row.name: row for row in found.rows}
    assert set(rows) == set(named.values())
    for ref, name in named.items():
        others = set().union(*(reach[other] for other in reach if other != ref))
        row = rows[name]
        assert row.total == used(mixed, reach[ref]), name
        assert row.freed == used(mixed, reach[ref] - others), name
        assert row.shared == used(mixed, reach[ref] & others), name
    owners = {"app": set(), "bootc": set(), "foreign": set()}  # type: dict[str, set[str]]
    for ref, name in named.items():
        owners[rows[name].owner].add(ref)
    for row in found.owners:
        mine = set().union(*(reach[ref] for ref in owners[row.name]))
        others = set().union(*(reach[ref] for ref in reach if ref not in owners[row.name]))
        assert row.total == used(mixed, mine)
        assert row.freed == used(mixed, mine - others)
        assert row.shared == used(mixed, mine & others)
    assert found.live == used(mixed, everything)
    assert found.problems == ()


def test_garbage_is_what_a_collection_frees_now(mixed: Path) -> None:
    top = "streams/refs/cfs-tags/leases/20200101T000000Z.1"
    link_of(mixed, f"{top}/over", f"oci-manifest-{manifest_of(mixed, 'two')}")
    for ref in ("oci/two", "cfs-tags/tags/hidden"):
        (mixed / "streams/refs" / ref).unlink()

    found = measure(mixed)

    planned = plan(mixed)
    assert found.dead == df.Used(planned.swept.objects, planned.swept.allocated)
    assert found.dead.objects > 5
    done = collect(mixed)
    assert found.dead == df.Used(done.swept.objects, done.swept.allocated)
    assert measure(mixed).dead == df.Used(0, 0)


def test_without_is_what_deleting_them_together_frees(mixed: Path) -> None:
    assert measure(mixed).without is None
    alone = measure(mixed, ["one"]).without
    assert alone == df.Used(0, 0), "another tag has the same"
    found = measure(mixed, ["one", "again/one", "hidden", "two"])
    before = measure(mixed).dead
    with Repository.open(mixed, write=True) as repo:
        tagging.delete(repo, ["one", "again/one", "hidden", "two"])
    after = measure(mixed).dead
    assert found.without == df.Used(after.objects - before.objects, after.allocated - before.allocated)
    with pytest.raises(TagNotFound):
        measure(mixed, ["nobody"])


def names_and_reach(path: Path, cfsctl: Cfsctl) -> dict[str, frozenset[str]]:
    """What each name of a repository of shared and private tags reaches."""
    return {name_of(ref): frozenset(model(path, cfsctl, [ref]).objects) for ref in refs(path) if "/trash/" not in ref}


def test_images_have_their_names_and_the_parts_that_they_share_with_just_the_same_others(fresh: Fresh, cfsctl: Cfsctl) -> None:
    path = fresh()
    with Repository.open(path, write=True) as repo:
        tagging.create(repo, "again/one", "one")
        tagging.create(repo, "hidden", "two", home="private")
    found = measure(path)
    reach = names_and_reach(path, cfsctl)

    images = {image.names: image for image in found.images}
    assert sorted(name for names in images for name in names) == sorted(reach)
    assert ("again/one", "one") in {tuple(name for name in names if not name.startswith("localhost")) for names in images}
    assert [image.total.allocated for image in found.images] == sorted(
        (one.total.allocated for one in found.images), reverse=True
    )
    image_of = {name: names for names in images for name in names}
    for names, image in images.items():
        mine = set().union(*(reach[name] for name in names))
        holders = {one: {image_of[name] for name in reach if one in reach[name]} for one in mine}
        assert image.total == used(path, mine)
        assert image.freed == used(path, [one for one in mine if holders[one] == {names}]), "if all the names went"
        assert image.shared == used(path, [one for one in mine if holders[one] != {names}])
        parts: dict[frozenset[tuple[str, ...]], set[str]] = {}
        for one, owners in holders.items():
            parts.setdefault(frozenset(owners - {names}), set()).add(one)
        shared = {others: used(path, part) for others, part in parts.items() if others}
        largest = sorted((amount.allocated for amount in shared.values()), reverse=True)[:3]
        assert [one.used.allocated for one in image.shared_with] == largest
        for one in image.shared_with:
            assert one.used == shared[frozenset(image_of[name] for name in one.names)]
            assert one.more == 0


def test_what_stays_when_names_go_is_said_with_whom(mixed: Path) -> None:
    with Repository.open(mixed, write=True) as repo:
        tagging.create(repo, "again/two", "@" + manifest_of(mixed, "two"))
    alone = measure(mixed, ["again/two"])
    assert alone.without == df.Used(0, 0)
    assert sum(one.used.allocated for one in alone.staying) == next(
        row.total.allocated for row in alone.rows if row.name == "again/two"
    )
    assert all("again/two" not in one.names for one in alone.staying)
    assert {"two"} <= {name for one in alone.staying for name in one.names}

    everything = measure(mixed, [row.name for row in alone.rows])
    assert everything.staying == ()
    assert everything.without == everything.live


def test_many_names_are_counted_and_not_all_told(fresh: Fresh) -> None:
    path = fresh()
    with Repository.open(path, write=True) as repo:
        for number in range(12):
            tagging.create(repo, f"same/{number:02}", "one")
    (staying,) = measure(path, ["one", *(f"same/{number:02}" for number in range(2))]).staying[:1]

    assert len(staying.names) == 8
    assert staying.more >= 2


def test_objects_with_other_names_are_counted_once_and_noted(mixed: Path, tmp_path: Path) -> None:
    linked = sum(place.stat().st_nlink > 1 for place in object_paths(mixed).values())
    before = measure(mixed)
    assert before.linked == linked
    place = next(place for place in object_paths(mixed).values() if place.stat().st_nlink == 1)
    os.link(place, mixed / "another-name")
    after = measure(mixed)
    assert after.linked == before.linked + 1
    assert (after.live, after.dead) == (before.live, before.dead)


def test_extents_that_files_share_are_said_to_count_for_each(call: Run) -> None:  # noqa: F811
    assert "extents that files share by reflink" in " ".join(call("df", "--help", ok=True).out.split())


@pytest.mark.parametrize(
    ("ref", "owner"),
    [
        ("streams/refs/oci/app", "app"),
        ("streams/refs/oci/localhost%2Fbootc-x", "bootc"),
        ("streams/refs/cfs-tags/tags/app", "app"),
        ("streams/refs/cfs-tags/leases/20990101T000000Z.0/app", "app"),
        ("streams/refs/cfs-tags/trash/20990101T000000Z.0/app", "app"),
        ("streams/refs/cfs-tags/indexes/app", "app"),
        (f"streams/refs/cfs-tags/deployments/{'0' * 128}", "deployment"),
        (f"streams/refs/cfs-tags/configs/{'0' * 128}", "deployment"),
        (f"streams/refs/cfs-tags/bound/{'0' * 128}/app", "deployment"),
        ("streams/refs/ostree/x", "foreign"),
        ("streams/refs/cfs-tags/later", "foreign"),
    ],
)
def test_a_ref_has_the_same_owner_for_df_and_fsck(mixed: Path, ref: str, owner: str) -> None:
    before = {row.name: row.owner for row in measure(mixed).rows}
    link_of(mixed, ref, "gone")

    rows = {row.name: row.owner for row in measure(mixed).rows}
    broken = [found.owner for found in check(mixed).roots.broken if found.path == ref]

    assert [rows[name] for name in rows if name not in before] == [owner]
    assert broken == [owner]


def test_what_cannot_be_followed_is_said(mixed: Path) -> None:
    link_of(mixed, "streams/refs/oci/dangling", f"oci-manifest-sha256:{'00' * 32}")
    (mixed / "images/refs/a-file").write_text("no link")
    found = measure(mixed)
    first, second = sorted(found.problems)
    assert first == "images/refs/a-file is no link"
    assert second.endswith("is gone")
    assert next(row for row in found.rows if row.name == "dangling").total == df.Used(0, 0)


def test_a_deployment_is_one_name_and_counts_before_it_has_its_ref(
    cfsctl: Cfsctl,
    tmp_path: Path,
    call: Run,  # noqa: F811
) -> None:
    host = fill_three(new_host(tmp_path / "host", fill_hosts(cfsctl, tmp_path / "pool")))
    host.untag_bootc()
    words = ("--sysroot", host.root, "df", *host.options, "--json")
    settle()

    unadopted = call(*words).result
    collect(host.repo, lambda: view_of(host))
    adopted = call(*words).result

    names = {f"@deployment/{host.id(name)}" for name in ("same", "old", "new")}
    for found in (unadopted, adopted):
        assert names <= {row["name"] for row in found["names"]}
        assert {row["owner"] for row in found["names"] if row["name"] in names} == {"deployment"}
    assert adopted["garbage"]["objects"] == 0
    assert unadopted["live"] == adopted["live"]


def test_what_would_stop_a_collection_is_named_and_the_rest_is_measured(
    cfsctl: Cfsctl,
    tmp_path: Path,
    call: Run,  # noqa: F811
) -> None:
    host = fill_three(new_host(tmp_path / "host", fill_hosts(cfsctl, tmp_path / "pool")))
    (host.root / "state").rename(host.root / "elsewhere")
    tag = next(iter(host.pool.apps))

    for words in (("df", *host.options), ("why", tag)):
        found = call("--sysroot", host.root, *words, "--json")
        assert found.status == 0
        assert any("state/deploy" in problem for problem in found.result["problems"])
    assert call("--sysroot", host.root, "gc", *host.options, "--json").status == 4
