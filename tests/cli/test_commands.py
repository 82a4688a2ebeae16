"""What each command does, says in text, and says in JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.interrupt import kill_after
from support.trees import tree

if TYPE_CHECKING:
    from cli.conftest import Run

WEB = "quay.io/apps/web:1"
DB = "quay.io/apps/db:2"


def shared(repo: Path, name: str) -> Path:
    return repo / "streams/refs/oci" / name.replace("%", "%25").replace("/", "%2F")


def private(repo: Path, name: str) -> Path:
    return repo / "streams/refs/cfs-tags/tags" / name.replace("/", "%2F")


def object_with(repo: Path, digest: str) -> Path:
    """The object that holds the bytes of that digest, as they were fetched."""
    wanted = digest.removeprefix("sha256:")
    for path in (repo / "objects").glob("*/*"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == wanted:
            return path
    raise AssertionError(digest)


# -- create ------------------------------------------------------------------------------------------------------------


def test_create_makes_a_shared_tag_that_cfsctl_reads(run: Run, repo: Path, web: str, cfsctl: Any) -> None:
    said = run("create", "quay.io/apps/web:stable", WEB, ok=True)

    assert said.out == f"created: quay.io/apps/web:stable -> {web}\n"
    assert cfsctl.tags(repo)["quay.io/apps/web:stable"] == web


def test_create_says_in_json_what_it_did_and_to_which_refs(run: Run, web: str) -> None:
    document = run("create", "a/b:1", WEB, "--json").json

    assert document == {
        "schema": 1,
        "command": "create",
        "result": {
            "dry_run": False,
            "tags": [{"name": "a/b:1", "done": "created", "old": None, "new": web, "home": "shared"}],
            "changes": [{"ref": "streams/refs/oci/a%2Fb:1", "old": None, "new": f"../../oci-manifest-{web}"}],
        },
        "warnings": [],
    }


def test_the_same_digest_again_is_no_change_and_no_error(run: Run, web: str) -> None:
    assert run("create", WEB, f"@{web}", ok=True).out == f"unchanged: {WEB} -> {web}\n"


def test_names_of_bootcs_are_taken_as_listings_shorten_them(run: Run, repo: Path) -> None:
    (name, digest) = next((row["name"], row["digest"]) for row in run("list", "--json").result if row["owner"] == "bootc")
    short = name[: name.index(":") + 13]
    for text in (short, f"{short}…", name):
        assert run("resolve", text, ok=True).out.strip() == digest
        for words in (("show",), ("why",), ("df", "--without"), ("log",), ("create", "--dry-run", "x:1")):
            run(*words, text, ok=True)
        run("delete", text, "--owner", "bootc", "--dry-run", ok=True)
    for text in (name[: name.index(":") + 6], f"{name[:-1]}x", short.replace("sha256", "sha512"), f"{short}g"):
        assert run("resolve", text, "--json").json["error"]["code"] == "tag-not-found"
    (repo / "streams/refs/oci" / (short.replace("/", "%2F") + "f" * 52)).symlink_to(f"../../oci-manifest-{digest}")
    if short + "f" * 52 != name:
        assert run("resolve", short, "--json").json["error"]["code"] == "ambiguous-name"


def test_digits_stand_for_an_image_and_for_the_tag_that_alone_names_it(run: Run, web: str, db: str, facts: Any) -> None:
    booted = facts["booted"]
    digits, image = web[7:19], run("show", WEB, "--json").result["config_digest"][7:19]
    for text in (digits, image):
        assert run("resolve", text, ok=True).out.strip() == web
        run("show", text, ok=True)
        run("create", "--dry-run", "x:1", text, ok=True)
        run("pin", "--dry-run", text, ok=True)
        assert run("why", text, "--json").result["live"]
        assert "would free" in run("df", "--without", text, "--color", "always", ok=True).out
        assert run("delete", text, "--dry-run", ok=True).out == f"would be deleted: {WEB} (was {web})\n"
    run("create", "--deployment", booted, ok=True)
    run("show", booted[:12], ok=True)
    layer = run("show", WEB, "--json").result["layers"][0]["diff_id"]
    for text in (layer[:19], layer[7:19]):
        assert run("why", text, "--json").result["live"]
    for words in (("delete", booted[:12]), ("rename", booted[:12], "x:1"), ("rename", f"@deployment/{booted[:12]}", "x:1")):
        assert "is a deployment ref, and no tag" in run(*words).err
    for text in ("000000", "sha256:000000", "@sha256:000000"):
        assert {run(*words, text).status for words in (("delete",), ("show",), ("why",), ("pin",))} == {3}
        assert run("delete", text, "--missing-ok", ok=True).out == f"absent: {text}\n"

    run("create", "other:1", WEB, ok=True)
    for text in (digits, web, f"@{web[:13]}", image):
        assert run("delete", text, "--missing-ok", ok=True).out == f"absent: {text}\n"
        for words in (("delete", text), ("rename", text, "x:1")):
            error = run(*words, "--json").json["error"]
            assert (error["code"], error["facts"]["candidates"]) == ("ambiguous-name", ["other:1", WEB])

    assert run("rename", db[7:13], "db:new", ok=True).out == f"renamed: {DB} -> db:new\n"
    assert run("delete", f"@{db}", ok=True).out == f"deleted: db:new (was {db})\n"
    assert run("delete", f"@{db}").status == 3
    run("create", digits, f"@{db}", ok=True)
    assert run("delete", digits, ok=True).out == f"deleted: {digits} (was {db})\n"


def test_create_moves_with_force_alone(run: Run, web: str, db: str) -> None:
    assert run("create", WEB, DB).status == 4

    assert run("create", WEB, DB, "--force", ok=True).out == f"moved: {WEB} -> {db} (was {web})\n"


def test_create_compares_with_what_is_expected(run: Run, web: str, db: str) -> None:
    assert run("create", WEB, DB, "--expect", db).status == 4
    assert run("create", WEB, DB, "--expect", "absent").status == 4
    assert run("create", WEB, DB, "--expect", web).status == 0
    assert run("create", "new", DB, "--expect", "absent").status == 0


def test_create_makes_a_private_tag_when_asked(run: Run, repo: Path, web: str) -> None:
    said = run("create", "mine", WEB, "--private", ok=True)

    assert said.out == f"created: mine -> {web} (private)\n"
    assert private(repo, "mine").is_symlink()
    assert not shared(repo, "mine").is_symlink()


def test_create_makes_a_lease_that_says_when_it_ends(run: Run) -> None:
    run("create", "build/1", WEB, "--expires", "1d12h", ok=True)

    row = next(row for row in run("list", "--json").result if row["name"] == "build/1")
    assert row["home"] == "lease"
    assert row["expires"] is not None
    assert len(row["expires"]) == len("2026-01-31T12:00:00Z")
    assert f"until {row['expires']}" in run("list", "build/*", ok=True).out


def test_a_lease_that_was_interrupted_is_not_what_the_next_command_asks_for(run: Run) -> None:
    """The request for a tag is another one than that for a lease of the same name."""
    for number in count():
        run("create", "x:1", DB, "--force", ok=True)
        stopped = kill_after(number, lambda: run("create", "x:1", WEB, "--force", "--expires", "7d"))
        run("create", "x:1", WEB, "--force", ok=True)
        assert [row["expires"] for row in run("list", "x:1", "--json").result] == [None], number
        if not stopped:
            break


@pytest.mark.parametrize("text", ["", "7", "d", "7y", "-7d", "7d x", "0s", "99999999w", "1.5h"])
def test_a_duration_is_numbers_with_units(run: Run, text: str) -> None:
    said = run("create", "x", WEB, f"--expires={text}")

    assert said.status == 2
    assert "--expires" in said.err


def test_a_tag_that_goes_to_another_home_says_to_which(run: Run, web: str) -> None:
    run("create", "x", WEB, "--private", ok=True)

    assert run("create", "x", WEB, "--shared", ok=True).out == f"moved: x -> {web} (shared)\n"


def test_a_tag_of_bootc_is_moved_only_where_its_owner_is_named(run: Run, facts: Any) -> None:
    name = f"localhost/bootc-{facts['deployments'][facts['rollback']]['manifest']}"

    assert run("create", name, WEB, "--force").status == 4
    assert run("create", name, WEB, "--force", "--owner", "bootc").status == 0


def test_reason_and_user_are_in_the_log(run: Run) -> None:
    run("create", "a", WEB, "--reason", "because", ok=True)

    entry = run("log", "a", "--json").result[0]
    assert entry["reason"] == "because"
    assert entry["by"].endswith("(cfs-tag)")


# -- list --------------------------------------------------------------------------------------------------------------


def test_list_shows_every_tag_with_its_owner(run: Run, facts: Any) -> None:
    rows = run("list", "--json").result

    assert {row["name"]: (row["digest"], row["owner"], row["home"]) for row in rows} == {
        **{
            f"localhost/bootc-{host['manifest']}": (host["manifest"], "bootc", "shared")
            for host in facts["deployments"].values()
        },
        **{name: (app["manifest"], "app", "shared") for name, app in facts["apps"].items()},
    }
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)


def test_list_takes_globs_that_cross_slashes(run: Run) -> None:
    assert [row["name"] for row in run("list", "quay.io/*", "--json").result] == [DB, WEB]
    assert [row["name"] for row in run("list", "*:1", "*db:[0-9]", "--json").result] == [DB, WEB]
    assert run("list", "QUAY*", "--json").result == []


def test_nothing_found_is_no_error(run: Run) -> None:
    assert run("list", "nothing*").status == 0


def test_list_by_owner(run: Run) -> None:
    assert {row["owner"] for row in run("list", "--owner", "bootc", "--json").result} == {"bootc"}


def test_foreign_refs_are_listed_when_all_are_asked_for(run: Run, repo: Path, web: str) -> None:
    place = repo / "streams/refs/other/deep"
    place.mkdir(parents=True)
    os.symlink(f"../../../oci-manifest-{web}", place / "x")

    assert all(row["owner"] != "foreign" for row in run("list", "--json").result)
    (foreign,) = run("list", "--owner", "foreign", "--json").result
    assert (foreign["name"], foreign["digest"]) == ("streams/refs/other/deep/x", web)
    assert foreign in run("list", "--all", "--json").result


def test_list_by_what_it_points_at(run: Run, web: str) -> None:
    run("create", "second", WEB, ok=True)

    for target in (WEB, f"@{web[:15]}", web):
        assert [row["name"] for row in run("list", "--points-at", target, "--json").result] == [WEB, "second"]


def test_tags_of_a_manifest_that_is_gone_are_found_by_its_digest(run: Run, repo: Path) -> None:
    gone = f"sha256:{'0' * 64}"
    os.symlink(f"../../oci-manifest-{gone}", shared(repo, "left"))

    (row,) = run("list", "--points-at", gone, "--json").result
    assert row["name"] == "left"
    assert row["problem"].startswith("dangling")


@pytest.mark.parametrize("key", ["name", "digest", "owner", "home", "created"])
def test_list_sorts_by_any_key_and_backwards(run: Run, key: str) -> None:
    run("create", "z", WEB, "--private", ok=True)
    rows = run("list", "--long", "--sort", key, "--json").result

    assert [(row[key], row["name"]) for row in rows] == sorted((row[key], row["name"]) for row in rows)
    assert run("list", "--long", "--sort", f"-{key}", "--json").result == rows[::-1]


def test_format_makes_a_line_of_each_row(run: Run, web: str, db: str) -> None:
    said = run("list", "quay.io/*", "--format", "{name} {digest}", ok=True)
    assert said.out == f"{DB} {db}\n{WEB} {web}\n"

    said = run("list", WEB, "--format", r"100% {{{os}/{architecture}}}\t{layer_count} {problem}", ok=True)
    assert said.out == "100% {linux/amd64}\t2 -\n"

    assert run("list", "quay.io/*", "--format", "x", ok=True).out == "x\nx\n"


def test_a_long_list_has_the_facts_of_cfsctl(run: Run, repo: Path, cfsctl: Any) -> None:
    rows = run("list", "--json", "--long").result
    theirs = cfsctl.json(repo, "--no-upgrade", "oci", "images", "--json")["images"]

    keys = ("name", "is_container", "architecture", "os", "created", "layer_count", "referrer_count")
    ours = [{**{key: row[key] for key in keys}, "manifest_digest": row["digest"]} for row in rows]
    assert sorted(ours, key=lambda row: row["name"]) == sorted(theirs, key=lambda row: row["name"])


def test_a_broken_tag_is_a_row_with_its_problem(run: Run, repo: Path) -> None:
    (repo / "streams/refs/oci/file").write_text("no link")
    os.symlink("/etc/passwd", repo / "streams/refs/oci/absolute")

    rows = {row["name"]: row for row in run("list", "--long", "--json").result}
    assert rows["file"]["digest"] is None
    assert "no link" in rows["file"]["problem"]
    assert "absolute" in rows["absolute"]["problem"]
    assert rows["absolute"]["is_container"] is None
    assert rows[WEB]["problem"] is None


def test_a_tag_whose_image_cannot_be_read_is_a_row_with_its_problem(run: Run, repo: Path, web: str) -> None:
    object_with(repo, web).write_bytes(b"{}")

    rows = {row["name"]: row for row in run("list", "--long", "--json").result}
    assert "wanted" in rows[WEB]["problem"]
    assert rows[DB]["problem"] is None
    assert "problem: " in run("list", WEB, "--long", ok=True).out


def test_jsonl_is_one_object_a_line(run: Run) -> None:
    said = run("list", "--jsonl", ok=True)

    assert [json.loads(line) for line in said.lines] == run("list", "--json").result


def test_piped_rows_are_aligned_and_whole(run: Run, web: str) -> None:
    lines = run("list", "quay.io/*", ok=True).lines

    start = lines[0].index("DIGEST")
    assert lines[0].startswith("NAME ")
    assert lines[2][start:].split() == [web, "app", "shared"]


# -- show and resolve --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["a", "i3", "life-staged", "w2"])
def test_show_agrees_with_cfsctl(call: Run, bootc_host: Any, cfsctl: Any, host: str) -> None:
    repo = bootc_host(host) / "composefs"
    names = [row["name"] for row in call("--repo", repo, "list", "--json").result if row["problem"] is None]
    assert names

    for name in names:
        ours = call("--repo", repo, "show", name, "--json").result
        theirs = cfsctl.json(repo, "--no-upgrade", "oci", "inspect", name)
        assert {key: ours[key] for key in theirs} == theirs


def test_show_says_everything_about_an_image(run: Run, facts: Any) -> None:
    run("create", "z", f"@{facts['deployments'][facts['staged']]['manifest']}", "--private", ok=True)
    host = facts["deployments"][facts["staged"]]

    shown = run("show", "z", "--json").result

    assert shown["digest"] == host["manifest"]
    assert shown["is_container"] is True
    assert (shown["os"], shown["architecture"], shown["created"]) == ("linux", "amd64", "2026-01-01T00:00:00Z")
    assert shown["labels"]["containers.bootc"] == "1"
    assert [(image["kind"], image["version"], image["id"]) for image in shown["erofs"]] == [
        ("boot", 1, facts["staged"]),
        ("plain", 1, host["plain_image"]),
    ]
    assert shown["composefs_boot_erofs"] == facts["staged"]
    assert [layer["diff_id"] is not None and layer["object"] is not None for layer in shown["layers"]] == [True, True]
    assert shown["sizes"]["total"] == sum(shown["sizes"][key] for key in ("manifest", "config", "layers"))
    assert shown["sizes"]["layers"] == sum(layer["size"] for layer in shown["layers"])
    assert [tag["name"] for tag in shown["named_by"]] == [f"localhost/bootc-{host['manifest']}", "z"]
    assert json.loads(shown["manifest"])["config"]["digest"] == shown["config_digest"]
    assert hashlib.sha256(shown["config"].encode()).hexdigest() == shown["config_digest"].removeprefix("sha256:")


def test_show_as_text_names_the_same_things(run: Run, web: str) -> None:
    shown = run("show", WEB, "--json").result
    text = run("show", WEB, ok=True).out

    for value in (web, shown["object"], shown["config_digest"], shown["composefs_erofs"], shown["layers"][0]["diff_id"]):
        assert value in text
    assert "Referrers: none" in text


def test_show_says_that_there_is_no_erofs_image(new_repo: Any, tmp_path: Path, call: Run, cfsctl: Any) -> None:
    from support.images import static_image

    made = new_repo(tmp_path / "plain")
    image = static_image(tmp_path / "layout")
    cfsctl(made, "oci", "pull", image.source, "x", check=False)
    call("--repo", made, "create", "static", f"@{image.manifest_digest}", ok=True)

    assert call("--repo", made, "show", "static", "--json").result["erofs"] == []
    assert "EROFS images: none" in call("--repo", made, "show", "static", ok=True).out


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_raw_is_the_stored_bytes_and_nothing_else(run: Run, web: str, part: str) -> None:
    digest = web if part == "manifest" else run("show", WEB, "--json").result["config_digest"]

    said = run("show", WEB, "--raw", part, ok=True)

    assert f"sha256:{hashlib.sha256(said.raw).hexdigest()}" == digest
    assert said.err == ""


def test_resolve_prints_one_line(run: Run, web: str) -> None:
    assert run("resolve", WEB, ok=True).out == f"{web}\n"
    assert run("resolve", f"@{web[:20]}", ok=True).out == f"{web}\n"
    assert run("resolve", WEB, "--json").result == {
        "name": WEB,
        "digest": web,
        "object": run("resolve", WEB, "--verity", ok=True).out.strip(),
    }


def test_resolve_verity_is_the_object_that_the_stream_links_to(run: Run, repo: Path, web: str) -> None:
    link = os.readlink(repo / "streams" / f"oci-manifest-{web}")

    assert run("resolve", WEB, "--verity", ok=True).out.strip() == link.removeprefix("../objects/").replace("/", "")


# -- delete, rename, restore, trash, log -------------------------------------------------------------------------------


def remaining(run: Run) -> set[str]:
    return {row["name"] for row in run("list", "--all", "--json").result}


@pytest.fixture
def many(run: Run) -> set[str]:
    """Names of tags, app-1 to app-3 among them, and one that looks like a pattern; all that there are."""
    for name in ("app-1", "app-2", "app-3", "app-*", "other"):
        run("create", name, WEB, ok=True)
    return remaining(run)


def test_a_pattern_deletes_the_tags_that_it_fits_only_with_yes(run: Run, many: set[str]) -> None:
    refused = run("delete", "app-?", "other", "--json")
    assert (refused.status, refused.json["error"]["code"]) == (2, "command-line")
    assert "4 tags" in refused.json["error"]["message"]
    assert remaining(run) == many

    dry = run("delete", "app-[12]", "--dry-run", "--json").result
    assert [tag["name"] for tag in dry["tags"]] == ["app-1", "app-2"]
    assert remaining(run) == many

    assert run("delete", "app-[12]", "other", "--yes", ok=True).lines[-1].startswith("deleted: other")
    assert remaining(run) == many - {"app-1", "app-2", "other"}


def test_a_tag_that_is_named_like_a_pattern_is_meant_alone(run: Run, many: set[str]) -> None:
    run("delete", "app-*", ok=True)
    assert remaining(run) == many - {"app-*"}


def test_a_pattern_fits_tags_of_owners_that_were_named(run: Run, many: set[str]) -> None:
    run("delete", "*", "--yes", ok=True)
    left = {name for name in many if name.startswith(("localhost/bootc-", "@"))}
    assert remaining(run) == left
    assert left
    assert run("delete", "localhost/*", "--yes", "--json").json["error"]["code"] == "tag-not-found"
    run("delete", "localhost/*", "--yes", "--owner", "bootc", ok=True)
    assert remaining(run) == {name for name in left if name.startswith("@")}


def test_a_pattern_that_fits_nothing_is_not_found_unless_that_is_no_error(run: Run, many: set[str]) -> None:
    assert run("delete", "nothing*", "--yes").status == 3
    assert run("delete", "nothing*", "--yes", "--missing-ok", ok=True).out == ""


@pytest.mark.parametrize(
    ("typed", "gone"), [(b"y\n", True), (b"YES\n", True), (b"n\n", False), (b"\n", False), (b"\x04", False)]
)
def test_on_a_terminal_a_question_is_asked(run: Run, repo: Path, many: set[str], typed: bytes, gone: bool) -> None:
    from support.terminal import show

    said = show(["--repo", repo, "delete", "app-?"], typed=typed)
    assert "app-*\napp-1\napp-2\napp-3\nDelete 4 tags? [y/N]" in said.text
    assert said.status == (0 if gone else 1)
    assert remaining(run) == (many - {"app-*", "app-1", "app-2", "app-3"} if gone else many)


def test_delete_removes_all_or_none(run: Run, repo: Path, web: str) -> None:
    assert run("delete", WEB, "absent").status == 3
    assert shared(repo, WEB).is_symlink()

    assert run("delete", WEB, DB, WEB, ok=True).lines[0] == f"deleted: {WEB} (was {web})"
    assert not shared(repo, WEB).is_symlink()
    assert not shared(repo, DB).is_symlink()


def test_an_absent_tag_is_no_error_when_allowed(run: Run) -> None:
    done = run("delete", "absent", WEB, "--missing-ok", "--json").result["tags"]

    assert [(tag["name"], tag["done"], tag["home"]) for tag in done] == [(WEB, "deleted", "shared"), ("absent", "absent", None)]


def test_tags_of_bootc_are_deleted_only_where_their_owner_is_named(run: Run) -> None:
    name = run("list", "--owner", "bootc", "--json").result[0]["name"]

    assert run("delete", name).status == 4
    assert run("delete", name, "--owner", "bootc").status == 0


def test_a_deleted_tag_is_kept_in_the_trash_and_comes_back(run: Run, web: str) -> None:
    run("delete", WEB, "--keep-for", "7d", ok=True)

    (row,) = run("trash", "--json").result
    assert (row["name"], row["digest"], row["home"]) == (f"@trash/{WEB}", web, "trash")
    assert row["expires"] in run("trash", ok=True).out
    assert run("resolve", f"@trash/{WEB}", ok=True).out.strip() == web

    assert run("restore", WEB, ok=True).out == f"restored: {WEB} -> {web}\n"
    assert run("trash", "--json").result == []
    assert run("resolve", WEB, ok=True).out.strip() == web


def test_rename_keeps_the_value(run: Run, web: str) -> None:
    assert run("rename", WEB, "new", ok=True).out == f"renamed: {WEB} -> new\n"

    assert run("resolve", "new", ok=True).out.strip() == web
    assert run("resolve", WEB).status == 3


def test_renaming_a_tag_to_its_own_name_is_no_change(run: Run, web: str) -> None:
    assert run("rename", WEB, WEB, ok=True).out == f"unchanged: {WEB} -> {web}\n"


def test_rename_replaces_with_force_alone(run: Run, web: str) -> None:
    assert run("rename", WEB, DB).status == 4
    assert run("rename", WEB, DB, "--force").status == 0
    assert run("resolve", DB, ok=True).out.strip() == web


def test_restore_again_says_that_nothing_is_left_to_restore(run: Run) -> None:
    run("create", "t", WEB, ok=True)
    run("delete", "t", ok=True)
    run("restore", "t", ok=True)

    again = run("restore", "t")
    assert again.status == 3
    assert again.err.splitlines()[0] == "cfs-tag: 't' is as it was: its log has 3 entries, and no other value"


def test_the_log_tells_what_happened_newest_first_and_restore_goes_back(run: Run, web: str, db: str) -> None:
    run("create", "t", WEB, ok=True)
    run("create", "t", DB, "--force", "--reason", "newer", ok=True)

    entries = run("log", "t", "--json").result
    assert [(entry["number"], entry["action"], entry["old"], entry["new"]) for entry in entries] == [
        (0, "move", web, db),
        (1, "create", None, web),
    ]
    assert [json.loads(line) for line in run("log", "t", "--jsonl", ok=True).lines] == entries
    assert "newer" in run("log", "t", ok=True).lines[1]
    assert run("resolve", "t@{1}", ok=True).out.strip() == web

    run("restore", "t@{1}", ok=True)
    assert run("resolve", "t", ok=True).out.strip() == web


def test_the_log_of_everything_names_each_tag(run: Run) -> None:
    run("create", "a/b", WEB, ok=True)
    run("create", "lease", WEB, "--expires", "1h", ok=True)
    run("delete", DB, "--keep-for", "1h", ok=True)

    names = [entry["name"] for entry in run("log", "--json").result]
    # that db was there before is found when it is deleted
    assert sorted(names[:3]) == [f"@trash/{DB}", DB, DB]
    assert names[3:] == ["lease", "a/b"]
    assert len(run("log", "--limit", "1", "--json").result) == 1
    assert "a/b" in run("log", ok=True).out


def test_what_others_did_is_found(run: Run, repo: Path, web: str, db: str) -> None:
    run("create", "t", WEB, ok=True)
    shared(repo, "t").unlink()
    os.symlink(f"../../oci-manifest-{db}", shared(repo, "t"))

    assert [(entry["action"], entry["new"]) for entry in run("log", "t", "--json").result] == [
        ("found", db),
        ("create", web),
    ]


# -- update ------------------------------------------------------------------------------------------------------------


def test_update_carries_out_every_line(run: Run, web: str, db: str) -> None:
    lines = f"# a comment\n\ncreate n '{WEB}'\nmove {WEB} {DB} {web}\ndelete {DB} {db}\n"

    tags = run("update", "--stdin", "--json", input=lines.encode()).result["tags"]

    assert [(tag["name"], tag["done"]) for tag in tags] == [("n", "created"), (WEB, "moved"), (DB, "deleted")]
    assert run("resolve", WEB, ok=True).out.strip() == db


def test_update_is_all_or_nothing(run: Run, repo: Path) -> None:
    before = tree(repo / "streams/refs")

    assert run("update", "--stdin", input=f"create n {WEB}\nverify {DB} absent\n".encode()).status == 4

    assert tree(repo / "streams/refs") == before


def test_update_takes_json_lines_and_what_list_prints(run: Run, web: str) -> None:
    listed = run("list", "--jsonl", ok=True).lines
    rows = [json.loads(line) for line in listed]
    lines = [json.dumps({"verb": "verify", "name": row["name"], "expected": row["digest"]}) for row in rows]
    lines.append(json.dumps({"verb": "create", "name": "n", "target": WEB, "home": "private"}))

    tags = run("update", "--json-lines", "--json", input="\n".join(lines).encode()).result["tags"]

    assert [tag["done"] for tag in tags] == ["verified"] * len(rows) + ["created"]
    assert tags[-1]["home"] == "private"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"verb": "create"}',
        '{"verb": "explode", "name": "x"}',
        '{"verb": "create", "name": "x"}',
        '{"verb": "delete", "name": "x", "target": "y"}',
        '{"verb": "verify", "name": "x"}',
        '{"verb": "create", "name": 1, "target": "y"}',
        '{"verb": "create", "name": "x", "target": "y", "home": "nowhere"}',
        '{"verb": "create", "name": "x", "target": "y", "more": "z"}',
        '{"verb": "delete", "name_bytes": "?"}',
        "[" * 100_000,
    ],
)
def test_a_json_line_that_is_no_instruction_is_named(run: Run, line: str) -> None:
    said = run("update", "--json-lines", "--json", input=b"\n" + line.encode())

    assert said.status == 2
    assert said.json["error"]["code"] == "invalid-instruction"
    assert said.json["error"]["facts"]["line"] == 2


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_name_that_begins_with_a_dash_works_after_two_dashes(run: Run, repo: Path, web: str) -> None:
    os.symlink(f"../../oci-manifest-{web}", shared(repo, "-x"))

    assert run("resolve", "--", "-x", ok=True).out.strip() == web
    assert run("show", "--json", "--", "-x").result["name"] == "-x"
    assert run("rename", "--", "-x", "x", ok=True).out == "renamed: -x -> x\n"


def test_a_name_that_is_not_utf8_goes_through_json_and_back(run: Run, repo: Path, web: str) -> None:
    name = b"caf\xe9"
    os.symlink(f"../../oci-manifest-{web}", os.fsencode(shared(repo, "")) + b"/" + name)

    row = run("list", "caf*", "--json").result[0]
    assert row["name"] == "caf\\udce9"
    assert base64.b64decode(row["name_bytes"]) == name
    assert run("resolve", os.fsdecode(name), ok=True).out.strip() == web

    line = json.dumps({"verb": "delete", "name_bytes": row["name_bytes"], "expected": web})
    run("update", "--json-lines", input=line.encode(), ok=True)
    assert run("list", "caf*", "--json").result == []


# -- where the repository is -------------------------------------------------------------------------------------------


def test_the_repository_is_named_by_option_or_environment(
    call: Run, repo: Path, sysroot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("--repo", repo, "resolve", WEB).status == 0
    assert call("--sysroot", sysroot, "resolve", WEB).status == 0

    monkeypatch.setenv("CFS_TAG_SYSROOT", str(sysroot))
    assert call("resolve", WEB).status == 0
    monkeypatch.setenv("CFS_TAG_REPO", str(tmp_path))
    assert call("resolve", WEB).status == 3
    assert call("--sysroot", sysroot, "resolve", WEB).status == 0
    monkeypatch.setenv("CFS_TAG_REPO", "")
    assert call("resolve", WEB).status == 0


def test_the_user_has_a_repository_of_their_own(call: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/.var/lib").mkdir(parents=True)
    repo.rename(tmp_path / "home/.var/lib/composefs")

    assert call("--user", "resolve", WEB).status == 0
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert call("resolve", WEB).status == 0


def test_the_system_has_its_repository_in_its_sysroot(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfs_tags.cli.session import Session

    nothing: dict[str, Any] = {"repo": None, "sysroot": None, "user": False, "system": False}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Session.of(**nothing).path == "/sysroot/composefs"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Session.of(**{**nothing, "system": True}).path == "/sysroot/composefs"


def test_a_collection_is_in_the_log_with_its_reason_though_no_ref_changed(run: Run, repo: Path) -> None:
    before = run("log", "--json").result
    run("gc", "--no-sysroot", "--reason", "the disk was full", "--dry-run", ok=True)
    assert run("log", "--json").result == before
    run("gc", "--no-sysroot", ok=True)
    newest, *rest = run("log", "--json").result
    assert rest == before
    assert (newest["name"], newest["action"], newest["reason"]) == ("(repository)", "collect", None)

    before = run("log", "--json").result
    run("gc", "--no-sysroot", "--reason", "the disk was full", ok=True)
    newest, *rest = run("log", "--json").result
    assert rest == before
    assert (newest["name"], newest["action"], newest["reason"]) == ("(repository)", "collect", "the disk was full")
    assert newest["by"]
    assert "(repository)" in run("log", ok=True).lines[1]
    assert run("fsck", "--json").result["ok"]
    run("gc", "--no-sysroot", "--reason", "once more", ok=True)
    collections = [entry for entry in run("log", "--json").result if entry["action"] == "collect"]
    assert [entry["reason"] for entry in collections] == ["once more", "the disk was full", None]
