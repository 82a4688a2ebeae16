"""Platforms: what images run on, as ``OS/ARCH[/VARIANT]``; and which image of an index is for one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cfs_tags.errors import UsageError
from cfs_tags.formats.oci import Descriptor, ImageConfig, Platform

# what uname says, as Go says it
_MACHINES = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "loongarch64": ("loong64", None),
    "mips64": ("mips64le", None),
}

_IMPLIED = {("arm64", "v8"), ("amd64", "v1")}
"""Variants that every machine of the architecture has: an index may name them or not."""


def this_machine() -> Platform:
    """The platform of the machine that we run on."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, None))
    return Platform(architecture, "linux", variant)


def parse(text: str) -> Platform:
    """``OS/ARCH[/VARIANT]``, such as ``linux/arm64`` or ``linux/arm/v7``.

    Raises:
        UsageError: it is something else.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isprintable() and part for part in parts):
        raise UsageError(
            "invalid-argument", argument="platform", value=text, reason="is not OS/ARCH[/VARIANT], such as linux/arm64"
        )
    return Platform(parts[1], parts[0], parts[2] if len(parts) == 3 else None)


def shown(platform: Platform | None, separator: str = "/") -> str:
    """As :func:`parse` reads it; ``unknown`` for none."""
    if platform is None:
        return "unknown"
    parts = [platform.os or "unknown", platform.architecture or "unknown"]
    if platform.variant:
        parts.append(platform.variant)
    return separator.join(parts)


def of_config(config: ImageConfig) -> Platform:
    """What an image says of itself."""
    return Platform(config.architecture, config.os, config.variant, config.os_version)


def fits(wanted: Platform, found: Platform) -> bool:
    """Whether an image for ``found`` is what ``wanted`` asks for; a variant that is not asked for may be any implied one."""
    return (wanted.os, wanted.architecture, _variant(wanted)) == (found.os, found.architecture, _variant(found))


def key(platform: Platform) -> tuple[str, str, str | None, str | None]:
    """Equal for equal platforms, whether or not a variant is named that every machine has."""
    return platform.os, platform.architecture, _variant(platform), platform.os_version


def with_platform(manifests: Sequence[Descriptor]) -> list[Descriptor]:
    """The entries of an index that are for a platform: not attestations, which say ``unknown/unknown``."""
    none = ("", "unknown")
    return [
        entry
        for entry in manifests
        if entry.platform is not None and entry.platform.os not in none and entry.platform.architecture not in none
    ]


def fitting(manifests: Sequence[Descriptor], wanted: Platform) -> list[Descriptor]:
    """The entries of an index that are for a platform, the best first, as skopeo and podman choose.

    An arm machine without an image for its own variant takes one for an older one.
    """
    known = with_platform(manifests)
    places = [
        place
        for platform in _fallbacks(wanted)
        for place, entry in enumerate(known)
        if entry.platform is not None and fits(platform, entry.platform)
    ]
    return [known[place] for place in dict.fromkeys(places)]


def _variant(platform: Platform) -> str | None:
    return None if (platform.architecture, platform.variant) in _IMPLIED else platform.variant or None


def _fallbacks(wanted: Platform) -> list[Platform]:
    found = [wanted]
    if wanted.architecture == "arm" and wanted.variant in ("v6", "v7", "v8"):
        found += [wanted._replace(variant=f"v{number}") for number in range(int(wanted.variant[1]) - 1, 4, -1)]
    if wanted.variant is not None:
        found.append(wanted._replace(variant=None))
    return found
