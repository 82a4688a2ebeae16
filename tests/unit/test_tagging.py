"""Changing tags: what each change does, what is refused with which code, and that a refused one changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.cli.hints import hint
from cfs_tags.errors import CfsTagsError, ExpectationFailed, TagNotFound
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, history, names, rows
from cfs_tags.tags.instructions import Instruction, parse_instructions
from cfs_tags.values import Digest
from support import stock, tagging
from support.images import host_image, pull_image, static_image
from support.peers import Cfsctl
from support.raising import raises
from support.stock import PRIVATE, SHARED, digest_of, leftovers, link_to, make_tag

BOOTC = "localhost/bootc-x"


@pytest.fixture
def repo(stocked: Path) -> Iterator[WriteRepo]:
    with Repository.open(stocked, write=True) as opened:
        yield opened


@pytest.fixture
def one(stocked: Path) -> str:
    return digest_of(stocked, "one")


@pytest.fixture
def two(stocked: Path) -> str:
    return digest_of(stocked, "two")


@contextmanager
def refused(path: Path, code: str, status: int) -> Iterator[list[CfsTagsError]]:
    """The block raises that error and changes no ref."""
    before = stock.refs(path)
    found: list[CfsTagsError] = []
    with pytest.raises(CfsTagsError) as caught:
        yield found
    found.append(caught.value)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert stock.refs(path) == before
    assert leftovers(path) == []


def update(repo: WriteRepo, *lines: str, owners: tuple[str, ...] = ()) -> tuple[edit.TagResult, ...]:
    instructions = list(parse_instructions(lines))
    return run.transact(repo, lambda: edit.plan(repo, instructions, owners=owners)).results


# -- create and move ---------------------------------------------------------------------------------------------------


def test_a_tag_is_created_once(repo: WriteRepo, one: str) -> None:
    assert tagging.create(repo, "app", "held/one") == ("app", "created", None, one, "shared")
    assert tagging.create(repo, "app", f"@{one}") == ("app", "unchanged", one, one, "shared")


def test_a_tag_that_names_something_else_is_moved_by_force_alone(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    tagging.create(repo, "app", f"@{one}")

    with refused(stocked, "tag-exists", 4) as error:
        tagging.create(repo, "app", f"@{two}")
    assert error[0].code == "tag-exists"
    assert (error[0].found, error[0].wanted) == (one, two)
    assert tagging.create(repo, "app", f"@{two}", force=True) == ("app", "moved", one, two, "shared")
    assert stock.refs(stocked)[f"{SHARED}/app"] == link_to(two)


def test_an_expectation_moves_from_that_value_alone(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    tagging.create(repo, "app", f"@{one}", expected="absent")

    for expected in (two, "absent"):
        with refused(stocked, "expectation-failed", 4) as error:
            tagging.create(repo, "app", f"@{two}", expected=expected)
        assert isinstance(error[0], ExpectationFailed)
        assert (error[0].wanted, error[0].found) == (expected, one)
        with refused(stocked, "expectation-failed", 4):
            tagging.create(repo, "app", f"@{two}", expected=expected, force=True)
    with refused(stocked, "expectation-failed", 4):
        tagging.create(repo, "other", f"@{two}", expected=one)
    assert tagging.create(repo, "app", f"@{two}", expected=one).done == "moved"
    with refused(stocked, "invalid-digest", 2):
        tagging.create(repo, "app", f"@{one}", expected="sha256:0")


@pytest.mark.parametrize(
    "target", ["absent", "@sha256:" + "0" * 64, "@deployment/x", "app@{0}", "@trash/x", "sha256:" + "0" * 64]
)
def test_a_target_that_is_not_there_is_not_found(stocked: Path, repo: WriteRepo, target: str) -> None:
    before = stock.refs(stocked)
    with pytest.raises(CfsTagsError) as caught:
        tagging.create(repo, "app", target)
    assert caught.value.status == 3
    assert stock.refs(stocked) == before


def test_a_target_may_be_anything_that_stands_for_a_manifest(repo: WriteRepo, one: str) -> None:
    for number, target in enumerate(("held/one", one, f"@{one}", f"@{one[:20]}", "held/one@{0}")):
        assert tagging.create(repo, f"app{number}", target).new == one


# -- homes -------------------------------------------------------------------------------------------------------------


def test_a_name_has_one_home(stocked: Path, repo: WriteRepo, one: str, two: str, cfsctl: Cfsctl) -> None:
    tagging.create(repo, "app", f"@{one}")

    assert tagging.create(repo, "app", f"@{one}", home="private") == ("app", "moved", one, one, "private")
    assert f"{SHARED}/app" not in stock.refs(stocked)
    assert "app" not in cfsctl.tags(stocked)
    assert tagging.create(repo, "app", f"@{two}", force=True).home == "private"
    assert tagging.create(repo, "app", f"@{two}", home="shared").done == "moved"
    assert f"{PRIVATE}/app" not in stock.refs(stocked)
    assert cfsctl.tags(stocked)["app"] == two


def test_a_tag_in_a_directory_is_moved_where_it_stands(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    (stocked / SHARED / "sub").mkdir()
    (stocked / SHARED / "sub" / "app").symlink_to(link_to(one, 3))

    tagging.create(repo, "sub/app", f"@{two}", force=True)

    assert stock.refs(stocked)[f"{SHARED}/sub/app"] == link_to(two, 3)


def test_a_lease_keeps_its_content_until_it_expires_and_becomes_a_tag_by_force_alone(
    stocked: Path, repo: WriteRepo, one: str, cfsctl: Cfsctl
) -> None:
    expires = rows.expiry(3600)
    made = tagging.create(repo, "app", f"@{one}", expires=expires)
    assert (made.done, made.home) == ("created", "lease")
    before = rows.find(repo, "app")
    assert f"streams/refs/cfs-tags/leases/{expires}.0/app" in stock.refs(stocked)
    stock.let_go(stocked)
    cfsctl(stocked, "gc")
    assert stock.dangling(stocked) == []

    with refused(stocked, "tag-exists", 4):
        tagging.create(repo, "app", f"@{one}", home="shared")
    with refused(stocked, "tag-exists", 4):
        tagging.create(repo, "app", f"@{one}", home="private")
    assert tagging.create(repo, "app", f"@{one}") == ("app", "unchanged", one, one, "lease")
    assert rows.find(repo, "app") == before

    assert tagging.create(repo, "app", f"@{one}", force=True) == ("app", "moved", one, one, "shared")
    assert stock.tags(stocked) == {f"{SHARED}/app": one}
    assert [(line.entry.action, line.old, line.new) for line in history.log(repo, "app")] == [
        ("move", one, one),
        ("create", None, one),
    ], "its log goes on"


def test_a_lasting_tag_becomes_a_lease_by_force_alone(stocked: Path, repo: WriteRepo, one: str) -> None:
    tagging.create(repo, "app", f"@{one}")
    expires = rows.expiry(3600)

    with refused(stocked, "tag-exists", 4):
        tagging.create(repo, "app", f"@{one}", expires=expires)
    assert tagging.create(repo, "app", f"@{one}", expires=expires, force=True).home == "lease"


def test_a_lease_whose_time_is_over_is_no_tag_any_more(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    """Its link stands until the next collection, which may be any instant now: only ``delete`` still knows it."""
    over = rows.expiry(-1)
    tagging.create(repo, "app", f"@{one}", expires=over)
    tag = rows.find(repo, "app")
    assert tag is not None
    assert tag.problem == rows.ENDED
    with refused(stocked, "lease-ended", 3) as caught:
        names.resolve(repo, "app")
    assert one in str(caught[0].hint)
    with refused(stocked, "lease-ended", 3):
        tagging.create(repo, "other", "app")
    with refused(stocked, "lease-ended", 3):
        tagging.rename(repo, "app", "other")
    with refused(stocked, "expectation-failed", 4):
        tagging.create(repo, "app", f"@{two}", expected=one)
    with refused(stocked, "tag-not-found", 3):
        edit.plan(repo, [Instruction("move", "app", f"@{two}")])
    assert tagging.delete(repo, ["app"], expires=rows.expiry(60)) == (("app", "deleted", one, None, "lease"),)
    assert names.resolve(repo, "@trash/app") == one


def test_the_name_of_a_lease_whose_time_is_over_is_free(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    over = rows.expiry(-1)
    for name in ("a", "b", "c", "d"):
        tagging.create(repo, name, f"@{one}", expires=over)
    assert tagging.create(repo, "a", f"@{two}", expected="absent") == ("a", "created", None, two, "shared")
    assert tagging.create(repo, "b", f"@{two}", expires=rows.expiry(60)).done == "created"
    assert tagging.rename(repo, "a", "c").done == "renamed"
    assert tagging.restore(repo, "d") == ("d", "restored", None, one, "shared")
    assert [path.rpartition("/")[2] for path in stock.refs(stocked) if "/leases/" in path] == ["b"]
    assert [names.resolve(repo, name) for name in ("b", "c", "d")] == [two, two, one]


def test_two_leases_until_the_same_second_stand_side_by_side(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    expires = rows.expiry(3600)
    tagging.create(repo, "a", f"@{one}", expires=expires)
    tagging.create(repo, "b", f"@{one}", expires=expires)
    tagging.create(repo, "a", f"@{two}", expires=expires, force=True)

    with Repository.open(stocked) as reader:
        assert {tag.name: tag.digest for tag in rows.list_tags(reader) if tag.home == "lease"} == {"a": two, "b": one}


def test_an_expiry_is_an_instant_in_utc() -> None:
    assert rows.expiry(90, now=0) == "19700101T000130Z"
    assert re.fullmatch(r"\d{8}T\d{6}Z", rows.expiry(0))


# -- bootc -------------------------------------------------------------------------------------------------------------


def stored_without_erofs(cfsctl: Cfsctl, path: Path) -> str:
    """An image without ``/usr``: cfsctl stores it, makes neither image nor tag, and fails."""
    image = static_image(path.parent / "layout-static")
    assert cfsctl(path, "oci", "pull", image.source, "static", check=False).returncode != 0
    assert "static" not in cfsctl.tags(path)
    return image.manifest_digest


def test_in_a_bootc_repository_an_image_that_bootc_could_choke_on_gets_a_private_tag(
    stocked: Path, repo: WriteRepo, one: str, cfsctl: Cfsctl
) -> None:
    digest = stored_without_erofs(cfsctl, stocked)
    (stocked.parent / "state" / "deploy").mkdir(parents=True)

    assert edit.lacks_erofs(repo, Digest.parse(digest))
    assert tagging.create(repo, "static", f"@{digest}").home == "private"
    assert tagging.create(repo, "app", f"@{one}").home == "shared"
    assert "static" not in cfsctl.tags(stocked)
    assert tagging.create(repo, "asked", f"@{digest}", home="shared").home == "shared"
    assert tagging.create(repo, "app", f"@{digest}", force=True).home == "private"
    assert "app" not in cfsctl.tags(stocked)


def test_elsewhere_it_gets_a_shared_one(stocked: Path, repo: WriteRepo, cfsctl: Cfsctl) -> None:
    digest = stored_without_erofs(cfsctl, stocked)

    assert tagging.create(repo, "static", f"@{digest}").home == "shared"
    assert cfsctl.tags(stocked)["static"] == digest


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("bootable", [False, True])
def test_an_image_with_its_erofs_image_lacks_none_whatever_the_format(
    cfsctl: Cfsctl, tmp_path: Path, version: str, bootable: bool
) -> None:
    path = tmp_path / "other"
    cfsctl(None, "--erofs-version", version, "init", "--insecure", path)
    image = host_image(tmp_path / "layout", "1")
    pull_image(cfsctl, path, image, "host", bootable=bootable)

    with Repository.open(path) as reader:
        assert not edit.lacks_erofs(reader, Digest.parse(image.manifest_digest))


# -- owners ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda repo, one, two: tagging.create(repo, BOOTC, f"@{two}", force=True),
        lambda repo, one, two: tagging.create(repo, "localhost/bootc-new", f"@{two}"),
        lambda repo, one, two: tagging.delete(repo, [BOOTC]),
        lambda repo, one, two: tagging.delete(repo, ["app", BOOTC]),
        lambda repo, one, two: tagging.rename(repo, BOOTC, "mine"),
        lambda repo, one, two: tagging.rename(repo, "app", "localhost/bootc-new"),
        lambda repo, one, two: tagging.rename(repo, "app", BOOTC, force=True),
        lambda repo, one, two: tagging.restore(repo, f"{BOOTC}@{{1}}"),
        lambda repo, one, two: update(repo, f"move app @{two}", f"delete {BOOTC}"),
    ],
)
def test_a_tag_of_bootc_is_changed_only_where_its_owner_is_named(
    stocked: Path, repo: WriteRepo, one: str, two: str, act: Callable[[WriteRepo, str, str], object]
) -> None:
    tagging.create(repo, "app", f"@{one}")
    tagging.create(repo, BOOTC, f"@{two}", owners=["bootc"])
    tagging.create(repo, BOOTC, f"@{one}", force=True, owners=["bootc"])

    with refused(stocked, "owner-refused", 4) as error:
        act(repo, one, two)
    assert error[0].code == "owner-refused"
    assert error[0].owner == "bootc"
    assert "--owner bootc" in str(hint(error[0]))


def test_with_its_owner_named_a_tag_of_bootc_is_changed(repo: WriteRepo, one: str, two: str) -> None:
    owners = ["bootc"]
    assert tagging.create(repo, BOOTC, f"@{one}", owners=owners).done == "created"
    assert tagging.create(repo, BOOTC, f"@{two}", force=True, owners=owners).done == "moved"
    assert tagging.rename(repo, BOOTC, "localhost/bootc-y", owners=owners).done == "renamed"
    assert tagging.delete(repo, ["localhost/bootc-y"], owners=owners)[0].done == "deleted"


def test_making_a_tag_of_bootc_what_it_is_already_needs_no_owner(stocked: Path, repo: WriteRepo, one: str) -> None:
    make_tag(stocked, BOOTC, one)

    assert tagging.create(repo, BOOTC, f"@{one}").done == "unchanged"


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("@deployment/" + "ab" * 64, "invalid-argument", 2),
        ("streams/refs/ostree/x", "tag-not-found", 3),
        ("@trash/x", "tag-not-found", 3),
        ("../oci-referrers/x", "tag-not-found", 3),
    ],
)
def test_refs_that_are_no_tags_are_not_deleted_as_tags(
    stocked: Path, repo: WriteRepo, one: str, name: str, code: str, status: int
) -> None:
    make_tag(stocked, "ab" * 64, one, "streams/refs/cfs-tags/deployments")
    make_tag(stocked, "x", one, "streams/refs/ostree")
    make_tag(stocked, "x", one, "streams/refs/oci-referrers")

    with refused(stocked, code, status):
        tagging.delete(repo, [name])


# -- delete ------------------------------------------------------------------------------------------------------------


def test_several_tags_are_deleted_together_or_not_at_all(stocked: Path, repo: WriteRepo, one: str) -> None:
    for name in ("a", "b"):
        tagging.create(repo, name, f"@{one}")

    with refused(stocked, "tag-not-found", 3) as error:
        tagging.delete(repo, ["a", "absent", "b"])
    assert isinstance(error[0], TagNotFound)
    assert error[0].name == "absent"
    assert [row.name for row in tagging.delete(repo, ["a", "b"])] == ["a", "b"]
    assert stock.tags(stocked) == {}


def test_the_same_name_twice_makes_no_sense(stocked: Path, repo: WriteRepo, one: str) -> None:
    tagging.create(repo, "a", f"@{one}")
    with refused(stocked, "invalid-instruction", 2):
        tagging.delete(repo, ["a", "a"])


def test_what_is_deleted_into_the_trash_stays_alive_and_is_restored(
    stocked: Path, repo: WriteRepo, one: str, cfsctl: Cfsctl
) -> None:
    tagging.create(repo, "app/x", f"@{one}")
    tagging.delete(repo, ["app/x"], expires=rows.expiry(3600))
    stock.let_go(stocked)
    cfsctl(stocked, "gc")

    with Repository.open(stocked) as reader:
        assert rows.find(reader, "app/x") is None
        assert [kept.name for kept in rows.trash(reader)] == ["@trash/app/x"]
    restored = tagging.restore(repo, "app/x")
    assert (restored.done, restored.new, restored.home) == ("restored", one, "shared")
    assert stock.tags(stocked) == {f"{SHARED}/app%2Fx": one}


def test_what_is_in_the_trash_is_deleted_for_good_newest_first(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    for digest, expires in ((one, "20990101T000000Z"), (two, "20990202T000000Z")):
        tagging.create(repo, "app", f"@{digest}")
        tagging.delete(repo, ["app"], expires=expires)

    assert tagging.delete(repo, ["@trash/app"])[0].old == two
    assert tagging.delete(repo, ["@trash/app"])[0].old == one
    with refused(stocked, "tag-not-found", 3):
        tagging.delete(repo, ["@trash/app"])
    assert stock.tags(stocked) == {}


def test_a_broken_tag_is_deleted_without_a_place_in_the_trash(stocked: Path, repo: WriteRepo) -> None:
    make_tag(stocked, "broken", "sha256:" + "0" * 64)

    tagging.delete(repo, ["broken"], expires=rows.expiry(3600))

    assert stock.tags(stocked) == {}


# -- rename ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["shared", "private"])
def test_a_tag_gets_another_name_in_its_home(stocked: Path, repo: WriteRepo, one: str, home: str) -> None:
    tagging.create(repo, "old/x", f"@{one}", home=home)

    assert tagging.rename(repo, "old/x", "new/x") == ("new/x", "renamed", "old/x", one, home)

    assert stock.tags(stocked) == {f"{rows.HOMES[home]}/new%2Fx": one}


def test_a_lease_keeps_its_expiry_under_another_name(stocked: Path, repo: WriteRepo, one: str) -> None:
    expires = rows.expiry(3600)
    tagging.create(repo, "old", f"@{one}", expires=expires)
    tagging.rename(repo, "old", "new")

    with Repository.open(stocked) as reader:
        found = rows.find(reader, "new")
    assert found is not None
    assert (found.home, found.expires) == ("lease", expires)


@pytest.mark.parametrize("homes", [("shared", "shared"), ("shared", "private"), ("private", "shared")])
def test_a_name_that_is_taken_is_given_by_force_alone(
    stocked: Path, repo: WriteRepo, one: str, two: str, homes: tuple[str, str]
) -> None:
    tagging.create(repo, "old", f"@{one}", home=homes[0])
    tagging.create(repo, "new", f"@{two}", home=homes[1])

    with refused(stocked, "tag-exists", 4):
        tagging.rename(repo, "old", "new")
    assert tagging.rename(repo, "old", "new", force=True).done == "renamed"
    assert stock.tags(stocked) == {f"{rows.HOMES[homes[0]]}/new": one}


@pytest.mark.parametrize("force", [False, True])
def test_a_tag_that_gets_its_own_name_stays(stocked: Path, repo: WriteRepo, one: str, force: bool) -> None:
    tagging.create(repo, "app", f"@{one}")
    before = stock.refs(stocked)

    assert tagging.rename(repo, "app", "app", force=force).done == "unchanged"
    assert stock.refs(stocked) == before


@pytest.mark.parametrize("force", [False, True])
def test_a_tag_in_a_directory_that_gets_its_own_name_is_encoded_as_ours_are(
    stocked: Path, repo: WriteRepo, one: str, force: bool
) -> None:
    (stocked / SHARED / "sub").mkdir()
    (stocked / SHARED / "sub" / "app").symlink_to(link_to(one, 3))

    assert tagging.rename(repo, "sub/app", "sub/app", force=force).done == "renamed"

    assert stock.tags(stocked) == {f"{SHARED}/sub%2Fapp": one}


def test_a_bad_new_name_and_an_absent_old_one_are_refused(stocked: Path, repo: WriteRepo, one: str) -> None:
    tagging.create(repo, "app", f"@{one}")
    with refused(stocked, "invalid-tag-name", 2):
        tagging.rename(repo, "app", "@x")
    with refused(stocked, "tag-not-found", 3):
        tagging.rename(repo, "absent", "x")


def test_a_broken_tag_is_not_renamed(stocked: Path, repo: WriteRepo) -> None:
    (stocked / SHARED / "broken").symlink_to("/etc")
    with refused(stocked, "bad-ref-link", 6):
        tagging.rename(repo, "broken", "x")


def test_a_tag_whose_content_is_gone_is_not_renamed(stocked: Path, repo: WriteRepo) -> None:
    """No new ref to something that is gone."""
    make_tag(stocked, "broken", "sha256:" + "0" * 64)
    with refused(stocked, "target-not-found", 3):
        tagging.rename(repo, "broken", "x")


# -- restore -----------------------------------------------------------------------------------------------------------


def test_a_tag_goes_back_to_its_value_before_and_to_any_in_the_log(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    three = digest_of(stocked, "three")
    for digest in (one, two, three):
        tagging.create(repo, "app", f"@{digest}", force=True)

    assert tagging.restore(repo, "app").new == two
    assert tagging.restore(repo, "app@{3}").new == one
    with Repository.open(stocked) as reader:
        assert [line.entry.action for line in history.log(reader, "app")] == ["restore", "restore", "move", "move", "create"]


def test_a_deleted_tag_comes_back_without_trash_while_its_content_is_there(stocked: Path, repo: WriteRepo, one: str) -> None:
    tagging.create(repo, "app", f"@{one}")
    tagging.delete(repo, ["app"])

    assert tagging.restore(repo, "app") == ("app", "restored", None, one, "shared")


def test_a_tag_whose_content_was_collected_does_not_come_back(stocked: Path, repo: WriteRepo, one: str, cfsctl: Cfsctl) -> None:
    tagging.create(repo, "app", f"@{one}")
    tagging.delete(repo, ["app"])
    stock.let_go(stocked)
    cfsctl(stocked, "gc")

    with refused(stocked, "target-not-found", 3):
        tagging.restore(repo, "app")


def test_a_tag_with_one_value_has_none_to_go_back_to(stocked: Path, repo: WriteRepo, one: str) -> None:
    tagging.create(repo, "app", f"@{one}")
    with refused(stocked, "reflog-entry-not-found", 3) as error:
        tagging.restore(repo, "app")
    assert error[0].code == "reflog-entry-not-found"
    with refused(stocked, "tag-not-found", 3):
        tagging.restore(repo, "never")


def test_the_value_before_skips_what_was_no_manifest(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    tagging.create(repo, "app", f"@{one}")
    (stocked / SHARED / "app").unlink()
    (stocked / SHARED / "app").symlink_to("/etc/passwd")
    tagging.create(repo, "app", f"@{two}", force=True)

    with refused(stocked, "reflog-entry-not-found", 3):
        tagging.restore(repo, "app@{1}")
    assert tagging.restore(repo, "app").new == one


def test_a_restored_tag_keeps_what_was_made_in_its_place(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    tagging.create(repo, "app", f"@{one}")
    tagging.delete(repo, ["app"], expires=rows.expiry(3600))
    tagging.create(repo, "app", f"@{two}")

    assert tagging.restore(repo, "app").new == one
    with Repository.open(stocked) as reader:
        assert [kept.digest for kept in rows.trash(reader)] == [one], "the trash is not what was asked for"


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_done_together(stocked: Path, repo: WriteRepo, one: str, two: str) -> None:
    tagging.create(repo, "old", f"@{one}")
    tagging.create(repo, "gone", f"@{one}")

    done = update(
        repo,
        "# a release",
        "",
        f"create 'a name with blanks' @{one}",
        f"move old held/two {one}",
        f"delete gone {one}",
        "verify absent absent",
        f"verify held/one @{one}",
    )

    assert [(row.name, row.done) for row in done] == [
        ("a name with blanks", "created"),
        ("old", "moved"),
        ("gone", "deleted"),
        ("absent", "verified"),
        ("held/one", "verified"),
    ]
    assert stock.tags(stocked) == {f"{SHARED}/a name with blanks": one, f"{SHARED}/old": two}


@pytest.mark.parametrize(
    ("last", "code", "status"),
    [
        ("create old @{two}", "tag-exists", 4),
        ("move absent @{two}", "tag-not-found", 3),
        ("move old @{two} @{two}", "expectation-failed", 4),
        ("move old @{two} absent", "expectation-failed", 4),
        ("delete absent", "tag-not-found", 3),
        ("delete old @{two}", "expectation-failed", 4),
        ("verify old @{two}", "expectation-failed", 4),
        ("verify old absent", "expectation-failed", 4),
        ("verify new @{two}", "invalid-instruction", 2),
        ("verify old sha256:12", "invalid-instruction", 2),
        ("create x absent", "tag-not-found", 3),
        ("create @x @{two}", "invalid-tag-name", 2),
        ("create new @{two}", "invalid-instruction", 2),
        ("create x @sha256:0000000", "target-not-found", 3),
    ],
)
def test_a_batch_with_one_bad_line_changes_nothing(
    stocked: Path, repo: WriteRepo, one: str, two: str, last: str, code: str, status: int
) -> None:
    tagging.create(repo, "old", f"@{one}")

    with refused(stocked, code, status):
        update(repo, f"create new @{two}", "delete held/four", last.replace("{two}", two))


@pytest.mark.parametrize(
    "line",
    [
        *("create", "create a", "create a b c", "move a", "move a b c d"),
        *("delete", "delete a b c", "verify a", "frob a b", "create 'a"),
    ],
)
def test_a_line_that_is_no_instruction_is_named(line: str) -> None:
    with raises("invalid-instruction") as caught:
        list(parse_instructions(["# comment", line]))

    error = caught.value
    assert (error.code, error.status, error.line, error.text) == ("invalid-instruction", 2, 2, line)


def test_lines_are_read_as_words(one: str) -> None:
    text = [
        f"create app @{one}\n",
        "  move  'a b'\tx  absent \r\n",
        'delete "q\\"x"\n',
        "verify a#b absent\n",
        "# 'unbalanced\n",
        "\n",
        "delete '# no comment'",
    ]
    assert list(parse_instructions(text)) == [
        Instruction("create", "app", f"@{one}", line=1),
        Instruction("move", "a b", "x", "absent", line=2),
        Instruction("delete", 'q"x', line=3),
        Instruction("verify", "a#b", None, "absent", line=4),
        Instruction("delete", "# no comment", line=7),
    ]


def test_an_unknown_verb_is_no_instruction(stocked: Path, repo: WriteRepo) -> None:
    with refused(stocked, "invalid-instruction", 2):
        run.transact(repo, lambda: edit.plan(repo, [Instruction("frob", "a")]))
    with refused(stocked, "invalid-instruction", 2):
        run.transact(repo, lambda: edit.plan(repo, [Instruction("create", "a")]))


def test_a_plan_is_a_value_that_changes_nothing(stocked: Path, one: str) -> None:
    before = stock.refs(stocked)
    with Repository.open(stocked) as reader:
        plan = edit.plan(reader, [Instruction("create", "app", f"@{one}"), Instruction("delete", "held/two")])

    assert [(change.path, change.old, change.new) for change in plan.changes] == [
        (f"{SHARED}/app", None, link_to(one)),
        (f"{SHARED}/held%2Ftwo", link_to(digest_of(stocked, "two")), None),
    ]
    assert stock.refs(stocked) == before
    assert not (stocked / "cfs-tags").exists()
