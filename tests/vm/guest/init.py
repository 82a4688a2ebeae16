"""Process 1 of the machine: mounts, loads modules, runs pytest, hands its junit document out and switches off."""

import ctypes
import io
import os
import subprocess
import sys
import tarfile
import traceback

_POWER_OFF = 0x4321FEDC  # linux/reboot.h
_FINIT_MODULE = 313  # arch/x86/entry/syscalls/syscall_64.tbl

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str) -> None:
    os.makedirs(target, exist_ok=True)
    checked(libc.mount(source.encode(), target.encode(), kind.encode(), 0, None), f"mount {kind} at {target}")


def load_modules() -> None:
    for name in sorted(os.listdir("/modules")):
        with open(f"/modules/{name}", "rb") as file:
            checked(libc.syscall(_FINIT_MODULE, file.fileno(), b"", 0), f"load {name}")


def run_tests() -> int:
    with open("/libraries") as file:
        libraries = ":".join(file.read().split())
    with open("/selected") as file:
        selected = file.read().split() or ["."]
    environment = {
        "PATH": "/bin",
        "HOME": "/root",
        "LD_LIBRARY_PATH": libraries,
        "PYTHONPATH": "/site:/tests",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "LC_ALL": "C.UTF-8",
        "CFS_TAGS_REQUIRE_PEERS": "1",
        "CFS_TAGS_CFSCTL": "/bin/cfsctl",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", "--durations=5", "--color=no"]
    command = [sys.executable, "-m", "pytest", *options, "--junitxml=/run/junit.xml", *selected]
    return subprocess.run(command, cwd="/tests/vm/guest", env=environment, stdin=subprocess.DEVNULL, check=False).returncode


def hand_out(disk: str, path: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(path, os.path.basename(path))
    with open(disk, "r+b") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    for target, kind in (("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs"), ("/run", "tmpfs"), ("/tmp", "tmpfs")):
        mount(kind, target, kind)
    load_modules()
    mount("/dev/vda", "/verity", "ext4")
    mount("/dev/vdb", "/plain", "ext4")
    with open("/proc/uptime") as file:
        print(f"booted in {file.read().split()[0]} s", flush=True)
    status = run_tests()
    hand_out("/dev/vdc", "/run/junit.xml")
    with open("/proc/uptime") as file:
        print(f"done after {file.read().split()[0]} s", flush=True)
    print(f"\nGUEST-RC={status}", flush=True)


try:
    main()
except BaseException:
    traceback.print_exc()
finally:
    os.sync()
    libc.reboot(_POWER_OFF)
