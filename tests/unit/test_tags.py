"""Tags as they are read: listed whatever they are, found by name, resolved from everything that stands for a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.errors import BadRefLink, CfsTagsError, TagNotFound
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags.names import resolve
from cfs_tags.tags.rows import Tag, expiry, find, list_tags, owner_of, referrers, trash
from cfs_tags.values import OWNERS, Digest, TagName
from support import tagging
from support.peers import Cfsctl
from support.stock import PRIVATE, SHARED, digest_of, link_to, make_tag

ABSENT = "sha256:" + "0" * 64


@pytest.fixture
def one(stocked: Path) -> str:
    return digest_of(stocked, "one")


def rows(path: Path, *owners: str) -> dict[str, Tag]:
    """Of all tags but the held ones."""
    with Repository.open(path) as repo:
        found = list_tags(repo, owners=owners) if owners else list_tags(repo)
    return {tag.name: tag for tag in found if "held" not in tag.name}


def raised(path: Path, function: Callable[[ReadRepo], object]) -> CfsTagsError:
    with Repository.open(path) as repo, pytest.raises(CfsTagsError) as caught:
        function(repo)
    return caught.value


# -- listing -----------------------------------------------------------------------------------------------------------


def test_a_listing_has_every_home_by_name(stocked: Path, one: str) -> None:
    expires = expiry(3600)
    with Repository.open(stocked, write=True) as repo:
        tagging.create(repo, "c/shared", f"@{one}")
        tagging.create(repo, "b/private", f"@{one}", home="private")
        tagging.create(repo, "d/lease", f"@{one}", expires=expires)
        tagging.create(repo, "gone", f"@{one}")
        tagging.delete(repo, ["gone"], expires=expires)
    deployment = "ab" * 64
    make_tag(stocked, deployment, one, "streams/refs/cfs-tags/deployments")

    found = rows(stocked)

    assert list(found) == sorted(found)
    assert {name: (tag.home, tag.owner, tag.expires) for name, tag in found.items()} == {
        "b/private": ("private", "app", None),
        "c/shared": ("shared", "app", None),
        "d/lease": ("lease", "app", expires),
        f"@deployment/{deployment}": ("deployment", "deployment", None),
    }
    assert {(tag.digest, tag.problem) for tag in found.values()} == {(one, None)}
    with Repository.open(stocked) as repo:
        [kept] = trash(repo)
    assert (kept.name, kept.digest, kept.home, kept.expires) == ("@trash/gone", one, "trash", expires)


def test_owners_choose_what_is_listed(stocked: Path, one: str) -> None:
    make_tag(stocked, "app", one)
    make_tag(stocked, "localhost/bootc-x", one)
    make_tag(stocked, "ab" * 64, one, "streams/refs/cfs-tags/deployments")
    make_tag(stocked, "commit", one, "streams/refs/ostree")
    (stocked / "images" / "refs" / "theirs").mkdir(parents=True)
    image = sorted(os.listdir(stocked / "images"))[0]
    (stocked / "images" / "refs" / "theirs" / "x").symlink_to(f"../../{image}")

    assert list(rows(stocked, "app")) == ["app"]
    assert list(rows(stocked, "bootc")) == ["localhost/bootc-x"]
    assert list(rows(stocked, "deployment")) == ["@deployment/" + "ab" * 64]
    foreign = rows(stocked, "foreign")
    assert {name: (tag.owner, tag.home, tag.problem) for name, tag in foreign.items()} == {
        "streams/refs/ostree/commit": ("foreign", "other", None),
        "images/refs/theirs/x": ("foreign", "other", None),
    }
    assert set(rows(stocked, *OWNERS)) == {
        "app",
        "localhost/bootc-x",
        "@deployment/" + "ab" * 64,
        *foreign,
    }


def test_an_empty_repository_lists_nothing(repo: Path) -> None:
    assert rows(repo, *OWNERS) == {}


PROBLEMS: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "dangling": (lambda path, one: path.symlink_to(link_to(ABSENT)), "dangling"),
    "absolute": (lambda path, one: path.symlink_to(f"/streams/oci-manifest-{one}"), "absolute"),
    "another ref": (lambda path, one: path.symlink_to("held%2Fone"), "another ref"),
    "itself": (lambda path, one: path.symlink_to(path.name), "another ref"),
    "above": (lambda path, one: path.symlink_to("../../../../" + link_to(one)), "nowhere else"),
    "one too deep": (lambda path, one: path.symlink_to("../" + link_to(one)), "nowhere else"),
    "one too shallow": (lambda path, one: path.symlink_to(link_to(one, 1)), "another ref"),
    "with a detour": (lambda path, one: path.symlink_to(f"../../x/../oci-manifest-{one}"), "nowhere else"),
    "a config": (lambda path, one: path.symlink_to(f"../../{_config(path)}"), "no manifest"),
    "a file": (lambda path, one: path.write_text("x"), "no link"),
    "a pipe": (lambda path, one: os.mkfifo(path), "no link"),
}


def _config(path: Path) -> str:
    return next(name for name in os.listdir(path.parents[2]) if name.startswith("oci-config-"))


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_broken_tag_is_one_row_that_says_what_is_wrong(stocked: Path, one: str, kind: str) -> None:
    make, words = PROBLEMS[kind]
    make_tag(stocked, "app", one)
    make(stocked / SHARED / "broken", one)

    found = rows(stocked)

    assert set(found) == {"app", "broken"}
    assert found["app"].problem is None
    assert words in str(found["broken"].problem)
    assert "\n" not in str(found["broken"].problem)
    with Repository.open(stocked) as repo:
        assert find(repo, "broken") == found["broken"]


@pytest.mark.parametrize("kind", sorted(PROBLEMS.keys() - {"dangling"}))
def test_a_broken_tag_does_not_resolve_and_may_be_deleted(stocked: Path, one: str, kind: str) -> None:
    PROBLEMS[kind][0](stocked / SHARED / "broken", one)

    error = raised(stocked, lambda repo: resolve(repo, "broken"))

    assert isinstance(error, BadRefLink)
    assert (error.code, error.status) == ("bad-ref-link", 6)
    with Repository.open(stocked, write=True) as repo:
        assert [result.done for result in tagging.delete(repo, ["broken"])] == ["deleted"]
    assert rows(stocked) == {}


def test_a_dangling_tag_may_be_deleted_and_moved(stocked: Path, one: str, cfsctl: Cfsctl) -> None:
    for name in ("a", "b"):
        make_tag(stocked, name, ABSENT)
    assert cfsctl(stocked, "gc", "-n", check=False).returncode != 0

    with Repository.open(stocked, write=True) as repo:
        assert tagging.delete(repo, ["a"])[0].old == ABSENT
        assert tagging.create(repo, "b", f"@{one}", force=True).done == "moved"

    cfsctl.assert_healthy(stocked)


def test_a_link_that_is_right_in_one_place_is_wrong_in_another(stocked: Path, one: str) -> None:
    """The same text, one directory deeper: what is known of one row must not be taken for the other."""
    (stocked / SHARED / "sub").mkdir()
    for name in ("a", "sub/b", "sub/c"):
        (stocked / SHARED / name).symlink_to(link_to(one, 3 if name == "sub/c" else 2))

    found = rows(stocked)

    assert (found["a"].problem, found["sub/c"].problem) == (None, None)
    assert found["sub/b"].problem is not None


def test_a_tag_whose_manifest_object_is_gone_says_so(stocked: Path, one: str) -> None:
    make_tag(stocked, "app", one)
    (stocked / "streams" / f"oci-manifest-{one}").resolve().unlink()

    assert rows(stocked)["app"].problem == "its object is missing"


def test_what_an_interrupted_cfsctl_left_is_marked(stocked: Path, one: str) -> None:
    (stocked / SHARED / ".symlink-Ab3dEf").symlink_to(link_to(one))

    assert rows(stocked)[".symlink-Ab3dEf"].problem == "left over from an interrupted cfsctl"


def test_a_name_in_bytes_that_are_no_text_is_listed_found_and_deleted(stocked: Path, one: str) -> None:
    name = os.fsdecode(b"app\xff\x1b[31m\n")
    (stocked / SHARED / name).symlink_to(link_to(one))

    assert rows(stocked)[name].digest == one
    with Repository.open(stocked, write=True) as repo:
        assert resolve(repo, name) == one
        assert tagging.delete(repo, [name])[0].done == "deleted"
    assert rows(stocked) == {}


# -- real subdirectories, and names without escapes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sub/app", "sub/app"),
        ("a/b/c", "a/b/c"),
        ("a/b%2Fc", "a/b/c"),
        ("a%2Fb/c", "a/b/c"),
        ("quay.io/org/app:1", "quay.io/org/app:1"),
        ("100%", "100%"),
        ("%41", "%41"),
        ("a%2", "a%2"),
        ("%%2F", "%%2F"),
        ("sub/100%", "sub/100%"),
        ("sub/%2541", "sub/%41"),
        ("%2f", "%2f"),
    ],
)
def test_what_others_put_into_directories_or_do_not_encode_is_listed_as_cfsctl_lists_it_found_and_deleted(
    stocked: Path, one: str, cfsctl: Cfsctl, path: str, name: str
) -> None:
    place = stocked / SHARED / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(link_to(one, 2 + path.count("/")))

    assert rows(stocked)[name].digest == one
    assert cfsctl.tags(stocked)[name] == one
    with Repository.open(stocked, write=True) as repo:
        found = find(repo, name)
        assert found is not None
        assert (found.path, found.digest, found.home) == (f"{SHARED}/{path}", one, "shared")
        assert tagging.create(repo, name, f"@{digest_of(stocked, 'two')}", force=True).done == "moved"
        assert tagging.delete(repo, [name])[0].done == "deleted"
    assert rows(stocked) == {}
    assert name not in cfsctl.tags(stocked)


def test_the_encoded_name_comes_before_the_one_in_a_directory(stocked: Path, one: str) -> None:
    make_tag(stocked, "sub/app", one)
    (stocked / SHARED / "sub").mkdir()
    (stocked / SHARED / "sub" / "app").symlink_to(link_to(digest_of(stocked, "two"), 3))

    with Repository.open(stocked) as repo:
        assert resolve(repo, "sub/app") == one


def test_a_directory_of_tags_is_no_tag(stocked: Path, one: str) -> None:
    """Deleting it as one would take every tag below it."""
    (stocked / SHARED / "sub").mkdir()
    (stocked / SHARED / "sub" / "app").symlink_to(link_to(one, 3))

    with Repository.open(stocked, write=True) as repo:
        assert find(repo, "sub") is None
        with pytest.raises(TagNotFound):
            tagging.delete(repo, ["sub"])
        with pytest.raises(CfsTagsError):
            tagging.create(repo, "sub", f"@{one}", force=True)
    assert list(rows(stocked)) == ["sub/app"]


@pytest.mark.parametrize(
    "name",
    ["../oci-referrers/x", "sub/../app", "/app", "sub//app", "a/\0", "\ud800", "", ".", "..", "x" * 300, "sub/" + "x" * 300],
)
def test_no_name_leads_out_of_the_homes(stocked: Path, one: str, name: str) -> None:
    make_tag(stocked, "app", one)
    make_tag(stocked, "x", one, "streams/refs/oci-referrers")
    (stocked / SHARED / "sub").mkdir()

    with Repository.open(stocked) as repo:
        assert find(repo, name) is None
        with pytest.raises(TagNotFound):
            resolve(repo, name)


def test_a_link_to_a_directory_is_not_followed_to_a_tag(stocked: Path, one: str, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "app").symlink_to(link_to(one))
    (stocked / SHARED / "sub").symlink_to(tmp_path / "away")

    with Repository.open(stocked) as repo:
        assert find(repo, "sub/app") is None
    assert "sub/app" not in rows(stocked)


# -- resolving ---------------------------------------------------------------------------------------------------------


def test_a_name_stands_for_its_manifest(stocked: Path, one: str) -> None:
    deployment = "cd" * 64
    make_tag(stocked, "app", one)
    make_tag(stocked, "mine", one, PRIVATE)
    make_tag(stocked, deployment, one, "streams/refs/cfs-tags/deployments")
    with Repository.open(stocked, write=True) as repo:
        tagging.create(repo, "gone", f"@{one}")
        tagging.delete(repo, ["gone"], expires=expiry(60))
        for text in (
            *("app", "mine", f"@{one}", one, one[:20], f"@{one[:13]}"),
            *(f"@deployment/{deployment}", "@deployment/cd", "@trash/gone"),
        ):
            assert resolve(repo, text) == one, text


def test_a_tag_that_looks_like_a_digest_comes_first_without_the_at_sign(stocked: Path, one: str) -> None:
    make_tag(stocked, one, digest_of(stocked, "two"))

    with Repository.open(stocked) as repo:
        assert resolve(repo, one) == digest_of(stocked, "two")
        assert resolve(repo, f"@{one}") == one


def test_the_home_that_peers_see_comes_first(stocked: Path, one: str) -> None:
    make_tag(stocked, "app", digest_of(stocked, "two"), PRIVATE)
    make_tag(stocked, "app", one)

    with Repository.open(stocked) as repo:
        assert resolve(repo, "app") == one


def test_a_lease_and_trash_stand_for_their_newest(stocked: Path, one: str) -> None:
    two = digest_of(stocked, "two")
    for top in ("leases", "trash"):
        for directory, digest in (("20990101T000000Z.0", one), ("20990202T000000Z.0", two), ("20980101T000000Z.7", one)):
            make_tag(stocked, "app", digest, f"streams/refs/cfs-tags/{top}/{directory}")

    with Repository.open(stocked) as repo:
        assert resolve(repo, "app") == two
        assert resolve(repo, "@trash/app") == two


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (9, 10), (10, 9)])
def test_of_two_that_end_in_the_same_second_the_later_made_is_the_newest(
    stocked: Path, one: str, numbers: tuple[int, int]
) -> None:
    two = digest_of(stocked, "two")
    for top in ("leases", "trash"):
        for number in numbers:
            digest = two if number == max(numbers) else one
            make_tag(stocked, "app", digest, f"streams/refs/cfs-tags/{top}/20990101T000000Z.{number}")

    with Repository.open(stocked) as repo:
        assert resolve(repo, "app") == two
        assert resolve(repo, "@trash/app") == two
        assert [kept.digest for kept in trash(repo)] == [one, two]


@pytest.mark.parametrize(
    ("text", "code", "status"),
    [
        ("absent", "tag-not-found", 3),
        ("@trash/absent", "tag-not-found", 3),
        ("@deployment/absent", "target-not-found", 3),
        (f"@{ABSENT}", "target-not-found", 3),
        (ABSENT, "target-not-found", 3),
        ("@sha256:000000", "target-not-found", 3),
        ("@sha256:00000", "invalid-argument", 2),
        ("@sha256:", "invalid-argument", 2),
        ("@sha256:" + "0" * 65, "invalid-argument", 2),
        ("@sha256:ABCDEF", "invalid-argument", 2),
        ("@sha256:xyzxyz", "invalid-argument", 2),
        ("@sha512:" + "0" * 128, "invalid-argument", 2),
        ("@", "invalid-argument", 2),
        ("@deployment/", "invalid-argument", 2),
        ("@trash/", "invalid-argument", 2),
        ("@booted", "invalid-argument", 2),
        ("", "tag-not-found", 3),
        ("sha256:", "tag-not-found", 3),
        ("sha256:xyz", "tag-not-found", 3),
        ("sha256:00000", "invalid-argument", 2),
    ],
)
def test_a_name_that_does_not_resolve_says_why(stocked: Path, text: str, code: str, status: int) -> None:
    error = raised(stocked, lambda repo: resolve(repo, text))

    assert (error.code, error.status) == (code, status)


def test_a_prefix_that_fits_several_is_refused_with_the_candidates(stocked: Path, one: str) -> None:
    manifest = (stocked / "streams" / f"oci-manifest-{one}").readlink()
    names = [f"sha256:abcdef{n}{'0' * 57}" for n in (1, 2)]
    for name in names:
        (stocked / "streams" / f"oci-manifest-{name}").symlink_to(manifest)
    for name in ("ee" * 64, "ef" * 64):
        make_tag(stocked, name, one, "streams/refs/cfs-tags/deployments")

    error = raised(stocked, lambda repo: resolve(repo, "@sha256:abcdef"))
    assert error.code == "ambiguous-name"
    assert (error.code, error.status, error.candidates) == ("ambiguous-name", 2, tuple(names))
    error = raised(stocked, lambda repo: resolve(repo, "@deployment/e"))
    assert error.code == "ambiguous-name"
    make_tag(stocked, "abcdef" + "0" * 122, one, "streams/refs/cfs-tags/deployments")
    error = raised(stocked, lambda repo: resolve(repo, "abcdef"))
    assert error.candidates == (f"@deployment/abcdef{'0' * 122}", *(f"@{name}" for name in names))
    with Repository.open(stocked) as repo:
        assert resolve(repo, "@sha256:abcdef1") == resolve(repo, "abcdef1") == names[0]


def test_a_left_over_that_only_starts_like_a_manifest_fits_no_prefix(stocked: Path, one: str) -> None:
    (stocked / "streams" / f"oci-manifest-{one}.tmp").symlink_to("../objects/x")

    with Repository.open(stocked) as repo:
        assert resolve(repo, f"@{one[:20]}") == one


# -- referrers ---------------------------------------------------------------------------------------------------------


def test_referrers_are_those_that_cfsctl_counts(stocked: Path, one: str, cfsctl: Cfsctl) -> None:
    """Not those whose manifest is gone, that lead to another one, or whose name is no digest."""
    two, three = digest_of(stocked, "two"), digest_of(stocked, "three")
    home = stocked / "streams" / "refs" / "oci-referrers" / one
    home.mkdir(parents=True)
    (home / two).symlink_to(link_to(two, 3))
    (home / three).symlink_to(link_to(two, 3))

    def both() -> tuple[list[Digest], int]:
        with Repository.open(stocked) as repo:
            ours = referrers(repo, Digest.parse(one))
        images = cfsctl.json(stocked, "oci", "images", "--json")["images"]
        return ours, next(row["referrer_count"] for row in images if row["manifest_digest"] == one)

    assert both() == ([two], 1)
    (home / ABSENT).symlink_to(link_to(ABSENT, 3))
    assert both() == ([two], 1)
    with Repository.open(stocked) as repo:
        assert referrers(repo, Digest.parse(two)) == []


def test_referrers_with_names_that_are_no_digests_are_left_out(stocked: Path, one: str) -> None:
    home = stocked / "streams" / "refs" / "oci-referrers" / one
    home.mkdir(parents=True)
    (home / "x").symlink_to(link_to(one, 3))
    (home / "sha256:abc").touch()

    with Repository.open(stocked) as repo:
        assert referrers(repo, Digest.parse(one)) == []


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "is empty"),
        ("@app", "starts with '@'"),
        ("@sha256:0", "starts with '@'"),
        ("-x", "starts with '-'"),
        (".", "directory entry"),
        ("..", "directory entry"),
        ("a\nb", "control character"),
        ("a\0b", "control character"),
        ("a\x1b[31mb", "control character"),
        ("a\u202eb", "control character"),
        ("\ud800", "control character"),
        (os.fsdecode(b"\xff"), "control character"),
        ("x" * 256, "takes 256 bytes"),
        ("/" * 86, "takes 258 bytes"),
        ("%" * 86, "takes 258 bytes"),
        ("ü" * 128, "takes 256 bytes"),
    ],
)
def test_a_name_that_may_not_be_made_says_which_rule_it_breaks(stocked: Path, one: str, name: str, rule: str) -> None:
    with Repository.open(stocked, write=True) as repo, pytest.raises(CfsTagsError) as caught:
        tagging.create(repo, name, f"@{one}")

    error = caught.value
    assert (error.code, error.status) == ("invalid-tag-name", 2)
    assert rule in str(error)
    assert str(error).isprintable()
    assert rows(stocked) == {}


@pytest.mark.parametrize(
    "name",
    [
        "app",
        "quay.io/org/app:1.2",
        "docker://quay.io/a/b@sha256:" + "0" * 64,
        "100%",
        "%2F",
        "%25",
        "a@{1}",
        "deployment/x",
        "...",
        ".hidden",
        "a b",
        "ünï/çode",
        "\U0001f600",
        "x" * 255,
        "/" * 85,
        "sha256:e2bc",
    ],
)
def test_any_other_name_is_made_by_us_and_listed_inspected_and_untagged_by_cfsctl(
    stocked: Path, one: str, cfsctl: Cfsctl, name: str
) -> None:
    with Repository.open(stocked, write=True) as repo:
        assert tagging.create(repo, name, f"@{one}").home == "shared"
        assert resolve(repo, name) == one

    assert rows(stocked)[name].digest == cfsctl.tags(stocked)[name] == one
    assert cfsctl.json(stocked, "oci", "inspect", name)["manifest"]
    cfsctl(stocked, "oci", "untag", name)
    assert rows(stocked) == {}
    assert TagName.parse(name) == name


def test_the_prefix_decides_the_owner(stocked: Path) -> None:
    assert owner_of("localhost/bootc-sha256:0") == "bootc"
    assert owner_of("localhost/bootc") == "app"
    assert owner_of("quay.io/localhost/bootc-x") == "app"
