"""Why something is kept: every chain from a ref to it, exactly; and what kept the dead last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository, why
from cfs_tags.errors import TargetNotFound
from cfs_tags.why import Bounds
from cli.conftest import Run, call  # noqa: F401  (call is a fixture here too)
from support import tagging
from support.collecting import collect
from support.garbage import (
    HOSTS,
    add_stream,
    content,
    link_of,
    manifest_of,
    model,
    names,
    object_of,
    object_paths,
    parse_stream,
)
from support.peers import Cfsctl
from support.raising import raises
from support.stock import refs

Fresh = Callable[..., Path]
ONE = "streams/refs/oci/one"


def explain(path: Path, text: str, inside: str | None = None, bounds: Bounds = Bounds()) -> why.Why:  # noqa: B008
    with Repository.open(path) as repo, repo.locked("shared"):
        return why.explain(repo, text, inside, bounds=bounds)


def kinds(answer: why.Why) -> set[tuple[str, ...]]:
    return {tuple(step.kind for step in chain) for chain in answer.chains}


def roots(answer: why.Why) -> set[str]:
    return {chain[0].name for chain in answer.chains}


@pytest.fixture
def own(repo: Path) -> dict[str, str]:
    """What only ``one`` leads to: its streams, and an object of its layer."""
    manifest = object_of(repo, ONE)
    found = parse_stream(content(repo, manifest).read_bytes(), 64)
    others = {target for tag in ("two", "three") for target in named(repo, object_of(repo, f"streams/refs/oci/{tag}")).values()}
    layer = next(target for key, target in found.named.items() if key.startswith("sha256:") and target not in others)
    config = next(target for key, target in found.named.items() if key.startswith("config:"))
    file = next(iter(parse_stream(content(repo, layer).read_bytes(), 64).objects))
    erofs = next(target for key, target in named(repo, config).items() if key.startswith("composefs.image"))
    return {"manifest": manifest, "config": config, "layer": layer, "file": file, "erofs": erofs}


def named(repo: Path, object_id: str) -> dict[str, str]:
    return parse_stream(content(repo, object_id).read_bytes(), 64).named


def test_an_object_has_a_chain_for_each_way_to_it(repo: Path, own: dict[str, str]) -> None:
    for text in (own["file"], own["file"][:40]):
        answer = explain(repo, text)
        assert answer.live
        assert answer.present
        assert answer.objects == (own["file"],)
        assert roots(answer) == {ONE}
        assert kinds(answer) == {
            ("ref", "manifest", "layer", "object"),
            ("ref", "manifest", "config", "layer", "object"),
        }
        assert {chain[-1].object for chain in answer.chains} == {own["file"]}


def test_streams_digests_tags_and_images_have_theirs(repo: Path, own: dict[str, str]) -> None:
    digest = manifest_of(repo, "one")
    config = next(key.removeprefix("config:") for key in named(repo, own["manifest"]) if key.startswith("config:"))
    diff_id = next(key for key, target in named(repo, own["manifest"]).items() if target == own["layer"])
    assert kinds(explain(repo, "one")) == {("ref", "manifest")}
    assert kinds(explain(repo, digest)) == {("ref", "manifest")}
    assert kinds(explain(repo, f"@{digest}")) == {("ref", "manifest")}
    assert kinds(explain(repo, f"oci-config-{config}")) == kinds(explain(repo, config)) == {("ref", "manifest", "config")}
    assert kinds(explain(repo, diff_id)) == {("ref", "manifest", "layer"), ("ref", "manifest", "config", "layer")}
    assert kinds(explain(repo, own["erofs"])) == {("ref", "manifest", "config", "erofs")}


def test_an_image_ref_keeps_the_files_of_its_image_exactly(repo: Path, cfsctl: Cfsctl) -> None:
    name = os.path.basename(os.readlink(repo / "images/refs/tree/named"))
    said = cfsctl(repo, "--no-upgrade", "image-objects", name).stdout.split()
    for one in said:
        answer = explain(repo, one.rpartition(":")[2])
        assert ("images/refs/tree/named", name) in {(chain[0].name, chain[1].name) for chain in answer.chains}
        assert ("ref", "erofs", "object") in kinds(answer)
    assert ("ref", "stream", "erofs") in kinds(explain(repo, name)), "the ostree commit names it too"


def test_what_is_live_by_chains_is_what_stays(repo: Path, cfsctl: Cfsctl) -> None:
    for ref in (ONE, "images/refs/tree/named", f"streams/refs/oci/localhost%2Fbootc-{HOSTS[0]}"):
        (repo / ref).unlink()
    kept = model(repo, cfsctl).objects
    for object_id in sorted(object_paths(repo)):
        assert explain(repo, object_id).live == (object_id in kept), object_id


def test_a_path_in_an_image_means_its_content(repo: Path) -> None:
    answer = explain(repo, "one", "/usr/bin/one")
    assert answer.live
    assert kinds(answer) >= {("ref", "manifest", "layer", "object")}
    assert answer.target == "one:/usr/bin/one"
    image = os.path.basename(os.readlink(repo / "images/refs/tree/named"))
    assert explain(repo, image, "usr/share/1").live
    for inside in ("/usr/bin/other", "/usr", "/usr/lib/os-release"):
        with pytest.raises(TargetNotFound):
            explain(repo, "one", inside)


@pytest.mark.parametrize("how", ["delete", "move", "rename"])
def test_something_dead_is_dead_and_the_log_tells_what_kept_it_last(repo: Path, own: dict[str, str], how: str) -> None:
    digest = manifest_of(repo, "one")
    with Repository.open(repo, write=True) as opened:
        tagging.create(opened, "first", "one")
        tagging.delete(opened, ["first"])
        if how == "delete":
            tagging.delete(opened, ["one"])
        elif how == "move":
            tagging.create(opened, "one", "two", force=True)
        else:
            tagging.rename(opened, "one", "other")
            tagging.delete(opened, ["other"])
    for ref in refs(repo):
        if "oci-referrers" in ref or ref.startswith("images"):
            (repo / ref).unlink()

    for target in own.values():
        answer = explain(repo, target)
        assert not answer.live
        assert answer.present
        assert answer.chains == ()
        assert answer.last is not None
        assert answer.last.manifest == digest
        assert answer.last.ref == ("streams/refs/oci/other" if how == "rename" else ONE)
        assert answer.last.action == ("move" if how == "move" else "delete")


@pytest.mark.parametrize("home", ["leases", "trash"])
def test_what_only_a_ref_keeps_that_has_run_out_is_dead_as_it_is_for_a_collection(
    repo: Path,
    call: Run,  # noqa: F811
    home: str,
) -> None:
    one = manifest_of(repo, "one")
    (repo / "streams/refs/oci/one").unlink()
    shutil.rmtree(repo / "streams/refs/oci-referrers")
    top = f"streams/refs/cfs-tags/{home}"
    link_of(repo, f"{top}/20990101T000000Z.0/name", f"oci-manifest-{one}")
    command = ("--repo", repo, "why", f"oci-manifest-{one}", "--json")
    kept = json.loads(call(*command).out)["result"]
    assert (kept["live"], kept["chains"][0][0]["name"]) == (True, f"{top}/20990101T000000Z.0/name")
    shutil.rmtree(repo / top)
    link_of(repo, f"{top}/20200101T000000Z.0/name", f"oci-manifest-{one}")

    said = json.loads(call(*command).out)["result"]

    assert (said["live"], said["chains"]) == (False, [])
    assert (said["last_kept_by"]["ref"], said["last_kept_by"]["action"]) == (f"{top}/20200101T000000Z.0/name", "expire")
    collect(repo)
    assert f"oci-manifest-{one}" not in names(repo, "streams")


def test_what_no_entry_tells_of_is_just_dead(repo: Path) -> None:
    dead = add_stream(repo, "nobodys", objects=[b"n" * 200])
    answer = explain(repo, dead)
    assert (answer.live, answer.present, answer.last) == (False, True, None)
    absent = explain(repo, "ab" * 64)
    assert (absent.live, absent.present, absent.last) == (False, False, None)


def test_a_prefix_of_several_objects_is_ambiguous(repo: Path) -> None:
    for end in ("00", "11"):
        (repo / "objects/ab").mkdir(exist_ok=True)
        (repo / "objects/ab" / ("cd" * 62 + end)).write_bytes(b"")
    with raises("ambiguous-name") as error:
        explain(repo, "abcdcd")
    assert len(error.value.candidates) == 2
    with pytest.raises(TargetNotFound):
        explain(repo, "abcdff")
    add_stream(repo, f"oci-layer-sha256:abcdcd{'0' * 58}", objects=[b"n" * 200])
    with raises("ambiguous-name") as error:
        explain(repo, "abcdcd")
    assert len(error.value.candidates) == 3
    assert len(explain(repo, "sha256:abcdcd").objects) == 1


def test_what_cannot_be_followed_is_said(repo: Path, own: dict[str, str]) -> None:
    content(repo, own["config"]).unlink()
    (repo / "streams/refs/a-file").write_text("no link")
    answer = explain(repo, own["file"])
    assert kinds(answer) == {("ref", "manifest", "layer", "object")}
    assert "streams/refs/a-file is no link" in answer.problems
    assert any(own["config"][:12] in problem for problem in answer.problems)


# -- hostile repositories ----------------------------------------------------------------------------------------------


def test_streams_that_lead_to_each_other_are_no_trouble_and_hide_no_chain(repo: Path) -> None:
    """Digests cannot make a circle; links can: a layer's name may lead to the very stream that names it."""
    diff_id = f"sha256:{'77' * 32}"
    inner = add_stream(repo, "inner", objects=[b"wanted" * 50])
    first = add_stream(repo, "first", objects=[b"first" * 50], named={diff_id: inner, "inner": inner})
    second = add_stream(repo, "second", objects=[b"second" * 50], named={diff_id: first})
    (repo / "streams" / f"oci-layer-{diff_id}").symlink_to(os.readlink(repo / "streams/second"))
    link_of(repo, "streams/refs/a", "first")
    link_of(repo, "streams/refs/b", "second")
    wanted = next(iter(parse_stream(content(repo, first).read_bytes(), 64).objects))
    for object_id in (inner, first, second, wanted):
        answer = explain(repo, object_id)
        assert roots(answer) == {"streams/refs/a", "streams/refs/b"}, object_id
        assert len(set(answer.chains)) == len(answer.chains)
        for chain in answer.chains:
            steps = [step.object for step in chain[1:]]
            assert len(set(steps)) == len(steps)


def test_a_great_many_chains_are_cut_off(repo: Path) -> None:
    wanted = add_stream(repo, "level-0", objects=[b"wanted" * 50])
    level = [wanted, wanted]
    for depth in range(1, 40):
        level = [
            add_stream(repo, f"level-{depth}-{side}", inside=side.encode(), named={"x": level[0], "y": level[1]})
            for side in "lr"
        ]
    link_of(repo, "streams/refs/deep", "level-39-l")

    answer = explain(repo, wanted, bounds=Bounds(chains=500))

    assert answer.live
    assert len(answer.chains) == 500
    assert any("more" in problem for problem in answer.problems)


@pytest.mark.parametrize("shape", ["row", "levels", "mesh", "refs"])
def test_the_answer_is_bounded_however_long_its_chains_are(repo: Path, shape: str) -> None:
    """A few hundred streams make more steps than fit into any memory; those that are listed come to an end."""
    row = [add_stream(repo, "level-0", objects=[b"wanted" * 50])]
    wanted = next(iter(parse_stream(content(repo, row[0]).read_bytes(), 64).objects))
    for depth in range(1, 120):
        named = {f"n{number}": one for number, one in enumerate(row[-3:] if shape == "mesh" else row[-1:])}
        if shape == "levels" and depth % 2:
            sides = [add_stream(repo, f"side-{depth}-{side}", inside=side.encode(), named=named) for side in "lr"]
            named = {"l": sides[0], "r": sides[1]}
        objects = [b"wanted" * 50] if shape != "levels" else []
        row.append(add_stream(repo, f"level-{depth}", inside=b"%d" % depth, objects=objects, named=named))
    link_of(repo, "streams/refs/top", f"level-{119}")
    if shape == "refs":
        for number in range(100):
            link_of(repo, f"streams/refs/more/{number}", f"level-{119 - number}")

    answer = explain(repo, wanted, bounds=Bounds(steps=3000))

    assert answer.live
    assert 0 < sum(map(len, answer.chains)) <= 3000
    assert any("3000 steps" in problem for problem in answer.problems)


def test_one_chain_is_told_however_long_it_is(repo: Path) -> None:
    last = wanted = add_stream(repo, "row-0", objects=[b"wanted" * 50])
    for depth in range(1, 20):
        last = add_stream(repo, f"row-{depth}", named={"next": last})
    link_of(repo, "streams/refs/row", "row-19")

    answer = explain(repo, wanted, bounds=Bounds(steps=5))

    assert [len(chain) for chain in answer.chains] == [21]
    assert answer.problems == ()


def test_streams_in_a_very_long_row_are_followed(repo: Path) -> None:
    last = wanted = add_stream(repo, "row-0", objects=[b"wanted" * 50])
    for depth in range(1, 300):
        last = add_stream(repo, f"row-{depth}", named={"next": last})
    link_of(repo, "streams/refs/row", "row-299")
    answer = explain(repo, wanted)
    assert [len(chain) for chain in answer.chains] == [301]
    assert names(repo, "streams")
