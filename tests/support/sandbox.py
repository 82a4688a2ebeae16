"""Running something in a process of its own, which may then give away what it cannot take back."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["forked", "without_openat2"]


def forked(function: Callable[[], object], *, uid: int | None = None) -> Any:
    """The result of a function in a forked child; an error in the child is a failed assertion.

    Args:
        function: returns what :mod:`pickle` takes.
        uid: the child becomes this user (and group) first, without other groups.
    """
    import pickle

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            try:
                if uid is not None:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                answer = pickle.dumps((True, function()))
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    assert data, "the child ended before it answered"
    done, result = pickle.loads(data)
    assert done, result
    return result


def without_openat2() -> None:
    """From now on this process, and all that it starts, gets ENOSYS for ``openat2``, as on Linux 5.5 or in a sandbox.

    A seccomp filter (linux/seccomp.h, linux/filter.h) of four instructions: load the number of the system call, compare,
    return the error, or allow.
    """
    load, jump_if_equal, give_back = 0x20, 0x15, 0x06
    fail, allow = 0x00050000 | errno.ENOSYS, 0x7FFF0000
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in [(load, 0, 0, 0), (jump_if_equal, 0, 1, 437), (give_back, 0, 0, fail), (give_back, 0, 0, allow)]
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    if prctl(no_new_privileges, 1, 0, 0, 0) or prctl(set_seccomp, mode_filter, filter_program, 0, 0):
        raise OSError(ctypes.get_errno(), f"no seccomp filter on {platform.machine()}")
