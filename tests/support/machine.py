"""Shutting tests off from what the machine's administrator has set up."""

from __future__ import annotations

import ctypes
import os

import pytest

__all__ = ["hide"]

_NEW_MOUNTS, _PRIVATE, _READ_ONLY = 0x20000, 0x44000, 1  # sched.h and sys/mount.h: CLONE_NEWNS, MS_REC | MS_PRIVATE, MS_RDONLY


def hide(directory: str) -> None:
    """Have a directory be empty for this process and those that it starts; another user than root cannot, and ends."""
    if not os.path.isdir(directory) or not os.listdir(directory):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_NEW_MOUNTS)
        or libc.mount(b"none", b"/", None, _PRIVATE, None)
        or libc.mount(b"none", os.fsencode(directory), b"tmpfs", _READ_ONLY, None)
    ):
        reason = os.strerror(ctypes.get_errno())
        pytest.exit(f"what is in {directory} would act on what tests do, and cannot be hidden from them: {reason}", 3)
