"""Where bootc and boot loaders keep things on a host, and how they name them.  Every path of a host is here, once.

::

    SYSROOT/                                   the physical root; /sysroot on the running system
      composefs/                               REPOSITORY
      state/deploy/<id>/<id>.origin            STATE_DEPLOY, origin_name()
                        <id>.imginfo           imginfo_name()
      state/boot/aboot/                        ABOOT, for Android's boot loader
        slots/a, slots/b                       the id of a deployment each
        pending, attempted, rollback           JSON with the id of a deployment
    BOOT/                                      /boot; with systemd-boot often the ESP
      loader/entries/*.conf                    ENTRIES; ENTRIES_STAGED take their place at shutdown
      grub2/ or grub/                          GRUB_DIRECTORIES
        grub.cfg, custom.cfg, user.cfg         GRUB_SCRIPTS; user.cfg.staged takes the place of user.cfg
        grubenv                                GRUB_ENVIRONMENT
    ESP/                                       the EFI system partition; names on it have no case
      EFI/<vendor>/                            GRUB itself, and scripts of it
      EFI/Linux/                               UKIS
        bootc/bootc_composefs-<id>.efi         UKI_DIRECTORY, deployment_of_uki()
        <name>.efi.extra.d/*.addon.efi         add-ons of one UKI
      loader/addons/*.addon.efi                ADDONS: of all UKIs
    /run/composefs/staged-deployment           RUN, STAGED_DEPLOYMENT

Sources: bootc 1.16.9 (``composefs_consts.rs``, ``bootc_composefs/boot.rs``), its later main branch for ``aboot``; systemd 258
(``stub.c``); GRUB as Fedora has it (``blscfg.c``), and bootupd (``src/grub2``).
"""

from __future__ import annotations

import re

from cfs_tags.values import DeploymentId

SYSROOT = "/sysroot"
REPOSITORY = "composefs"
STATE_DEPLOY = "state/deploy"
ABOOT = "state/boot/aboot"
ABOOT_SLOTS = "slots"
ABOOT_RECORDS = ("pending", "attempted", "rollback")
ENTRIES = "loader/entries"
ENTRIES_STAGED = "loader/entries.staged"
GRUB_DIRECTORIES = ("grub2", "grub")
USER_CFG = "user.cfg"
USER_CFG_STAGED = "user.cfg.staged"
GRUB_SCRIPTS = ("grub.cfg", "custom.cfg", USER_CFG)
GRUB_ENVIRONMENT = "grubenv"
EFI = "EFI"
UKIS = "EFI/Linux"
UKI_DIRECTORY = "EFI/Linux/bootc"
ADDONS = "loader/addons"
RUN = "/run"
STAGED_DEPLOYMENT = "composefs/staged-deployment"

BOOTC_TAG_PREFIX = "localhost/bootc-"
"""bootc takes every tag with this prefix for its own, and removes those that it cannot match to a deployment
(bootc 1.16.9, ``bootc_composefs/gc.rs``)."""

DEPLOYMENT_PREFIX = "bootc_composefs-"
"""Before the id, in the names of UKIs and of directories with kernels; one directory may serve several deployments."""

# texts, not patterns: most commands import this and look at no host
_UKI = rf"{DEPLOYMENT_PREFIX}((?:[0-9a-f]{{64}}){{1,2}})\.efi"
_MOUNT = r"(?:composefs:|transient:composefs=)((?:[0-9a-f]{64}){1,2})"


def origin_name(deployment: DeploymentId) -> str:
    """The name of a deployment's origin in its state directory."""
    return f"{deployment}.origin"


def imginfo_name(deployment: DeploymentId) -> str:
    """The name of a deployment's saved manifest and config in its state directory."""
    return f"{deployment}.imginfo"


def is_program(name: str) -> bool:
    """Whether a file on the ESP is a program by its name: a boot loader, a UKI, an add-on."""
    return name.lower().endswith(".efi")


def is_windows(path: str) -> bool:
    """Whether a path of an EFI program is that of the boot manager of Windows, which has one place."""
    return path.replace("\\", "/").casefold().endswith("/efi/microsoft/boot/bootmgfw.efi")


def deployment_of_uki(path: str) -> DeploymentId | None:
    """The deployment in the file name of a UKI, whatever directory it is in; None where the name has another shape."""
    match = re.fullmatch(_UKI, path.rstrip("/").rpartition("/")[2], re.ASCII | re.IGNORECASE)
    # composefs-rs takes capitals too, and means the same image
    return DeploymentId.trusted(match[1].lower()) if match is not None else None


def deployment_of_mount_source(source: str) -> DeploymentId | None:
    """The deployment that is mounted, from the source that ``/proc/self/mountinfo`` shows; None where it is no such.

    ``composefs:<id>``, and ``transient:composefs=<id>`` below a transient root (``composefs_booted`` in status.rs).
    After a soft reboot the command line of the kernel names another deployment than the one that runs: this decides.
    """
    match = re.fullmatch(_MOUNT, source, re.ASCII)
    return DeploymentId.trusted(match[1]) if match is not None else None
