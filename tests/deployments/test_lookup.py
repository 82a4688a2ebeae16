"""Which manifest a deployment was made from: order of the sources, order of the candidates, ambiguity, and what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.sysroots import BOOTC, Host, imginfo_text, origin_text

if TYPE_CHECKING:
    from cli.conftest import Run
    from deployments.conftest import Hosts, On


@pytest.fixture
def rivals(hosts_of: Hosts) -> Host:
    """One deployment, whose image three manifests with different configs were made into."""
    host = hosts_of("rivals")
    host.deploy("one", digest=False)
    host.boot_entries("one")
    host.boot("one")
    return host


# -- order -------------------------------------------------------------------------------------------------------------


def test_the_ref_goes_before_the_origin(on: On, three: Host) -> None:
    on(three, "migrate", ok=True)
    three.origin("same").write_text(origin_text(three.pool.images["new"]))

    found = on(three, "lookup", "booted", "--json").result

    assert (found["manifest"], found["source"]) == (three.pool.images["same"].manifest, "ref")


def test_with_a_ref_the_origin_is_not_needed(on: On, three: Host) -> None:
    on(three, "migrate", ok=True)
    for name in ("same", "old", "new"):
        three.origin(name).unlink()
    three.untag_bootc()

    for name in ("same", "old", "new"):
        found = on(three, "lookup", three.id(name), "--json").result
        assert (found["manifest"], found["source"]) == (three.pool.images[name].manifest, "ref")


def test_the_origin_goes_before_the_image(on: On, rivals: Host) -> None:
    rivals.origin("one").write_text(origin_text(rivals.pool.images["two"]))

    found = on(rivals, "lookup", "booted", "--json").result

    assert (found["manifest"], found["source"]) == (rivals.pool.images["two"].manifest, "origin")


def test_an_origin_whose_manifest_is_gone_is_said_and_the_next_source_asked(on: On, rivals: Host) -> None:
    gone = "sha256:" + "0" * 64
    text = origin_text(rivals.pool.images["one"]).replace(rivals.pool.images["one"].manifest, gone)
    rivals.origin("one").write_text(text)

    said = on(rivals, "lookup", "booted", "--json")
    found = said.json["result"]

    assert said.status == 4
    assert found["source"] == "image"
    assert f"the origin names {gone}, which is gone" in found["notes"]


def test_imginfo_finds_the_manifest_where_no_config_names_the_image(on: On, cfsctl: object, hosts_of: Hosts) -> None:
    host = hosts_of()
    host.deploy("old", digest=False)
    host.boot_entries("old")
    # a deployment that was made from other files than the manifest's: its id is in no config
    other = "ab" * 64
    home = host.state("old").rename(host.state("old").with_name(other))
    (home / f"{host.id('old')}.origin").rename(home / f"{other}.origin")
    (home / f"{other}.imginfo").write_text(imginfo_text(host.pool.images["old"]))

    found = on(host, "lookup", other, "--json").result

    assert (found["manifest"], found["source"]) == (host.pool.images["old"].manifest, "imginfo")
    assert "no config in the repository names its EROFS image" in found["notes"]


def test_without_any_manifest_the_parsed_copies_of_imginfo_are_shown(on: On, three: Host) -> None:
    deployed = three.pool.images["old"]
    (three.repo / "streams" / f"oci-manifest-{deployed.manifest}").unlink()

    said = on(three, "lookup", "rollback", "--json")

    assert said.status == 4
    assert said.json["result"]["imginfo"] == {"manifest": deployed.image.manifest, "config": deployed.image.config}
    assert f"no manifest has the config {deployed.image.config_digest} that .imginfo names" in said.json["result"]["notes"]
    assert ".imginfo" in on(three, "lookup", "rollback").out


# -- several manifests -------------------------------------------------------------------------------------------------


def test_different_configs_are_ambiguous_and_said_to_be(on: On, rivals: Host) -> None:
    said = on(rivals, "lookup", "booted")
    found = on(rivals, "lookup", "booted", "--json").json["result"]
    digests = sorted(deployed.manifest for deployed in rivals.pool.images.values())

    assert said.status == 4
    assert (found["manifest"], found["ambiguous"]) == (None, True)
    assert found["candidates"] == digests
    assert all(digest in said.out or digest in said.err for digest in digests)


def test_candidates_are_in_the_order_of_their_tags(on: On, rivals: Host) -> None:
    """bootc's own first, then the one named like the image of the origin, other tags by name, untagged ones by digest."""
    one, two, three = (rivals.pool.images[name].manifest for name in ("one", "two", "three"))
    rivals.tag("a", three)
    rivals.tag(f"docker://{rivals.pool.images['one'].reference}", two)
    rivals.tag(BOOTC + one, one)

    found = on(rivals, "lookup", "booted", "--json").json["result"]

    assert found["candidates"] == [one, two, three]

    rivals.untag("a")
    rivals.untag(BOOTC + one)
    rivals.tag("b", one)
    found = on(rivals, "lookup", "booted", "--json").json["result"]

    assert found["candidates"] == [two, one, three]


def test_imginfo_settles_which_config(on: On, rivals: Host) -> None:
    (rivals.state("one") / f"{rivals.id('one')}.imginfo").write_text(imginfo_text(rivals.pool.images["two"]))

    found = on(rivals, "lookup", "booted", "--json").result

    assert (found["manifest"], found["ambiguous"]) == (rivals.pool.images["two"].manifest, False)


def test_migrating_leaves_an_ambiguous_one_bootable_and_asks(on: On, cfsctl: object, rivals: Host) -> None:
    said = on(rivals, "migrate")

    assert said.status == 0
    assert "image only" in said.out
    assert "--manifest" in said.out
    assert all(deployed.manifest in said.out for deployed in rivals.pool.images.values())


def test_the_users_word_settles_it(on: On, rivals: Host) -> None:
    wanted = rivals.pool.images["three"].manifest
    on(rivals, "migrate", ok=True)

    said = on(rivals, "migrate", "--manifest", f"{rivals.id('one')[:12]}={wanted}", "--json").result

    assert [(row["result"], row["manifest"], row["source"]) for row in said["deployments"]] == [("migrate", wanted, "given")]
    found = on(rivals, "lookup", "booted", "--json").result
    assert (found["manifest"], found["source"]) == (wanted, "ref")


def test_adoption_leaves_an_ambiguous_one_alone(on: On, rivals: Host) -> None:
    assert on(rivals, "retire", "--json").result == {"dry_run": False, "adopted": [], "deployments": []}


def test_an_updater_is_asked_which(on: On, rivals: Host) -> None:
    from cfs_tags.cli.main import main

    assert main(["--sysroot", str(rivals.root), "create", "--deployment", rivals.id("one")]) == 4
    wanted = f"@{rivals.pool.images['one'].manifest}"
    assert main(["--sysroot", str(rivals.root), "create", "--deployment", rivals.id("one"), wanted]) == 0


# -- the user's word, wrong --------------------------------------------------------------------------------------------


def test_a_given_manifest_that_was_made_into_another_image_is_refused(on: On, three: Host) -> None:
    three.origin("old").unlink()
    wrong = three.pool.images["new"].manifest

    said = on(three, "migrate", "--manifest", f"{three.id('old')}={wrong}")

    assert said.status == 4
    assert wrong in said.err
    assert not (three.repo / "streams/refs/cfs-tags").exists()


def test_a_given_manifest_other_than_what_bootc_keeps_would_lose_content(on: On, rivals: Host) -> None:
    """The same image, so it is no mismatch; but what the origin names today would be kept by nothing."""
    rivals.origin("one").write_text(origin_text(rivals.pool.images["one"]))

    said = on(rivals, "migrate", "--manifest", f"{rivals.id('one')}={rivals.pool.images['two'].manifest}")

    assert said.status == 4
    assert "migrating would lose content" in said.err
    assert not (rivals.repo / "streams/refs/cfs-tags").exists()


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("{id}", 2),
        ("={digest}", 2),
        ("{id}=latest", 2),
        ("{id}x={digest}", 2),
        ("abcabc={digest}", 3),
        ("{id}=sha256:" + "0" * 64, 3),
    ],
)
def test_a_given_manifest_that_makes_no_sense_changes_nothing(on: On, three: Host, word: str, status: int) -> None:
    text = word.format(id=three.id("old"), digest=three.pool.images["old"].manifest)

    assert on(three, "migrate", "--manifest", text).status == status
    assert not (three.repo / "streams/refs/cfs-tags").exists()


# -- which deployment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "name"), [("booted", "same"), ("staged", "new"), ("rollback", "old")])
def test_a_deployment_is_named_by_its_state(on: On, three: Host, word: str, name: str) -> None:
    assert on(three, "lookup", word, "--json").result["id"] == three.id(name)


def test_a_deployment_is_named_by_id_prefix_or_boot_entry(on: On, three: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = three.boot_entries("same", "old")[1]
    monkeypatch.chdir(entry.parent)

    prefix = three.id("old")[:6]
    for word in (three.id("old"), prefix, f"@deployment/{prefix}", entry, f"./{entry.name}", entry.name):
        assert on(three, "lookup", word, "--json").result["id"] == three.id("old")


def test_the_name_of_a_boot_entry_means_the_active_one(
    on: On, three: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = three.boot_entries("same", "old")[1]
    monkeypatch.chdir(tmp_path)

    assert on(three, "lookup", entry.name, "--json").result["id"] == three.id("old")
    assert on(three, "lookup", "absent.conf").status == 3


def test_the_booted_deployment_is_named_by_the_start_of_its_id(call: Run, three: Host) -> None:
    words = ["--sysroot", three.root, "lookup", "booted", "--json", "--esp", "none", "--run", "none", "--booted"]

    assert call(*words, three.id("old")[:8]).result["id"] == three.id("old")
    assert call(*words, "0123abcd").status == 2
    assert call(*words, "xyz").status == 2


def test_a_prefix_of_several_exits_2_with_all_of_them(on: On, three: Host) -> None:
    for name in ("3fb1" + "0" * 124, "3fb1" + "1" * 124):
        (three.root / "state/deploy" / name).mkdir()

    said = on(three, "lookup", "3fb1", "--json")

    assert said.status == 2
    assert len(said.json["error"]["facts"]["candidates"]) >= 2


def test_a_boot_entry_of_another_system_is_not_found(on: On, three: Host, tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("title x\n")

    assert on(three, "lookup", tmp_path / "x.conf").status == 3
    assert on(three, "lookup", "rollback").status == 0


def test_nothing_staged_is_not_found(on: On, host: Host) -> None:
    host.deploy("same")

    assert on(host, "lookup", "staged").status == 3


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_stored_bytes_are_printed_as_they_are(on: On, three: Host) -> None:
    for name in ("booted", "staged", "rollback"):
        deployed = three.pool.images[{"booted": "same", "staged": "new", "rollback": "old"}[name]]

        assert on(three, "lookup", name, "--raw", "manifest", ok=True).raw == deployed.image.manifest_bytes
        assert on(three, "lookup", name, "--raw", "config", ok=True).raw == deployed.image.config_bytes

    assert on(three, "lookup", "booted", "--raw", "layers").status == 2


def test_no_stored_bytes_without_a_manifest(on: On, rivals: Host) -> None:
    said = on(rivals, "lookup", "booted", "--raw", "manifest")

    assert (said.status, said.raw) == (4, b"")


def test_the_whole_answer(on: On, three: Host) -> None:
    deployed = three.pool.images["old"]

    found = on(three, "lookup", "rollback", "--json").result

    assert {key: found[key] for key in found if key not in ("bound", "entries", "health", "places")} == {
        "id": deployed.id,
        "state": "rollback",
        "pins": [],
        "image": deployed.reference,
        "version": "old",
        "created": "2026-01-01T00:00:00Z",
        "manifest": deployed.manifest,
        "ref": "none",
        "source": "image",
        "ambiguous": False,
        "candidates": [deployed.manifest],
        "notes": ["the origin names no manifest"],
        "config": deployed.image.config_digest,
        "layers": [
            {"digest": layer.digest, "diff_id": layer.diff_id, "size": len(layer.blob)} for layer in deployed.image.layers
        ],
        "labels": {"containers.bootc": "1", "org.opencontainers.image.version": "old"},
        "annotations": {},
        "architecture": "amd64",
        "os": "linux",
    }


def test_the_text_says_image_version_source_layers_and_labels(on: On, three: Host) -> None:
    deployed = three.pool.images["old"]

    said = on(three, "lookup", "rollback", ok=True).out

    shown = [tuple(line.split()[:2]) for line in said.splitlines()]
    for pair in (
        ("Image:", deployed.reference),
        ("Version:", "old"),
        ("Manifest:", deployed.manifest),
        ("Source:", "image"),
        ("Config:", deployed.image.config_digest),
        ("Created:", "2026-01-01T00:00:00Z"),
        *(("Layer:", diff_id) for diff_id in deployed.image.diff_ids),
        ("Label:", "containers.bootc=1"),
    ):
        assert pair in shown


def test_a_look_up_writes_nothing_and_takes_no_lock(on: On, three: Host) -> None:
    from support.peers_beside import hold_exclusive
    from support.trees import tree

    before = tree(three.root)
    with hold_exclusive(three.repo):
        for words in (("deployments",), ("lookup", "booted"), ("lookup", "rollback")):
            on(three, *words, ok=True)

    assert tree(three.root) == before
