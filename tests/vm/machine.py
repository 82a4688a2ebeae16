"""A small machine whose kernel has fs-verity: QEMU without acceleration, and an initramfs of this host's own files.

There is no disk image to keep and nothing to install in it: Python, cfsctl and the packages that cfs-tag needs are taken
from the host, the package and the tests from the checkout.  Python is process 1 (``guest/init.py``).  Disks, all raw files:

====  ========================================================================================
vda   ext4 with fs-verity, mounted at ``/verity``
vdb   ext4 without, mounted at ``/plain``
vdc   no file system: the guest writes a tar with ``junit.xml`` on it
====  ========================================================================================
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import lzma
import os
import platform
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple
from xml.etree import ElementTree

__all__ = ["OLDEST_KERNEL", "Kernel", "Outcome", "build_initramfs", "find_kernel", "run", "why_not"]

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout."""

OLDEST_KERNEL = (6, 12)
"""From here on erofs mounts a file without a loop device, as ``cfsctl oci mount`` wants it."""

_MODULES = ("virtio_pci", "virtio_blk", "ext4", "loop", "erofs", "overlay", "sha512_generic")
_PACKAGES = ("typer", "rich", "filelock", "backports.zstd", "uvicorn", "pytest")
_UNUSED_STDLIB = {
    *("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "distutils", "pydoc_data", "sqlite3", "curses"),
    *("site-packages", "dist-packages"),
}
_UNUSED_EXTENSION = re.compile(r"_test|_tkinter|_dbm|_gdbm|_curses|_sqlite3|_xx|xx|readline|nis|ossaudiodev|_ctypes_test")
_DISK = 256 << 20
_SECONDS = 240
"""How long a machine may run.  It takes a tenth of that; a host that does other things besides, longer."""
_DONE = re.compile(rb"^GUEST-RC=(\d+)\r?$", re.MULTILINE)


class Kernel(NamedTuple):
    """An unpacked kernel: ``release`` as ``uname -r`` says it, the bootable ``image``, the folder of its ``modules``."""

    release: str
    image: Path
    modules: Path


class Outcome(NamedTuple):
    """What a run gave: the console, pytest's exit status (None: the machine stopped before), its junit document; boots."""

    console: str
    status: int | None
    junit: ElementTree.Element | None
    boots: int = 0


# -- what there is -----------------------------------------------------------------------------------------------------


def find_kernel() -> Kernel | None:
    """The newest kernel of the folder ``CFS_TAGS_KERNEL``, else of the one that ``.ci/run`` keeps in its cache."""
    home = Path(os.environ.get("HOME", "/nonexistent"))
    cache = os.environ.get("CFS_TAGS_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or home / '.cache'}/cfs-tag-ci"
    folder = Path(os.environ.get("CFS_TAGS_KERNEL") or f"{cache}/kernel")
    found = []
    for image in folder.glob("boot/vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        modules = folder / "lib" / "modules" / release
        if modules.is_dir():
            found.append(Kernel(release, image, modules))
    return max(found, key=lambda kernel: _version(kernel.release), default=None)


def why_not() -> tuple[str, str] | None:
    """What is missing for a machine, and why; None when there is everything."""
    if platform.machine() != "x86_64":
        return "qemu", f"the machine is made for x86_64, this is {platform.machine()}"
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu", "qemu-system-x86_64 not found"
    if _mke2fs() is None:
        return "mke2fs", "not found"
    kernel = find_kernel()
    if kernel is None:
        return "kernel", "not found: scripts/fetch-kernel gets one"
    if _version(kernel.release) < OLDEST_KERNEL:
        return "kernel", f"{kernel.release} is older than {'.'.join(map(str, OLDEST_KERNEL))}"
    return None


def _mke2fs() -> str | None:
    return shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _version(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:3]))


# -- running -----------------------------------------------------------------------------------------------------------


def run(work: Path, cfsctl: Path, tests: Sequence[str] = ()) -> Outcome:
    """Boot a machine in the empty folder ``work``, run the guest tests in it and wait until it is off.

    A machine that ended before its tests did is started once more: emulation of several processors is not beyond doubt.

    Args:
        work: for the initramfs and the disks, about 200 MB.
        cfsctl: the program.
        tests: names of guest tests, ``test_x.py::test_y``; all of them without.
    """
    kernel = find_kernel()
    mke2fs = _mke2fs()
    assert kernel is not None
    assert mke2fs is not None
    initramfs = work / "initramfs"
    with initramfs.open("wb") as file:
        build_initramfs(file, kernel, cfsctl, tests)
    outcome = Outcome("", None, None)
    for boots in (1, 2):
        for name, options in (("vda", ["-O", "verity"]), ("vdb", ["-O", "^verity"])):
            _empty_disk(work / name)
            subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", *options, work / name], check=True, timeout=60)
        _empty_disk(work / "vdc")
        console = _boot(work, kernel, initramfs)
        done = _DONE.findall(console)
        outcome = Outcome(console.decode(errors="replace"), int(done[-1]) if done else None, None, boots)
        if done:
            break
    if outcome.status is None:
        return outcome
    try:
        with tarfile.open(work / "vdc") as archive:
            file_in_it = archive.extractfile("junit.xml")
            assert file_in_it is not None
            return outcome._replace(junit=ElementTree.fromstring(file_in_it.read()))
    except (tarfile.TarError, KeyError):
        return outcome


def _empty_disk(path: Path) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(_DISK)


def _boot(work: Path, kernel: Kernel, initramfs: Path) -> bytes:
    """Everything that the machine said on its console."""
    drives: list[str] = []
    for name in ("vda", "vdb", "vdc"):
        drives += ["-drive", f"file={work / name},if=none,id={name},format=raw,cache=unsafe"]
        drives += ["-device", f"virtio-blk-pci,drive={name}"]
    command = [
        # if this process is killed, only "timeout" is there to end the machine
        *("timeout", "-k", "5", str(_SECONDS), "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-M", "q35"),
        # with two processors and cmpxchg16b QEMU 7.2 makes a kernel 6.12 crash now and then
        *("-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", "2", "-m", "1024"),
        *("-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
        *("-append", "console=ttyS0 panic=-1 quiet loglevel=2"),
        *drives,
    ]
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        return machine.communicate(timeout=_SECONDS + 30)[0]
    finally:
        if machine.poll() is None:
            machine.terminate()
            machine.wait(30)


# -- the initramfs -----------------------------------------------------------------------------------------------------


def build_initramfs(out: IO[bytes], kernel: Kernel, cfsctl: Path, tests: Sequence[str] = ()) -> None:
    """Write the machine's root file system to ``out``, an uncompressed cpio archive; arguments as for :func:`run`."""
    image = _Cpio(out)
    python = Path(os.path.realpath(sys.executable))
    stdlib = Path(sysconfig.get_path("stdlib"))
    programs = [python, cfsctl]

    for path in _files(stdlib):
        if path.suffix == ".so":
            if _UNUSED_EXTENSION.match(path.name):
                continue
            programs.append(path)
        image.copy(path, str(path))
    for path, name in _packages():
        if path.suffix == ".so":
            programs.append(path)
        image.copy(path, f"/site/{name}")
    libraries = _libraries(programs)
    for path in libraries:
        image.copy(path, str(path))
    image.copy(python, str(python))
    image.copy(cfsctl, "/bin/cfsctl")

    for folder, target in ((ROOT / "cfs_tags", "/site/cfs_tags"), (ROOT / "tests" / "support", "/tests/support")):
        for path in sorted(folder.rglob("*.py")):
            image.compiled(path, f"{target}/{path.relative_to(folder)}")
    for path in sorted((Path(__file__).parent / "guest").glob("*.py")):
        image.copy(path, f"/tests/vm/guest/{path.name}")
    image.file("/init", f"#!{python} -IS\n".encode() + (Path(__file__).parent / "guest" / "init.py").read_bytes(), 0o755)
    image.file("/libraries", "\n".join(sorted({str(path.parent) for path in libraries})).encode())
    image.file("/selected", "\n".join(tests).encode())
    for number, (name, module) in enumerate(_modules(kernel)):
        image.file(f"/modules/{number:02}-{name}", module)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "verity", "plain"):
        image.directory(f"/{name}")
    image.device("/dev/console", 5, 1)
    image.finish()


def _files(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _UNUSED_STDLIB and not name.startswith("config-"))
        for name in sorted(names):
            if name.endswith((".py", ".so", ".pyc")) and ".opt-" not in name:
                yield Path(path, name)


def _packages() -> Iterator[tuple[Path, str]]:
    """The files of the packages that the guest needs and of what those need, with their names below site-packages."""
    from packaging.requirements import Requirement

    seen: set[str] = set()
    wanted = list(_PACKAGES)
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a newer Python has it, or the test that needs it will say so
        needs = [Requirement(text) for text in package.requires or ()]
        wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if ".." in file.parts or (path.suffix not in (".py", ".so") and path.name != "METADATA"):
                continue
            if path.is_file():
                yield path, str(file)
                cached = Path(importlib.util.cache_from_source(path)) if path.suffix == ".py" else path
                if cached != path and cached.is_file():
                    yield cached, str(file.parent / "__pycache__" / cached.name)


def _libraries(programs: Sequence[Path]) -> list[Path]:
    """The shared libraries that these need, the loader too."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, timeout=60, check=False).stdout
    return sorted({Path(found) for found in re.findall(r"(?:=> |^\t)(/\S+) \(0x", said, re.MULTILINE)})


def _modules(kernel: Kernel) -> Iterator[tuple[str, bytes]]:
    """The modules that the guest needs, each after those that it depends on; what is built in has no file."""
    files = {re.sub(r"\.ko.*", "", path.name).replace("-", "_"): path for path in kernel.modules.rglob("*.ko*")}
    done: set[str] = set()

    def with_needed(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in files:
            return
        done.add(name)
        data = _unpacked(files[name])
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in needs[1].decode().split(",") if needs is not None else ():
            yield from with_needed(needed.replace("-", "_"))
        yield name, data

    for name in _MODULES:
        yield from with_needed(name)


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        try:
            from compression import zstd
        except ImportError:
            from backports import zstd
        return bytes(zstd.decompress(data))
    return data


class _Cpio:
    """Writes the "newc" format of Linux's Documentation/driver-api/early-userspace/buffer-format.rst; parents come first."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._known: set[str] = {"/"}

    def copy(self, path: Path, name: str) -> None:
        """A file of the host with its time stamp, which compiled Python files are compared with."""
        status = path.stat()
        self.file(name, path.read_bytes(), stat.S_IMODE(status.st_mode), int(status.st_mtime))

    def compiled(self, path: Path, name: str) -> None:
        """A Python file, and its compiled form whatever the host keeps of it: compiling is what is slow in the guest."""
        self.copy(path, name)
        cache = Path(importlib.util.cache_from_source(name))
        target = self._scratch()
        py_compile.compile(str(path), target, name, doraise=True)
        self.file(str(cache), Path(target).read_bytes())

    def file(self, name: str, data: bytes, mode: int = 0o644, time: int = 0) -> None:
        """A file with these bytes, once."""
        if name not in self._known:
            self._parents(name)
            self._add(name, stat.S_IFREG | mode, data, time)

    def directory(self, name: str) -> None:
        """A directory, once."""
        if name not in self._known:
            self._parents(name)
            self._add(name, stat.S_IFDIR | 0o755)

    def device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self._parents(name)
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> None:
        """End the archive."""
        self._add("/TRAILER!!!", 0)

    def _parents(self, name: str) -> None:
        self.directory(os.path.dirname(name))

    def _scratch(self) -> str:
        return f"{self._out.name}.pyc"

    def _add(self, name: str, mode: int, data: bytes = b"", time: int = 0, device: tuple[int, int] = (0, 0)) -> None:
        self._known.add(name)
        encoded = os.fsencode(name.lstrip("/")) + b"\0"
        numbers = (len(self._known), mode, 0, 0, 1, time, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        self._out.write(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))
