"""Boot entries, command lines, UKIs and their order: as bootc wrote them, and malformed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cfs_tags.errors import FormatError
from cfs_tags.formats.boot.bls import MAX_BOOT_ENTRY, BootEntry, parse_boot_entry
from cfs_tags.formats.boot.cmdline import (
    ComposefsArgument,
    booted_argument,
    composefs_arguments,
    malformed_arguments,
    split_cmdline,
)
from cfs_tags.formats.boot.grub import MAX_GRUB_CONFIG, GrubEntry, GrubMenu, parse_grub_script
from cfs_tags.formats.boot.order import GRUB, GRUB_CC, SYSTEMD_BOOT, boot_order, bootloader, compare_versions, deployment_states
from cfs_tags.formats.boot.origin import parse_staged
from cfs_tags.formats.boot.paths import ENTRIES, ENTRIES_STAGED, UKI_DIRECTORY, deployment_of_uki
from cfs_tags.formats.boot.uki import MAX_SECTION, uki_cmdline
from cfs_tags.values import Algorithm, DeploymentId

A = DeploymentId("a1" * 64)
B = DeploymentId("b2" * 64)
C = DeploymentId("c3" * 64)
D = DeploymentId("d4" * 64)
SHORT = DeploymentId("5a" * 32)

# as bootc 1.16 writes it
ENTRY = f"""\
title Fake 2
version 2
linux /boot/bootc_composefs-{A}/vmlinuz
initrd /boot/bootc_composefs-{A}/initrd
options root=UUID=1111 rw composefs=?{A}
sort-key bootc-fake-1
"""


# -- command lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        (f"composefs={A}", ComposefsArgument(A, False, "composefs")),
        (f"composefs=?{A}", ComposefsArgument(A, True, "composefs")),
        (f"composefs={SHORT}", ComposefsArgument(SHORT, False, "composefs")),
        (f"composefs={A.upper()}", ComposefsArgument(A, False, "composefs")),
        (f"composefs.digest=v1-sha512-12:{A}", ComposefsArgument(A, False, "v1-sha512-12")),
        (f"composefs.digest=?v1-sha512-12:{A}", ComposefsArgument(A, True, "v1-sha512-12")),
        (f"composefs.digest=v2-sha256-12:{SHORT}", ComposefsArgument(SHORT, False, "v2-sha256-12")),
        (f'composefs="{A}"', ComposefsArgument(A, False, "composefs")),
        (f'"composefs={A}"', ComposefsArgument(A, False, "composefs")),
    ],
)
def test_every_form_of_the_argument_is_known(text: str, argument: ComposefsArgument) -> None:
    assert composefs_arguments(f"root=UUID=1 {text} rw\n") == (argument,)
    assert composefs_arguments(f"root=UUID=1\t{text}\0".encode()) == (argument,)


@pytest.mark.parametrize(
    "text",
    [
        f"xcomposefs={A}",
        f"composefs.x={A}",
        f"Composefs={A}",
        "composefs",
        f'note="a composefs={A}"',
        f'"note=a composefs={A}"',
    ],
)
def test_other_arguments_name_no_image(text: str) -> None:
    assert composefs_arguments(text) == ()
    assert malformed_arguments(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        "composefs=",
        "composefs=?",
        f"composefs={A[:-1]}",
        f"composefs={A}0",
        f"composefs=/{A}",
        f"composefs.digest={A}",
        f"composefs.digest=v3-sha512-12:{A}",
        f"composefs.digest=v1-sha512-16:{A}",
        f"composefs.digest=v1-sha256-12:{A}",
        f"composefs.digest=v1-sha512-12:?{A}",
    ],
)
def test_an_argument_of_unknown_form_differs_from_a_missing_one(text: str) -> None:
    assert composefs_arguments(text) == ()
    assert malformed_arguments(text) == (text,)


def test_undecodable_bytes_do_no_harm() -> None:
    assert composefs_arguments(b"\xff=\xfe composefs=" + A.encode()) == (ComposefsArgument(A, False, "composefs"),)


def test_quotes_join_and_are_taken_off() -> None:
    assert split_cmdline('a  "b c"=1 d="e f" "g=h i" j="k') == [
        ("a", None),
        ('b c"', "1"),
        ("d", "e f"),
        ("g", "h i"),
        ("j", "k"),
    ]


def test_the_initramfs_prefers_the_form_with_the_algorithm() -> None:
    arguments = composefs_arguments(
        f"composefs={A} composefs.digest=v1-sha256-12:{SHORT} "
        f"composefs.digest=v1-sha512-12:{B} composefs.digest=v2-sha512-12:{C}"
    )

    def booted(algorithm: Algorithm) -> str:
        found = booted_argument(arguments, algorithm)
        assert found is not None
        return found.id

    assert booted(Algorithm.SHA512) == B
    assert booted(Algorithm.SHA256) == SHORT
    assert booted_argument(arguments[:1]) == arguments[0]
    assert booted_argument(arguments[:1], Algorithm.SHA256) is None


# -- boot entries ------------------------------------------------------------------------------------------------------


def test_an_entry_as_bootc_writes_it() -> None:
    found = parse_boot_entry(ENTRY.encode())

    assert (found.title, found.version, found.sort_key, found.machine_id) == ("Fake 2", "2", "bootc-fake-1", None)
    assert found.linux == f"/boot/bootc_composefs-{A}/vmlinuz"
    assert found.initrd == (f"/boot/bootc_composefs-{A}/initrd",)
    assert found.options == f"root=UUID=1111 rw composefs=?{A}"
    assert found.arguments == (ComposefsArgument(A, True, "composefs"),)
    assert (found.deployment, found.deployments) == (A, (A,))
    assert found.problems == ()


@pytest.mark.parametrize("key", ["efi", "uki"])
def test_an_entry_for_a_uki_names_the_deployment_in_its_file_name(key: str) -> None:
    data = f"title x\nversion 1\n{key} /EFI/Linux/bootc/bootc_composefs-{A}.efi\nsort-key bootc-x-0\n"
    found = parse_boot_entry(data.encode())

    assert found.efi == f"/EFI/Linux/bootc/bootc_composefs-{A}.efi"
    assert (found.deployment, found.programs) == (A, (found.efi,))
    assert found.problems == ()


def test_deployments_share_kernels_so_the_directory_names_none() -> None:
    found = parse_boot_entry(ENTRY.replace(f"composefs=?{A}", f"composefs={B}").encode())

    assert found.deployments == (B,)


def test_several_initrds_keep_their_order_and_several_options_are_one() -> None:
    found = parse_boot_entry(f"{ENTRY}initrd /b\noptions quiet composefs={A}\n".encode())

    assert found.initrd[1:] == ("/b",)
    assert found.options == f"root=UUID=1111 rw composefs=?{A} quiet composefs={A}"
    assert found.problems == ()


def test_comments_tabs_crlf_and_unknown_keys() -> None:
    lines = f"# options composefs={B}||version\t1|  linux \t /x/y  |options\tcomposefs={A}|architecture x64|lone|"
    found = parse_boot_entry(lines.replace("|", "\r\n").encode())

    assert (found.version, found.linux, found.deployments) == ("1", "/x/y", (A,))
    assert found.extra == {"architecture": "x64"}
    assert found.problems == ()


def test_two_different_images_are_both_kept_and_a_problem() -> None:
    found = parse_boot_entry(ENTRY.replace("rw", f"rw composefs={B}").encode())

    assert found.deployment == B
    assert found.deployments == (B, A)
    assert found.problems == ("two different images in composefs=, the first one boots",)


def test_one_image_in_two_forms_has_two_ids_and_is_no_problem() -> None:
    found = parse_boot_entry(f"{ENTRY}options composefs.digest=v1-sha512-12:{B}\n".encode())

    # the initramfs looks for this form first
    assert found.deployments == (B, A)
    assert found.problems == ()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (ENTRY.replace("version 2\n", ""), "no version: bootc reads none of its boot entries"),
        ("version 1\n", "not one of linux, efi and uki: bootc reads none of its boot entries"),
        (f"{ENTRY}efi /x.efi\n", "not one of linux, efi and uki: bootc reads none of its boot entries"),
        (f"{ENTRY}linux /other\n", "several values for linux, the last one counts"),
        (f"{ENTRY}options composefs=x\n", "composefs=x names no image"),
    ],
)
def test_what_bootc_would_fail_on_is_a_problem_of_the_entry(data: str, problem: str) -> None:
    assert parse_boot_entry(data.encode()).problems == (problem,)


def test_another_systems_entry_boots_no_deployment() -> None:
    found = parse_boot_entry(b"title memtest\nversion 7\nefi /EFI/memtest/memtest.efi\n")

    assert (found.deployment, found.problems) == (None, ())


@pytest.mark.parametrize(
    ("data", "wanted"),
    [(b"title \xff\n", "UTF-8"), (b"#" * (MAX_BOOT_ENTRY + 1), "at most 65536 bytes")],
)
def test_an_entry_that_is_no_text_is_refused(data: bytes, wanted: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_boot_entry(data)

    assert (refused.value.structure, refused.value.wanted) == ("boot entry", wanted)


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_lead_to_deployments_and_back() -> None:
    assert deployment_of_uki(f"/{UKI_DIRECTORY}/bootc_composefs-{A}.efi") == A


@pytest.mark.parametrize(
    "name", ["", ".efi", "bootc_composefs-.efi", f"{A}.efi", f"bootc_composefs-{A}", f"bootc_composefs-{A}x.efi"]
)
def test_other_names_lead_to_none(name: str) -> None:
    assert deployment_of_uki(name) is None


# -- GRUB --------------------------------------------------------------------------------------------------------------

# as bootc 1.16 writes it
USER_CFG = f"""
if [ -f ${{config_directory}}/efiuuid.cfg ]; then
        source ${{config_directory}}/efiuuid.cfg
fi
menuentry "Fake 2: ({A})" {{
insmod fat
insmod chain
search --no-floppy --set=root --fs-uuid "${{EFI_PART_UUID}}"
chainloader /EFI/Linux/bootc/bootc_composefs-{A}.efi
}}
menuentry "Fake 1: ({B})" {{
insmod fat
insmod chain
search --no-floppy --set=root --fs-uuid "${{EFI_PART_UUID}}"
chainloader /EFI/Linux/bootc/bootc_composefs-{B}.efi
}}
"""


def parse_grub_config(data: bytes) -> tuple[GrubEntry, ...]:
    script = parse_grub_script(data)
    return GrubMenu((script,), {}, "/grub2").entries(script)


def test_the_menu_of_grub_keeps_its_order() -> None:
    found = parse_grub_config(USER_CFG.encode())

    assert [entry.deployments for entry in found] == [(A,), (B,)]
    assert found[0].title == f"Fake 2: ({A})"
    assert found[0].programs == (f"/EFI/Linux/bootc/bootc_composefs-{A}.efi",)


def test_a_configuration_without_entries_has_none() -> None:
    assert parse_grub_config(b"") == ()
    assert parse_grub_config(b"# menuentry of mine\nset timeout=5\n") == ()


def test_entries_in_other_peoples_writing() -> None:
    data = f"""
    menuentry 'a "quoted" one' --class fedora {{
        linux /vmlinuz root=x composefs={A}
        if [ x = y ]; then {{ echo "\\}}" }} fi
    }}
    menuentry "with \\" and {{braces}}" {{
        chainloader "/EFI/Linux/bootc/bootc_composefs-{B}.efi"
    }}
    menuentry bare {{
        chainloader /EFI/other/shim.efi
    }}"""
    found = parse_grub_config(data.encode())

    assert [entry.title for entry in found] == ['a "quoted" one', 'with " and {braces}', "bare"]
    assert [entry.deployments for entry in found] == [(A,), (B,), ()]
    assert found[2].programs == ("/EFI/other/shim.efi",)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b'menuentry "a" {\n', "a menuentry with as many } as {"),
        (b'menuentry "a" {\n{\n}\n', "a menuentry with as many } as {"),
        (b'menuentry "a\n', 'menuentry "title" {'),
        (b"menuentry {\n}\n", 'menuentry "title" {'),
        (b"menuentry\n", 'menuentry "title" {'),
        (b"\xff", "UTF-8"),
        (b"#" * (MAX_GRUB_CONFIG + 1), "at most 1048576 bytes"),
    ],
)
def test_an_entry_that_could_boot_anything_is_refused(data: bytes, wanted: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_grub_config(data)

    assert refused.value.wanted == wanted


# -- order -------------------------------------------------------------------------------------------------------------


def names(order: Iterable[tuple[str, BootEntry]]) -> list[str]:
    return [name for name, _ in order]


def test_grub_goes_by_the_file_name_descending() -> None:
    entries = [(name, BootEntry(version="9", sort_key="a")) for name in ("bootc_x-1-0.conf", "bootc_x-2-1.conf", "a.conf")]

    assert names(boot_order(entries, GRUB)) == ["bootc_x-2-1.conf", "bootc_x-1-0.conf", "a.conf"]
    assert names(boot_order(entries, GRUB_CC)) == ["bootc_x-2-1.conf", "bootc_x-1-0.conf", "a.conf"]


def test_systemd_boot_goes_by_sort_key_then_machine_then_version_descending() -> None:
    entries = [
        ("1", BootEntry(version="1", sort_key="bootc-x-1")),
        ("2", BootEntry(version="9", sort_key="bootc-x-0", machine_id="b")),
        ("3", BootEntry(version="1.9", sort_key="bootc-x-0", machine_id="a")),
        ("4", BootEntry(version="1.10", sort_key="bootc-x-0", machine_id="a")),
    ]

    assert names(boot_order(entries, SYSTEMD_BOOT)) == ["4", "3", "2", "1"]


# the table of the UAPI version format, and what systemd-analyze compare-versions says
@pytest.mark.parametrize(
    ("older", "newer"),
    [
        *(("11", "11a"), ("123~rc1", "123"), ("123", "123^patch1"), ("1.0", "1.0.1"), ("1.9", "1.10"), ("1-1", "1.1")),
        *(("1.1", "1a"), ("a", "b"), ("A", "a"), ("a", "1"), ("123.a", "123.1"), ("", "1"), ("~", ""), ("1~", "1")),
        *(
            ("03", "9"),
            ("9", "010"),
            ("1.0~rc1", "1.0"),
            ("41.20251125.0", "42~beta"),
            ("124-1", "124^1"),
            ("122.1", "123~rc1-1"),
        ),
    ],
)
def test_versions_are_ordered_as_by_systemd(older: str, newer: str) -> None:
    assert compare_versions(older, newer) == -1
    assert compare_versions(newer, older) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("1", "01"), ("1 2", "1_2"), ("", "é"), ("0", "00"), ("9" * 5000, "09" + "9" * 4999)]
)
def test_versions_that_look_different_may_be_equal(one: str, other: str) -> None:
    assert compare_versions(one, other) == 0


@pytest.mark.parametrize(
    ("told", "loader"),
    [
        (None, GRUB),
        ("", GRUB),
        ("systemd-boot 258-1.fc43", SYSTEMD_BOOT),
        ("GRUB CC 2.12", GRUB_CC),
        ("GRUB 2.12", GRUB),
        ("rEFInd", GRUB),
    ],
)
def test_the_boot_loader_tells_what_it_is(told: str | None, loader: str) -> None:
    assert bootloader(told) == loader


# -- states ------------------------------------------------------------------------------------------------------------


def test_the_next_in_the_menu_is_the_rollback() -> None:
    states = deployment_states([A, B, C], booted=A, loader=SYSTEMD_BOOT)

    assert states == {A: "booted", B: "rollback", C: "other"}


def test_below_grub_bootc_looks_from_the_end_of_the_menu() -> None:
    assert deployment_states([A, B, C], booted=A, loader=GRUB)[C] == "rollback"
    assert deployment_states([A, B, C], booted=A, loader=GRUB, uki=True)[B] == "rollback"
    assert deployment_states([A, B, C], booted=A, loader=GRUB_CC)[B] == "rollback"


def test_a_staged_deployment_is_neither_rollback_nor_other() -> None:
    states = deployment_states([A, B], [C, A, D], booted=A, staged=C)

    assert states == {A: "booted", B: "rollback", C: "staged", D: "other"}


def test_the_booted_deployment_stays_booted_when_it_is_staged_too() -> None:
    assert deployment_states([A], booted=A, staged=A) == {A: "booted"}


def test_bootc_passes_over_a_deployment_without_an_origin() -> None:
    states = deployment_states([A, B, C], booted=A, loader=SYSTEMD_BOOT, without_origin=[B])

    assert states == {A: "booted", B: "other", C: "rollback"}


def test_where_nothing_is_known_to_run_there_is_no_rollback() -> None:
    assert deployment_states([A, B], booted=None) == {A: "other", B: "other"}


@pytest.mark.parametrize("host", ["life-staged", "life-finalized", "life-rebooted", "life-rolled-back"])
def test_states_of_recorded_hosts_are_those_that_bootc_reported(
    host: str, bootc_host: Callable[[str], Path], hosts: Path
) -> None:
    root = bootc_host(host)
    record = json.loads((hosts / f"{host}.json").read_text())

    def deployments(directory: str) -> list[DeploymentId]:
        entries = [(path.name, parse_boot_entry(path.read_bytes())) for path in (root / "boot" / directory).glob("*.conf")]
        for _, entry in entries:
            assert entry.problems == ()
        order = boot_order(entries, GRUB)
        return [entry.deployment for _, entry in order if entry.deployment is not None]

    file = root / "run/composefs/staged-deployment"
    staged = parse_staged(file.read_bytes()).deployment if file.exists() else None

    states = deployment_states(
        deployments(ENTRIES),
        deployments(ENTRIES_STAGED),
        booted=DeploymentId.parse(record["booted"]),
        staged=staged,
    )

    # bootc lists staged, booted, rollback
    wanted = zip(("staged", "booted", "rollback"), record["bootc_status"], strict=True)
    assert states == {row["verity"]: state for state, row in wanted if row is not None}


# -- UKIs --------------------------------------------------------------------------------------------------------------


def portable_executable(sections: list[tuple[bytes, bytes]], optional: int = 240) -> bytes:
    """A PE file with sections aligned to 512 bytes, as ukify makes it."""
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 128) + bytes(64)
    head += b"PE\0\0" + struct.pack("<2H3I2H", 0x8664, len(sections), 0, 0, 0, optional, 0x22) + bytes(optional)
    at = -(-(len(head) + 40 * len(sections)) // 512) * 512
    body = b""
    for name, content in sections:
        padded = content.ljust(-(-len(content) // 512) * 512, b"\0")
        head += struct.pack("<8s4I12xI", name, len(content), at + len(body), len(padded), at + len(body), 0x40000040)
        body += padded
    return head.ljust(at, b"\0") + body


class Reader:
    """Gives bytes and notes which."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = 0

    def __call__(self, offset: int, length: int) -> bytes:
        self.asked += length
        return self.data[offset : offset + length]


UKI = portable_executable(
    [
        (b".text", b"\x90" * 1000),
        (b".osrel", b'NAME="Fake"\nVERSION_ID=1\n'),
        (b".cmdline", f"root=UUID=1 composefs={A}".encode()),
        (b".linux", bytes(1 << 20)),
    ]
)


def test_the_command_line_of_a_uki_is_found() -> None:
    cmdline = uki_cmdline(Reader(UKI), len(UKI))

    assert composefs_arguments(cmdline) == (ComposefsArgument(A, False, "composefs"),)


def test_only_headers_and_the_section_are_read() -> None:
    reader = Reader(UKI)
    uki_cmdline(reader, len(UKI))

    assert reader.asked < 400


def test_profiles_have_a_command_line_each() -> None:
    data = portable_executable([(b".cmdline", b"composefs=1"), (b".profile", b"ID=x"), (b".cmdline", b"composefs=2\0\0")])

    assert uki_cmdline(Reader(data), len(data)) == b"composefs=1\ncomposefs=2"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "4 bytes (the offset of the PE header)"),
        (UKI[:100], "24 bytes (a PE header)"),
        (UKI[:400], "160 bytes (4 section headers)"),
        (UKI[:128] + b"NE" + UKI[130:], "PE magic"),
        (UKI.replace(b".cmdline", b".cmdlin\0"), "a section .cmdline"),
        (UKI[: UKI.index(b"root=UUID") + 20], f"{len(f'root=UUID=1 composefs={A}')} bytes (section .cmdline)"),
        (UKI[:60] + b"\xff\xff\xff\xff" + UKI[64:], "24 bytes (a PE header)"),
        (portable_executable([(b".cmdline", bytes(MAX_SECTION + 1))]), "a section .cmdline of at most 1048576 bytes"),
    ],
)
def test_a_uki_without_a_command_line_is_refused(data: bytes, wanted: str) -> None:
    with pytest.raises(FormatError) as refused:
        uki_cmdline(Reader(data), len(data))

    assert (refused.value.structure, refused.value.wanted) == ("UKI", wanted)


def test_sections_that_share_their_bytes_take_no_more_than_those_bytes() -> None:
    """A file of 5 MB whose 65,535 sections are all its command line would be 64 GiB."""
    content = b"x" * (1 << 20)
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I4sHH12xHH", 64, b"PE\0\0", 0x8664, 65535, 0, 0x22)
    at = len(head) + 40 * 65535
    data = head + struct.pack("<8s4I16x", b".cmdline", len(content), 0, len(content), at) * 65535 + content
    reader = Reader(data)

    with pytest.raises(FormatError) as refused:
        uki_cmdline(reader, len(data))

    assert refused.value.wanted == "a section .cmdline of at most 0 bytes"
    assert reader.asked < len(data)


def test_a_program_that_is_no_uki_has_no_command_line_and_one_that_is_has_one() -> None:
    tool = portable_executable([(b".text", b"x"), (b".sbat", b"sbat,1")])
    assert uki_cmdline(Reader(tool), len(tool)) is None
    addon = portable_executable([(b".cmdline", b"quiet")])
    assert uki_cmdline(Reader(addon), len(addon)) == b"quiet"
    empty = portable_executable([(b".cmdline", b""), (b".linux", b"x")])
    assert uki_cmdline(Reader(empty), len(empty)) == b""


def test_a_file_that_became_shorter_is_refused() -> None:
    with pytest.raises(FormatError):
        uki_cmdline(Reader(UKI[:1000]), len(UKI))
