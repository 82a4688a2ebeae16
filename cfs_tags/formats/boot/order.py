"""The order of boot entries, and what it makes of each deployment: booted, staged, rollback or other.

Sources: bootc 1.16.9 (``parsers/bls_config.rs``, ``bootc_composefs/status.rs``), the Boot Loader Specification, the UAPI
version format.
"""

from __future__ import annotations

import re
from functools import cmp_to_key
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cfs_tags.formats.boot.bls import BootEntry
    from cfs_tags.values import DeploymentId

    State = Literal["booted", "staged", "rollback", "other"]

GRUB = "grub"
"""GRUB, also where nothing tells."""

GRUB_CC = "grub-cc"
"""GRUB for confidential clusters, which keeps to the Boot Loader Specification."""

SYSTEMD_BOOT = "systemd-boot"
"""systemd-boot; bootc writes ``systemd``."""


def bootloader(loader_info: str | None) -> str:
    """The boot loader from the EFI variable ``LoaderInfo`` (None: no such variable, or no EFI), as bootc knows it.

    One of ``GRUB``, ``GRUB_CC``, ``SYSTEMD_BOOT`` (``get_bootloader`` in status.rs).
    """
    told = (loader_info or "").lower()
    if "systemd-boot" in told:
        return SYSTEMD_BOOT
    return GRUB_CC if "grub cc" in told else GRUB


def boot_order(entries: Iterable[tuple[str, BootEntry]], loader: str) -> list[tuple[str, BootEntry]]:
    """Boot entries in the order of the menu, the default first.

    ``SYSTEMD_BOOT``: sort key ascending, then machine id ascending, each where both entries have one, then version
    descending.  Any other: file name descending (``get_sorted_type1_boot_entries`` in status.rs; GRUB itself compares the
    parts of the name as versions of packages).  Entries of GRUB's ``user.cfg`` have their order already.

    Args:
        entries: with the name of their file.
        loader: see :func:`bootloader`.
    """
    by_name = sorted(entries, key=lambda named: named[0], reverse=True)
    if loader != SYSTEMD_BOOT:
        return by_name
    return sorted(by_name, key=cmp_to_key(_compare_entries))


def _compare_entries(first_named: tuple[str, BootEntry], second_named: tuple[str, BootEntry]) -> int:
    first, second = first_named[1], second_named[1]
    for one, other in ((first.sort_key, second.sort_key), (first.machine_id, second.machine_id)):
        if one is not None and other is not None and one != other:
            return -1 if one < other else 1
    return compare_versions(second.version or "", first.version or "")


def deployment_states(
    menu: Sequence[DeploymentId],
    waiting: Collection[DeploymentId] = (),
    *,
    booted: DeploymentId | None,
    staged: DeploymentId | None = None,
    loader: str = GRUB,
    uki: bool = False,
    without_origin: Collection[DeploymentId] = (),
) -> dict[DeploymentId, State]:
    """What ``bootc status`` calls each deployment (``composefs_deployment_status_from`` in status.rs).

    The rollback is the first deployment with a boot entry that is neither booted nor staged, in the order of the menu;
    for BLS entries below classic GRUB in the reverse order, which makes a difference from three entries on.  bootc skips
    a deployment without an origin, and all but the staged one of those that are in waiting entries only: they are
    ``other`` here.  If the booted deployment has no entry, bootc fails; here the order is still given.

    Args:
        menu: deployments of the active entries, in the order of the menu (:func:`boot_order`).
        waiting: deployments of the staged entries.
        booted: the running deployment.
        staged: the one in the staged-deployment file.
        loader: see :func:`bootloader`.
        uki: whether GRUB's entries are those of ``user.cfg``.
        without_origin: deployments whose origin is missing.
    """
    order = list(dict.fromkeys(reversed(menu) if loader == GRUB and not uki else menu))
    states: dict[DeploymentId, State] = {}
    if booted is not None:
        states[booted] = "booted"
    if staged is not None:
        states.setdefault(staged, "staged")
    candidates = [name for name in order if name not in states and name not in without_origin]
    if candidates and booted is not None:
        states[candidates[0]] = "rollback"
    for name in [*order, *waiting]:
        states.setdefault(name, "other")
    return states


_OTHERS = re.compile(r"[^0-9A-Za-z~\-^.]+")
_DIGITS = re.compile(r"[0-9]*")
_LETTERS = re.compile(r"[A-Za-z]*")


def compare_versions(first: str, second: str) -> int:
    """Compare by the UAPI version format, as systemd does: -1, 0 or 1 for older, equal and newer.

    bootc's library (uapi-version 0.4) differs in numbers with leading zeros: it takes ``03`` for newer than ``9``.

    >>> compare_versions("41.20251125.0", "42~beta")
    -1
    """
    a = b = 0
    while True:
        a = _skip(_OTHERS, first, a)
        b = _skip(_OTHERS, second, b)
        one, other = first[a : a + 1], second[b : b + 1]
        # a "~" makes older than nothing at all; the others only older than what may follow them
        if "~" in (one, other):
            if one != other:
                return -1 if one == "~" else 1
            a, b = a + 1, b + 1
            continue
        if not one or not other:
            return _sign(bool(one), bool(other))
        separator = next((character for character in "-^." if character in (one, other)), None)
        if separator is not None:
            if one != other:
                return -1 if one == separator else 1
            a, b = a + 1, b + 1
            continue
        numeric = one in "0123456789" or other in "0123456789"
        part = _DIGITS if numeric else _LETTERS
        end_a, end_b = _skip(part, first, a), _skip(part, second, b)
        left, right = first[a:end_a], second[b:end_b]
        if numeric:
            if not left or not right:
                return _sign(bool(left), bool(right))
            # as text: a number of thousands of digits is no number for int()
            left, right = left.lstrip("0"), right.lstrip("0")
            if len(left) != len(right):
                return _sign(len(left), len(right))
        if left != right:
            return -1 if left < right else 1
        a, b = end_a, end_b


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _sign(first: int, second: int) -> int:
    return (first > second) - (first < second)
