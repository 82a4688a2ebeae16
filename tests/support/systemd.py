"""A real systemd in a container of namespaces: this machine's own, on an overlay of this machine's files.

Nothing is downloaded and nothing of this machine is changed: what is written goes into memory.  It needs root, namespaces,
overlayfs and systemd.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["UNITS", "boot", "installed", "why_not"]

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "examples/systemd"
_SYSTEMD = "/usr/lib/systemd/systemd"
_MASKED = (
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-logind.service", "systemd-networkd.service"),
    *("systemd-resolved.service", "systemd-timesyncd.service", "systemd-modules-load.service", "systemd-remount-fs.service"),
    *("systemd-sysctl.service", "systemd-binfmt.service", "dev-hugepages.mount", "dev-mqueue.mount", "getty.target"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount", "systemd-firstboot.service"),
    *("proc-sys-fs-binfmt_misc.automount", "systemd-hwdb-update.service", "apparmor.service"),
    # it would empty /tmp as the container sees it: all that the tests of a long run have left there, in minutes
    "systemd-tmpfiles-setup.service",
)
_BEGIN = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$W"
mkdir "$W/up" "$W/work" "$W/root"
mount -t overlay -o "lowerdir=/,upperdir=$W/up,workdir=$W/work" overlay "$W/root"
cd "$W/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir -p sysroot boot out etc/systemd/system
mount --bind "$HOST" sysroot
mount -o remount,bind,ro sysroot
mount --bind "$HOST/boot" boot
mount --bind "$OUT" out
mkdir run/composefs
for unit in $MASKED; do ln -sf /dev/null "etc/systemd/system/$unit"; done
rm -f etc/fstab
cp -R "$OUT/units/." etc/systemd/system/
pivot_root . mnt
exec env -i container=cfs-tag PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/lib/systemd/systemd --system --unit=test.service
"""
_TEST = """
[Unit]
After=basic.target
Requires=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh /out/script >/out/said 2>&1; echo $? >/out/status'
ExecStopPost=/bin/systemctl exit 7
"""


def why_not() -> str | None:
    """Why there can be no such container here; None where there can."""
    if os.geteuid() != 0:
        return "only root can make the namespaces"
    if not os.path.exists(_SYSTEMD):
        return "there is no systemd"
    made = subprocess.run(["unshare", "-m", "-p", "-C", "-u", "-i", "-n", "-f", "true"], capture_output=True, check=False)
    return None if made.returncode == 0 else f"no namespaces here: {made.stderr.decode().strip()}"


def installed(target: Path) -> Path:
    """The units of the packages in a folder, with this program in the place of the installed one."""
    target.mkdir(parents=True)
    program = Path(sys.executable).parent / "cfs-tag"
    # the Python of a developer is in his home, which units do not see
    python = Path(sys.base_prefix)
    home = f"ProtectHome=tmpfs\nBindReadOnlyPaths={python} {ROOT}\n" if python.is_relative_to("/root") else None
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/cfs-tag", str(program))
        (target / unit.name).write_text(text.replace("ProtectHome=yes\n", home) if home else text)
    return target


def boot(work: Path, host: Path, script: str, drop_ins: dict[str, str] | None = None) -> tuple[int, str]:
    """Boot systemd on a host and run a script there; gives its exit status and all that it said.

    Args:
        work: an empty directory; ``/out`` of the script.
        host: the physical root: ``/sysroot``, which is read-only, and ``/boot``.
        script: of ``sh``, run by a unit after ``basic.target``.
        drop_ins: more lines for units, by the name of the unit.
    """
    out, top = work / "out", work / "top"
    out.mkdir()
    top.mkdir()
    units = installed(out / "units")
    (units / "test.service").write_text(_TEST)
    for name, lines in (drop_ins or {}).items():
        (units / f"{name}.d").mkdir()
        (units / f"{name}.d/test.conf").write_text(lines)
    (out / "script").write_text(script)
    environment = {**os.environ, "W": str(top), "HOST": str(host), "OUT": str(out), "MASKED": " ".join(_MASKED)}
    words = ["unshare", "-m", "-p", "-C", "-u", "-i", "-n", "-f", "--kill-child", "sh", "-c", _BEGIN]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    shutil.rmtree(units)
    if not (out / "status").exists():
        raise AssertionError(f"systemd did not come to the test: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return int((out / "status").read_text()), (out / "said").read_text(errors="replace")
