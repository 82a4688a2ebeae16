"""Origins, saved manifests and the staged deployment: as bootc wrote them, and malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags.errors import ExpectationFailed, FormatError
from cfs_tags.formats.boot.origin import (
    MAX_IMGINFO,
    MAX_ORIGIN,
    ImageReference,
    Origin,
    Staged,
    origin_with_manifest_digest,
    parse_image_reference,
    parse_imginfo,
    parse_origin,
    parse_staged,
)
from cfs_tags.formats.boot.paths import STAGED_DEPLOYMENT, STATE_DEPLOY, deployment_of_mount_source, imginfo_name, origin_name
from cfs_tags.values import DeploymentId, Digest

ID = DeploymentId("6c19d984" * 16)
MANIFEST = Digest("sha256:" + "02aeae61" * 8)
OTHER = Digest("sha256:" + "ffffffff" * 8)

# as bootc 1.16 writes it
WRITTEN = (
    b"[origin]\n"
    b"container-image-reference = ostree-unverified-image:docker://quay.io/org/os:1\n"
    b"\n"
    b"[boot]\n"
    b"boot_type = bls\n"
    b"digest = 70dac675\n"
    b"\n"
    b"[image]\n"
    b"manifest_digest = " + MANIFEST.encode() + b"\n"
)
# as bootc before 1.15 wrote it
OLD = WRITTEN[: WRITTEN.index(b"\n[image]")]


# -- origins -----------------------------------------------------------------------------------------------------------


def test_an_origin_as_bootc_writes_it() -> None:
    found = parse_origin(WRITTEN)

    assert found.reference == "ostree-unverified-image:docker://quay.io/org/os:1"
    assert found.image == ImageReference("ostree-unverified-image", "docker", "quay.io/org/os:1")
    assert found.image_name == "quay.io/org/os:1"
    assert (found.boot_type, found.boot_digest) == ("bls", "70dac675")
    assert found.manifest_digest == MANIFEST
    assert found.problems == ()


def test_what_an_origin_does_not_say_is_none() -> None:
    found = parse_origin(b"[boot]\nboot_type=uki\n")

    assert found == Origin(None, "uki", None, None, {"boot": {"boot_type": "uki"}}, ())
    assert found.image is None
    assert found.image_name is None


def test_an_empty_origin_says_nothing() -> None:
    assert parse_origin(b"").sections == {}


def test_crlf_ends_a_line() -> None:
    assert parse_origin(WRITTEN.replace(b"\n", b"\r\n")) == parse_origin(WRITTEN)


def test_of_two_equal_keys_the_last_counts_and_is_a_problem() -> None:
    # also where the section starts again
    found = parse_origin(WRITTEN + b"[boot]\nboot_type = uki\n[image]\nmanifest_digest = " + OTHER.encode())

    assert found.boot_type == "uki"
    assert found.manifest_digest == OTHER
    assert found.problems == (
        "[boot] boot_type has several values, the last one counts",
        "[image] manifest_digest has several values, the last one counts",
    )


def test_the_same_value_twice_is_no_problem() -> None:
    assert parse_origin(OLD + OLD).problems == ()


def test_keys_before_any_section_are_not_those_of_a_section() -> None:
    found = parse_origin(b"manifest_digest = " + MANIFEST.encode() + b"\n" + OLD)

    assert found.manifest_digest is None
    assert found.sections[""] == {"manifest_digest": MANIFEST}


def test_sections_that_are_not_known_are_kept() -> None:
    assert parse_origin(OLD + b"[x]\ny = z = 1\n").sections["x"] == {"y": "z = 1"}


def test_a_comment_starts_anywhere_also_within_a_value() -> None:
    found = parse_origin(b"; first\n[origin] # here\ncontainer-image-reference = oci:/a#b\n[boot]\nboot_type=bls;\n")

    assert found.reference == "oci:/a"
    assert found.boot_type == "bls"


def test_names_differ_by_case() -> None:
    assert parse_origin(b"[Image]\nmanifest_digest = x\n[image]\nManifest_Digest = x\n").manifest_digest is None


@pytest.mark.parametrize("value", [b"", b"sha256:12", b"SHA256:" + b"a" * 64, b"02aeae61" * 8])
def test_a_digest_that_is_none_is_a_problem_and_not_an_error(value: bytes) -> None:
    # bootc fails on it as a whole
    found = parse_origin(OLD + b"[image]\nmanifest_digest = " + value + b"\n")

    assert found.manifest_digest is None
    assert found.reference is not None
    assert len(found.problems) == 1
    assert found.problems[0].startswith("[image] manifest_digest: ")


@pytest.mark.parametrize("value", [b"quay.io/org/os:1", b"ostree-unverified-image:docker:quay.io/x", b""])
def test_a_reference_that_bootc_could_not_split_is_a_problem_and_shown_whole(value: bytes) -> None:
    found = parse_origin(b"[origin]\ncontainer-image-reference = " + value + b"\n[boot]\nboot_type=bls\n")

    assert found.image is None
    assert found.image_name == value.decode()
    assert len(found.problems) == 1


@pytest.mark.parametrize("value", [b"[boot]\nboot_type = grub\n", b"[boot]\n", b""])
def test_a_boot_type_that_bootc_does_not_know_is_a_problem(value: bytes) -> None:
    assert any("boot_type is neither bls nor uki" in problem for problem in parse_origin(value).problems)


@pytest.mark.parametrize(
    ("data", "offset", "wanted"),
    [
        (b"[origin\n", 0, "a section that ends in ]"),
        (b"[boot]\nboot_type\n", 7, "[section], key = value or a comment"),
        ("[é]\n= x\n".encode(), 5, "[section], key = value or a comment"),
        (b"\xef\xbb\xbf[boot]\n", 0, "[section], key = value or a comment"),
        (b"[boot]\n\xff = 1\n", 7, "UTF-8"),
        (b"\xff\xfe[\0b\0", 0, "UTF-8"),
        (b"\0" * 400, 0, "[section], key = value or a comment"),
        (b"#" * (MAX_ORIGIN + 1), MAX_ORIGIN, "at most 65536 bytes"),
    ],
)
def test_what_bootc_cannot_read_is_refused_with_the_place(data: bytes, offset: int, wanted: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_origin(data)

    assert (refused.value.structure, refused.value.offset, refused.value.wanted) == ("origin", offset, wanted)


def test_an_origin_of_the_longest_size_is_read() -> None:
    assert parse_origin(WRITTEN.ljust(MAX_ORIGIN, b"#")).manifest_digest == MANIFEST


@pytest.mark.parametrize("host", ["a", "b", "e", "h", "w", "w2", "life-staged", "life-rolled-back"])
def test_the_origins_of_recorded_hosts_are_read(host: str, bootc_host: Callable[[str], Path]) -> None:
    root = bootc_host(host)
    recorded = {path.stem: parse_origin(path.read_bytes()) for path in sorted((root / STATE_DEPLOY).glob("*/*.origin"))}

    assert recorded
    for name, origin in recorded.items():
        assert origin_name(DeploymentId.parse(name)) == f"{name}.origin"
        assert origin.problems == ()
        assert origin.boot_type == "bls"


def test_origins_written_by_bootc_agree_with_bootc_status(bootc_host: Callable[[str], Path], hosts: Path) -> None:
    root = bootc_host("life-staged")
    for row in json.loads((hosts / "life-staged.json").read_text())["bootc_status"]:
        if row is not None:
            name = row["verity"]
            found = parse_origin((root / STATE_DEPLOY / name / f"{name}.origin").read_bytes())
            assert found.manifest_digest == row["digest"]
            assert found.image_name == row["image"]


# -- adding the digest -------------------------------------------------------------------------------------------------


def test_a_digest_goes_to_the_end_as_bootc_writes_it() -> None:
    # bootc's file ends in one line feed where no section follows
    assert origin_with_manifest_digest(OLD, MANIFEST) == WRITTEN


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"[image]\nDIGEST\n"),
        (b"[boot]\na=b", b"[boot]\na=b\n\n[image]\nDIGEST\n"),
        (b"[boot]\r\na=b\r\n", b"[boot]\r\na=b\r\n\r\n[image]\r\nDIGEST\r\n"),
        (b"[image]\n\n[boot]\na=b\n", b"[image]\nDIGEST\n\n[boot]\na=b\n"),
        (b"[image]\nx = y # z\n; end\n[boot]\n", b"[image]\nx = y # z\nDIGEST\n; end\n[boot]\n"),
        (b"[image]", b"[image]\nDIGEST\n"),
        (b"[image]\nx=1\n[boot]\na=b\n[image]\n# last\n", b"[image]\nx=1\n[boot]\na=b\n[image]\nDIGEST\n# last\n"),
        (b"  [image]  \n  b = c", b"  [image]  \n  b = c\nDIGEST\n"),
    ],
)
def test_a_digest_is_added_where_it_belongs(before: bytes, after: bytes) -> None:
    wanted = after.replace(b"DIGEST", b"manifest_digest = " + MANIFEST.encode())

    assert origin_with_manifest_digest(before, MANIFEST) == wanted
    assert parse_origin(wanted).manifest_digest == MANIFEST


def test_a_digest_that_is_there_is_left() -> None:
    assert origin_with_manifest_digest(WRITTEN, MANIFEST) == WRITTEN


@pytest.mark.parametrize("there", [OTHER.encode(), b"", b"rubbish"])
def test_another_digest_is_not_overwritten(there: bytes) -> None:
    data = OLD + b"[image]\nmanifest_digest = " + there + b"\n"

    with pytest.raises(ExpectationFailed) as refused:
        origin_with_manifest_digest(data, MANIFEST)

    assert refused.value.found == there.decode()


def test_what_cannot_be_read_is_not_written_to() -> None:
    with pytest.raises(FormatError):
        origin_with_manifest_digest(b"[origin\n", MANIFEST)


# -- references --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verification", "skopeo"),
    [
        ("ostree-unverified-image:docker://quay.io/x:y", "ostree-unverified-image", "docker://quay.io/x:y"),
        ("ostree-unverified-image:registry:quay.io/x:y", "ostree-unverified-image", "docker://quay.io/x:y"),
        ("ostree-unverified-registry:quay.io/x:y", "ostree-unverified-image", "docker://quay.io/x:y"),
        ("ostree-image-signed:docker://quay.io/x@sha256:ab", "ostree-image-signed", "docker://quay.io/x@sha256:ab"),
        ("ostree-remote-registry:fedora:quay.io/x", "ostree-remote-image:fedora", "docker://quay.io/x"),
        ("ostree-remote-image:fedora:docker://quay.io/x", "ostree-remote-image:fedora", "docker://quay.io/x"),
        ("ostree-unverified-image:oci:/some/where:tag", "ostree-unverified-image", "oci:/some/where:tag"),
        (
            "ostree-unverified-image:containers-storage:localhost/x",
            "ostree-unverified-image",
            "containers-storage:localhost/x",
        ),
        ("docker://quay.io/x", "", "docker://quay.io/x"),
        ("oci-archive:/x.tar", "", "oci-archive:/x.tar"),
    ],
)
def test_references_are_split(text: str, verification: str, skopeo: str) -> None:
    found = parse_image_reference(text)

    assert found is not None
    assert (found.verification, str(found)) == (verification, skopeo)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "quay.io/x:y", "ostree-unverified-image", "ostree-unverified-image:", "ostree-unverified-image:quay.io/x"),
        *("ostree-unverified-image:docker:quay.io/x", "ostree-unverified-image:docker://", "ostree-remote-image:fedora"),
        *("ostree-unverified-registry:", "ostree-signed-image:docker://quay.io/x", "tarball:/x"),
    ],
)
def test_what_bootc_cannot_split_is_none(text: str) -> None:
    assert parse_image_reference(text) is None


# -- saved manifests ---------------------------------------------------------------------------------------------------


def imginfo(**changes: object) -> bytes:
    document: dict[str, object] = {
        "config": {"architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [MANIFEST, OTHER]}},
        "manifest": {"schemaVersion": 2, "config": {"digest": OTHER, "size": 1}, "layers": []},
    }
    return json.dumps({**document, **changes}).encode()


def test_a_saved_manifest_names_config_and_layers() -> None:
    found = parse_imginfo(imginfo(future=1))

    assert found.config_digest == OTHER
    assert found.diff_ids == (MANIFEST, OTHER)
    assert found.config["architecture"] == "amd64"
    assert found.manifest["schemaVersion"] == 2


def test_the_saved_manifest_of_a_recorded_host_is_read(bootc_host: Callable[[str], Path]) -> None:
    root = bootc_host("e")
    (path,) = (root / STATE_DEPLOY).glob("*/*.imginfo")

    found = parse_imginfo(path.read_bytes())

    assert path.name == imginfo_name(DeploymentId.parse(path.parent.name))
    # the streams that a look-up goes on with
    streams = root / "composefs/streams"
    assert (streams / f"oci-config-{found.config_digest}").is_symlink()
    assert [(streams / f"oci-layer-{diff_id}").is_symlink() for diff_id in found.diff_ids] == [True]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "JSON"),
        (b"\xff", "UTF-8"),
        (b"[]", "an object"),
        (b"{}", "an object at /manifest"),
        (imginfo(manifest=None), "an object at /manifest"),
        (imginfo(manifest='{"config": {}}'), "an object at /manifest"),
        (imginfo(manifest={}), "an object at /manifest/config"),
        (imginfo(manifest={"config": {"digest": "sha256:12"}}), "a digest at /manifest/config/digest"),
        (imginfo(manifest={"config": {}}), "a digest at /manifest/config/digest"),
        (imginfo(config=7), "an object at /config"),
        (imginfo(config={}), "an object at /config/rootfs"),
        (imginfo(config={"rootfs": {"diff_ids": "x"}}), "a list at /config/rootfs/diff_ids"),
        (imginfo(config={"rootfs": {"diff_ids": [7]}}), "a digest at /config/rootfs/diff_ids"),
        (b" " * (MAX_IMGINFO + 1), "at most 8388608 bytes"),
    ],
)
def test_a_saved_manifest_of_another_shape_is_refused(data: bytes, wanted: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_imginfo(data)

    assert (refused.value.structure, refused.value.wanted) == ("imginfo", wanted)


# -- staged ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked", [True, False])
def test_the_staged_deployment_is_read(locked: bool) -> None:
    data = json.dumps({"depl_id": ID, "finalization_locked": locked}).encode()

    assert parse_staged(data) == Staged(ID, locked)


def test_the_staged_deployment_of_a_recorded_host_is_the_one_that_bootc_named(
    bootc_host: Callable[[str], Path], hosts: Path
) -> None:
    path = bootc_host("life-staged") / "run" / STAGED_DEPLOYMENT
    said = json.loads((hosts / "life-staged.json").read_text())["bootc_status"]

    assert parse_staged(path.read_bytes()).deployment == said[0]["verity"]


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"finalization_locked": True}, "the id of a deployment at /depl_id"),
        ({"depl_id": "../../etc", "finalization_locked": True}, "the id of a deployment at /depl_id"),
        ({"depl_id": ID}, "true or false at /finalization_locked"),
        ({"depl_id": ID, "finalization_locked": "no"}, "true or false at /finalization_locked"),
        ([], "an object"),
    ],
)
def test_a_staged_deployment_of_another_shape_is_refused(document: object, wanted: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_staged(json.dumps(document).encode())

    assert refused.value.wanted == wanted


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_running_deployment_is_in_the_source_of_its_mount() -> None:
    assert deployment_of_mount_source(f"composefs:{ID}") == ID
    assert deployment_of_mount_source(f"transient:composefs={ID}") == ID
    assert deployment_of_mount_source(f"composefs={ID}") is None
    assert deployment_of_mount_source("composefs:../x") is None
    assert deployment_of_mount_source("/dev/vda3") is None
