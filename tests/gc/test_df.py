"""Who takes how much: the sums of a slow model, and what a collection would free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cfs_tags import Repository, gc, tagging, usage
from cfs_tags.errors import TagNotFound
from cli.conftest import Run, call  # noqa: F401  (call is a fixture here too)
from deployments.conftest import fill_three, view_of
from fsck.damage import check
from support.collecting import collect, plan
from support.garbage import HOSTS, add_stream, content, link_of, manifest_of, model, object_paths, settle
from support.peers import Cfsctl
from support.stock import refs
from support.sysroots import fill_hosts, new_host

Fresh = Callable[..., Path]


def measure(path: Path, without: Iterable[str] = ()) -> usage.Usage:
    with Repository.open(path) as repo, repo.locked("shared"):
        return usage.measure(repo, without, tuple(gc.plan_expiry(repo)))


def used(path: Path, objects: Iterable[str]) -> usage.Used:
    present = [one for one in objects if content(path, one).exists()]
    return usage.Used(len(present), sum(content(path, one).stat().st_blocks * 512 for one in present))


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
    assert found.dead == usage.Used(planned.swept.objects, planned.swept.allocated)
    assert found.dead.objects > 5
    done = collect(mixed)
    assert found.dead == usage.Used(done.swept.objects, done.swept.allocated)
    assert measure(mixed).dead == usage.Used(0, 0)


def test_without_is_what_deleting_them_together_frees(mixed: Path) -> None:
    assert measure(mixed).without is None
    alone = measure(mixed, ["one"]).without
    assert alone == usage.Used(0, 0), "another tag has the same"
    found = measure(mixed, ["one", "again/one", "hidden", "two"])
    before = measure(mixed).dead
    with Repository.open(mixed, write=True) as repo:
        tagging.delete(repo, ["one", "again/one", "hidden", "two"])
    after = measure(mixed).dead
    assert found.without == usage.Used(after.objects - before.objects, after.allocated - before.allocated)
    with pytest.raises(TagNotFound):
        measure(mixed, ["nobody"])


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
    assert next(row for row in found.rows if row.name == "dangling").total == usage.Used(0, 0)


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
