"""What foreign and damaged files come to: a row or an error that names file and reason, nothing changed, no traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.sysroots import BOOTC, KERNEL_ARGUMENTS, Host, entry_text, origin_text, uki
from support.trees import tree

if TYPE_CHECKING:
    from cli.conftest import Said
    from deployments.conftest import On


def rows(on: On, host: Host) -> dict[str, Any]:
    return {row["id"]: row for row in on(host, "deployments", "--json", ok=True).json["result"]["deployments"]}


def finding(row: Any, code: str) -> str:
    return next(finding["message"] for finding in row["health"] if finding["code"] == code)


@pytest.fixture
def two(host: Host) -> Host:
    """Booted ``same``, rollback ``old``."""
    host.deploy("same")
    host.deploy("old")
    host.boot_entries("same", "old")
    host.boot("same")
    return host


# -- origins -----------------------------------------------------------------------------------------------------------


def test_of_a_key_that_stands_there_twice_the_last_counts_and_the_row_says_so(on: On, two: Host) -> None:
    wanted = two.pool.images["old"].manifest
    other = two.pool.images["same"].manifest
    two.origin("old").write_text(f"[image]\nmanifest_digest={other}\n" + origin_text(two.pool.images["old"]))

    row = rows(on, two)[two.id("old")]

    assert row["manifest"] == wanted
    assert "several values" in finding(row, "origin-odd")


def test_line_ends_of_another_system_are_line_ends(on: On, two: Host) -> None:
    two.origin("old").write_bytes(origin_text(two.pool.images["old"]).replace("\n", "\r\n").encode())

    assert rows(on, two)[two.id("old")]["manifest"] == two.pool.images["old"].manifest
    assert on(two, "lookup", two.id("old"), "--json").result["source"] == "origin"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"manifest_digest\n", "[section], key = value"),
        (b"[image\nmanifest_digest = sha256:00\n", "section that ends in ]"),
        (b"\xff\xfe[\0o\0r\0", "UTF-8"),
        (b"# " + b"x" * (10 << 20), "at most 65536 bytes"),
    ],
    ids=["no section", "half a section", "not UTF-8", "10 MB"],
)
def test_an_origin_that_cannot_be_read_is_a_marked_row_that_migrates_all_the_same(
    on: On, two: Host, content: bytes, reason: str
) -> None:
    two.origin("old").write_bytes(content)

    row = rows(on, two)[two.id("old")]
    message = finding(row, "origin-unreadable")
    found = on(two, "lookup", two.id("old"), "--json").result

    assert str(two.origin("old")) in message
    assert reason in message
    assert (found["manifest"], found["source"]) == (two.pool.images["old"].manifest, "image")
    assert any(str(two.origin("old")) in note for note in found["notes"])
    assert {row["result"] for row in on(two, "migrate", "--json").result["deployments"]} == {"migrate"}
    assert two.origin("old").read_bytes() == content


def test_a_digest_in_the_origin_that_is_none_is_said_and_not_followed(on: On, two: Host) -> None:
    two.origin("old").write_text("[image]\nmanifest_digest = latest\n")

    row = rows(on, two)[two.id("old")]
    on(two, "migrate", "--write-origin", ok=True)

    assert "manifest_digest: 'latest' is not a digest" in " ".join(one["message"] for one in row["health"])
    assert two.origin("old").read_text() == "[image]\nmanifest_digest = latest\n"


def test_an_origin_that_is_a_link_is_not_followed(on: On, two: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(origin_text(two.pool.images["same"]))
    two.origin("old").unlink()
    two.origin("old").symlink_to(elsewhere)

    row = rows(on, two)[two.id("old")]
    on(two, "migrate", "--write-origin", ok=True)

    assert "found a link" in finding(row, "origin-unreadable")
    assert on(two, "lookup", two.id("old"), "--json").result["manifest"] == two.pool.images["old"].manifest
    assert elsewhere.read_text() == origin_text(two.pool.images["same"])


def test_control_sequences_in_an_image_name_do_not_reach_the_terminal(on: On, two: Host) -> None:
    two.origin("old").write_text(origin_text(two.pool.images["old"]).replace("quay.io", "quay.io/\x1b[31mred"))

    for command in (("deployments",), ("lookup", two.id("old")), ("migrate", "--dry-run")):
        assert b"\x1b" not in on(two, *command).raw


# -- imginfo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "wanted JSON"),
        ('{"manifest": "not JSON", "config": {}}', "an object at /manifest"),
        ('{"manifest": {"layers": []}, "config": {}}', "an object at /manifest/config"),
        ("[" * 100_000, "too many levels"),
    ],
    ids=["empty", "manifest is text", "no config", "deep"],
)
def test_an_imginfo_that_cannot_be_read_is_a_note_that_names_the_file(on: On, two: Host, content: str, reason: str) -> None:
    path = two.state("old") / f"{two.id('old')}.imginfo"
    two.origin("old").write_text(origin_text(two.pool.images["old"], digest=False))
    path.write_text(content)

    found = on(two, "lookup", two.id("old"), "--json").result

    assert found["manifest"] == two.pool.images["old"].manifest
    assert any(path.name in note and reason in note for note in found["notes"]), found["notes"]


# -- state directories -------------------------------------------------------------------------------------------------


def test_a_state_directory_that_is_a_link_is_not_followed_and_counts_as_there(on: On, two: Host, tmp_path: Path) -> None:
    on(two, "migrate", ok=True)
    two.undeploy("old")
    away = tmp_path / "away"
    away.mkdir()
    (away / f"{two.id('old')}.origin").write_text("[image]\nmanifest_digest = sha256:" + "0" * 64)
    (away / f"{two.id('old')}.imginfo").write_text("{}")
    two.state("old").symlink_to(away)
    before = tree(away)

    shown = on(two, "deployments", "--json", ok=True).json["result"]
    found = on(two, "lookup", two.id("old"), "--json").result
    kept = on_retire(on, two)

    assert [one["code"] for one in shown["findings"]] == ["state-not-a-directory"]
    assert found["notes"] == []
    assert kept[two.id("old")][0] == "kept"
    assert tree(away) == before


def on_retire(on: On, host: Host) -> dict[str, tuple[str, str]]:
    host.booted = None
    said = on(host, "retire", "--grace", "0", "--json").result
    return {row["id"]: (row["result"], row["reason"]) for row in said["deployments"]}


def test_a_link_in_the_place_of_a_state_directory_without_a_ref_is_not_looked_into(on: On, two: Host, tmp_path: Path) -> None:
    two.undeploy("old")
    away = tmp_path / "away"
    away.mkdir()
    (away / f"{two.id('old')}.imginfo").write_text("{}")
    two.state("old").symlink_to(away)

    found = on(two, "lookup", two.id("old"), "--json").result

    assert found["manifest"] == two.pool.images["old"].manifest
    assert not any("imginfo: " in note for note in found["notes"])


@pytest.mark.parametrize("name", ["ab" * 32, "ab" * 63, "AB" * 64, "old", ".tmp"])
def test_a_state_directory_of_another_name_is_a_finding_and_no_deployment(on: On, two: Host, name: str) -> None:
    (two.root / "state/deploy" / name).mkdir()

    shown = on(two, "deployments", "--json", ok=True).json["result"]

    assert {row["id"] for row in shown["deployments"]} == {two.id("same"), two.id("old")}
    assert [one["code"] for one in shown["findings"]] == ["not-a-deployment"]
    assert name in shown["findings"][0]["message"]


@pytest.mark.parametrize("text", ["ab" * 32, "ab" * 65, "f" * 128])
def test_an_id_that_nothing_has_is_not_found(on: On, two: Host, text: str) -> None:
    assert on(two, "lookup", text).status == 3


@pytest.mark.parametrize("text", ["", "xyz", "ABCDEF", "old deployment", "../x"])
def test_what_is_no_id_is_a_usage_error_or_not_found(on: On, two: Host, text: str) -> None:
    assert on(two, "lookup", "--", text).status in (2, 3)


def test_booted_takes_a_whole_id_or_the_start_of_one_that_is_there(on: On, two: Host) -> None:
    two.booted = "ab" * 32

    said = on(two, "deployments")

    assert said.status == 2
    assert "whole ids have 128 digits" in said.err

    two.booted = "z" * 128
    assert on(two, "deployments").status == 2


# -- boot entries ------------------------------------------------------------------------------------------------------


def test_an_entry_with_two_images_counts_for_both_and_is_marked(on: On, two: Host) -> None:
    path = two.boot_entries("same", "old")[1]
    path.write_text(entry_text(two.id("old")).rstrip() + f" composefs={two.id('new')}\n")

    shown = on(two, "deployments", "--json", ok=True).json["result"]

    by_id = {row["id"]: row for row in shown["deployments"]}
    assert "boot-entry" in by_id[two.id("new")]["places"]
    assert "boot-entry" in by_id[two.id("old")]["places"]
    assert "boot-entry-ambiguous" in {one["code"] for one in by_id[two.id("old")]["health"]}
    assert str(path) in finding(by_id[two.id("old")], "boot-entry-ambiguous")


def test_two_forms_of_one_image_are_no_ambiguity(on: On, two: Host) -> None:
    """Newer images name themselves by both digests; only ours is looked for."""
    path = two.boot_entries("same", "old")[1]
    path.write_text(entry_text(two.id("old")).rstrip() + f" composefs.digest=v1-sha256-12:{'ab' * 32}\n")

    row = rows(on, two)[two.id("old")]

    assert row["state"] == "rollback"
    assert [one["path"] for one in row["entries"]] == [str(path)]
    assert {one["code"] for one in row["health"]} == {"no-ref"}


def test_an_entry_that_bootc_cannot_read_is_marked(on: On, two: Host) -> None:
    path = two.boot_entries("same", "old")[1]
    path.write_text(entry_text(two.id("old")).replace("version 1\n", ""))

    assert "no version" in json.dumps(rows(on, two)[two.id("old")]["health"])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"title x\n" + b"#" * (1 << 17)], ids=["not UTF-8", "long"])
def test_an_entry_that_cannot_be_read_hides_no_other_and_may_boot_anything(on: On, two: Host, content: bytes) -> None:
    bad = two.root / "boot/loader/entries/aaa.conf"
    bad.write_bytes(content)

    shown = on(two, "deployments", "--json", ok=True).json["result"]

    assert {row["state"] for row in shown["deployments"]} == {"booted", "rollback"}
    assert [one["code"] for one in shown["findings"]] == ["boot-entry-unreadable"]
    assert str(bad) in [one["path"] for one in shown["places"] if one["not_read"]]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_bytes(b"#" * (2 << 20)),
        lambda path: path.write_text('menuentry "x" {\n'),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
    ],
    ids=["link", "long", "no end", "directory", "pipe"],
)
def test_a_grub_configuration_that_cannot_be_read_hides_no_boot_entry(
    on: On, two: Host, break_it: Callable[[Path], object]
) -> None:
    bad = two.root / "boot/grub2/user.cfg"
    break_it(bad)

    shown = on(two, "deployments", "--json", ok=True).json["result"]

    assert {row["state"] for row in shown["deployments"]} == {"booted", "rollback"}
    assert str(bad) in [one["path"] for one in shown["places"] if one["not_read"]]


@pytest.mark.parametrize("length", [0, 10, 63, 66, 90, 150])
def test_a_truncated_uki_may_boot_anything(on: On, two: Host, length: int) -> None:
    path = two.ukis("same")[0]
    path.write_bytes(uki(f"{KERNEL_ARGUMENTS} composefs={two.id('same')}")[:length])

    shown = on(two, "deployments", "--json", ok=True).json["result"]

    assert [one["code"] for one in shown["findings"]] == ["uki-unreadable"]
    assert str(path) in [one["path"] for one in shown["places"] if one["not_read"]]
    assert {row["state"] for row in shown["deployments"]} == {"booted", "rollback"}


def test_a_staged_file_that_cannot_be_read_may_name_anything(on: On, two: Host) -> None:
    (two.root / "run/composefs/staged-deployment").write_text('{"depl_id": 5}')

    shown = on(two, "deployments", "--json", ok=True).json["result"]

    assert "depl_id" in next(one["not_read"] for one in shown["places"] if one["place"] == "staged-file")


# -- repositories ------------------------------------------------------------------------------------------------------


def break_object(host: Host, name: str, content: bytes | None) -> None:
    """Replace (or remove) the splitstream of an image's manifest, without writing into the pool's file."""
    path = (host.repo / "streams" / f"oci-manifest-{host.pool.images[name].manifest}").resolve()
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("content", [None, b"", b"SplitStream" + b"\xff" * 100], ids=["gone", "empty", "garbage"])
@pytest.mark.parametrize("migrated", [False, True], ids=["no ref", "with ref"])
def test_a_damaged_manifest_is_one_marked_row_and_the_others_migrate(
    on: On, two: Host, content: bytes | None, migrated: bool
) -> None:
    if migrated:
        on(two, "migrate", ok=True)
    break_object(two, "old", content)

    row = rows(on, two)[two.id("old")]
    looked_up = on(two, "lookup", two.id("old"), "--json")
    said = on(two, "migrate", "--json").json["result"]["deployments"]

    assert {"manifest-damaged", "manifest-gone"} & {one["code"] for one in row["health"]}
    assert looked_up.status in (0, 4)
    assert "Traceback" not in looked_up.err
    results = {one["id"]: (one["result"], one["reason"]) for one in said}
    assert results[two.id("same")][0] in ("migrate", "complete")
    assert results[two.id("old")][0] == ("image-only" if not migrated else "damaged")
    assert results[two.id("old")][1]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.write_text("a file"),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("../objects/zz/x"),
    ],
    ids=["file", "directory", "absolute link", "odd link"],
)
def test_something_else_in_the_place_of_an_image_link_is_one_marked_row(
    on: On, two: Host, break_it: Callable[[Path], object]
) -> None:
    path = two.repo / "images" / two.id("old")
    path.unlink()
    break_it(path)

    assert "image-unreadable" in {one["code"] for one in rows(on, two)[two.id("old")]["health"]}
    said = on(two, "migrate", "--json")

    results = {one["id"]: (one["result"], one["reason"]) for one in said.json["result"]["deployments"]}
    assert said.status == 4
    assert results[two.id("same")][0] == "migrate"
    assert results[two.id("old")][0] == "nothing"
    assert str(path) in results[two.id("old")][1]


@pytest.mark.parametrize(
    "part", ["streams/refs/cfs-tags/deployments", "streams/refs/cfs-tags/configs", "images/refs/cfs-tags/deployments"]
)
@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: path.symlink_to("../../../oci-manifest-sha256:" + "0" * 64), "gone"),
        (lambda path: path.symlink_to("/etc/passwd"), "absolute"),
        (lambda path: path.symlink_to("../../oci/x"), "another ref"),
    ],
    ids=["dangling", "absolute", "to a ref"],
)
def test_a_part_of_a_ref_that_leads_nowhere_is_said_and_mended_by_migrating(
    on: On, two: Host, part: str, break_it: Callable[[Path], object], says: str
) -> None:
    on(two, "migrate", ok=True)
    path = two.repo / part / two.id("old")
    path.unlink()
    break_it(path)

    row = rows(on, two)[two.id("old")]
    assert row["ref"] == "broken"
    assert says in finding(row, "ref-broken") or "leads to a name" in finding(row, "ref-broken")
    on(two, "migrate", ok=True)

    assert rows(on, two)[two.id("old")]["ref"] == "complete"


def test_a_directory_in_the_place_of_a_ref_refuses_the_migration_and_is_named(on: On, two: Host) -> None:
    """The ref cannot be made, so the refs would not keep what bootc keeps."""
    path = two.repo / "streams/refs/cfs-tags/deployments" / two.id("old")
    (path / "nested").mkdir(parents=True)
    before = tree(two.root)

    assert "not a link" in finding(rows(on, two)[two.id("old")], "ref-broken")
    said = on(two, "migrate", "--dry-run")

    assert said.status == 4
    assert f"{path} is a directory, not a link" in said.err
    assert on(two, "migrate").status == 4
    assert {key: node for key, node in tree(two.root).items() if not key.startswith("composefs/cfs-tags")} == before


def test_an_unreadable_tag_elsewhere_does_not_stop_a_look_up(on: On, two: Host) -> None:
    two.origin("old").unlink()
    break_object(two, "new", b"junk")
    (two.repo / "streams/refs/oci/plain-file").write_text("")

    assert on(two, "lookup", two.id("old"), "--json").result["manifest"] == two.pool.images["old"].manifest


# -- the record of a migration -----------------------------------------------------------------------------------------


def hostile(host: Host) -> list[Any]:
    id_ = host.id("old")
    tag = f"streams/refs/oci/{BOOTC.replace('/', '%2F')}{host.pool.images['old'].manifest}"
    link = f"../../oci-manifest-{host.pool.images['old'].manifest}"
    good = {"refs": [], "directories": [], "origins": [], "finished": True}
    return [
        {**good, "refs": [[tag, link]]},
        {**good, "refs": [[f"streams/refs/cfs-tags/deployments/../../oci/{tag.rpartition('/')[2]}", link]]},
        {**good, "refs": [["../../outside", "x"]]},
        {**good, "directories": ["../outside"]},
        {**good, "directories": ["streams/refs/oci"]},
        {**good, "directories": ["objects"]},
        {**good, "origins": [["../outside", f"cfs-tags/undo/{id_}.origin"]]},
        {**good, "origins": [[f"state/deploy/{id_}/../../../outside", f"cfs-tags/undo/{id_}.origin"]]},
        {**good, "origins": [[f"state/deploy/{id_}/{id_}.origin", "../../../outside"]]},
        {**good, "refs": 5},
        {**good, "refs": [["a", "b", "c"]]},
        [],
        "text",
        None,
    ]


@pytest.mark.parametrize("number", range(14))
def test_a_record_that_names_other_paths_is_refused_and_nothing_is_touched(on: On, two: Host, number: int) -> None:
    (two.root / "outside").write_text("precious")
    on(two, "migrate", ok=True)
    record = two.repo / "cfs-tags/undo/migration.json"
    record.write_text(json.dumps(hostile(two)[number]))
    before = tree(two.root)

    said: Said = on(two, "migrate", "--undo", "--force")

    assert said.status == 6, said
    assert str(record) in said.err
    assert tree(two.root) == before


def test_a_record_that_is_no_json_is_refused(on: On, two: Host) -> None:
    on(two, "migrate", ok=True)
    (two.repo / "cfs-tags/undo/migration.json").write_bytes(b"\xff{")

    assert on(two, "migrate", "--undo").status == 6
