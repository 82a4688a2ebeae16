"""The units of the packages: what systemd says of them, and what they do under a real systemd, sandbox and all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run
from support import systemd
from support.peers import no_peer
from support.trees import tree

NAMES = sorted(path.name for path in systemd.UNITS.iterdir())
SERVICES = [name for name in NAMES if name.endswith(".service")]
STOPPED = ("--esp", "none", "--run", "none", "--booted", "none")


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("systemd-analyze") is None:
        no_peer("systemd-analyze")
    return systemd.installed(tmp_path_factory.mktemp("units") / "system")


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_wrong(name: str, units: Path) -> None:
    words = ["systemd-analyze", "verify", "--man=no", f"./{name}"]
    done = subprocess.run(words, cwd=units, capture_output=True, text=True, check=False)

    assert [line for line in done.stderr.splitlines() if "cfs-tag" in line] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_little(name: str, units: Path, tell: Callable[[str], None]) -> None:
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"./{name}"]
    done = subprocess.run(words, cwd=units, capture_output=True, text=True, check=False)

    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found is not None, done
    tell(f"{name}: {found[1]}")
    assert float(found[1]) < 3


# -- under a real systemd ----------------------------------------------------------------------------------------------

BOTH = pytest.mark.slow


@pytest.fixture(autouse=True)
def _systemd(request: pytest.FixtureRequest) -> None:
    if "boot" in request.fixturenames and (why := systemd.why_not()) is not None:
        pytest.skip(why)


@pytest.fixture
def boot(tmp_path: Path, sysroot: Path) -> Any:
    def run(script: str, drop_ins: dict[str, str] | None = None) -> list[str]:
        work = tmp_path / "systemd"
        work.mkdir()
        status, said = systemd.boot(work, sysroot, script, drop_ins)
        assert status == 0, said
        return said.splitlines()

    return run


def with_options(name: str, units: Path, *options: str) -> str:
    """The commands of a service with more options, as lines of a drop-in."""
    commands = re.findall(r"^(ExecStart=.*?)('?)$", (units / name).read_text(), re.MULTILINE)
    assert commands
    return "\n".join(["[Service]", "ExecStart=", *(f"{line} {' '.join(options)}{quote}" for line, quote in commands), ""])


SHOW = """
status() { systemctl show -P "$1" "$2"; }
wait_for() { for i in $(seq 300); do eval "$1" && return 0; sleep 0.1; done; echo "never: $1"; return 1; }
"""


@BOTH
def test_maintain_runs_from_its_timer_and_can_write_the_repository_alone(boot: Any, run: Run, repo: Path, facts: Any) -> None:
    hook = "/etc/cfs-tags/hooks.d/pre/spy"
    lines = boot(
        SHOW
        + f"""
set -e
mkdir -p /etc/cfs-tags/hooks.d/pre
cat >{hook} <<'END'
#!/bin/sh
for place in /etc /usr /var /sysroot /sysroot/state /boot /out /sysroot/composefs; do
    (: >$place/written) 2>/dev/null && echo "$place"
done >/sysroot/composefs/written-places
rm -f /sysroot/composefs/written
ls /sys/class/net >>/sysroot/composefs/written-places
END
chmod 755 {hook}
systemctl start cfs-tag-maintain.timer
systemctl show -P NextElapseUSecRealtime cfs-tag-maintain.timer | grep -q 20
systemctl start cfs-tag-maintain.service || {{ journalctl -u cfs-tag-maintain | tail -20; exit 1; }}
status Result cfs-tag-maintain.service
grep -q ' /sysroot ro,' /proc/self/mountinfo
"""
    )
    assert lines[-1] == "success"
    assert (repo / "written-places").read_text().split() == ["/sysroot/composefs", "lo"]
    assert {row["name"] for row in run("list", "--json").result if row["home"] == "deployment"} == {
        f"@deployment/{name}" for name in facts["deployments"]
    }
    assert run("log", "--json").result[0]["action"] == "maintain"
    assert run("log", "--json").result[0]["reason"] == "timer"
    assert run("fsck", "--content").status == 0


@BOTH
def test_a_deployment_that_appears_has_its_ref_within_seconds_and_one_that_goes_is_retired(
    boot: Any, units: Path, run: Run, sysroot: Path, facts: Any, tell: Callable[[str], None]
) -> None:
    new, *_ = [one for one in facts["deployments"] if one != facts["booted"]]
    state, entries = sysroot / "state/deploy", sysroot / "boot/loader/entries"
    shutil.move(state / new, sysroot / "later")
    away = sysroot / "entries-later"
    away.mkdir()
    for entry in [*entries.glob("*.conf"), *(sysroot / "boot/loader").glob("entries.staged/*.conf")]:
        if new in entry.read_text():
            shutil.move(entry, away / entry.name)
    lines = boot(
        SHOW
        + f"""
mount -o remount,bind,rw /sysroot
ref=/sysroot/composefs/streams/refs/cfs-tags/deployments/{new}
systemctl start cfs-tag-adopt.path
test ! -e "$ref" || echo "there already"
begun=$(date +%s%N)
mv /sysroot/later /sysroot/state/deploy/{new}
wait_for 'test -L "$ref"' || {{ journalctl -u cfs-tag-adopt.service | tail; exit 1; }}
echo took $(( ($(date +%s%N) - begun) / 1000000 )) ms
wait_for '[ "$(status ActiveState cfs-tag-adopt.service)" = inactive ]'
sleep 0.3
mv /sysroot/state/deploy/{new} /sysroot/gone
wait_for 'test ! -L "$ref"' || {{ journalctl -u cfs-tag-adopt.service | tail; exit 1; }}
wait_for '[ "$(status ActiveState cfs-tag-adopt.service)" = inactive ]'
status Result cfs-tag-adopt.service
""",
        {"cfs-tag-adopt.service": with_options("cfs-tag-adopt.service", units, *STOPPED, "--grace", "0")},
    )
    assert [line for line in lines if not line.startswith("took")] == ["success"], lines
    (took,) = [int(line.split()[1]) for line in lines if line.startswith("took")]
    tell(f"from the deployment to its ref: {took} ms")
    assert took < 20_000
    actions = [row["action"] for row in run("log", "--json").result if new in row["name"]]
    assert actions == ["retire", "adopt"]


@BOTH
def test_a_good_boot_is_recorded_once_the_boot_is_complete(
    boot: Any, units: Path, call: Run, sysroot: Path, facts: Any
) -> None:
    command = with_options("cfs-tag-good-boot.service", units, "--booted", facts["booted"], "--esp", "none")
    lines = boot(
        SHOW
        + """
systemctl start cfs-tag-good-boot.service || { journalctl -u cfs-tag-good-boot.service | tail; exit 1; }
status ActiveState boot-complete.target
status Result cfs-tag-good-boot.service
""",
        {"cfs-tag-good-boot.service": f"[Unit]\nConditionKernelCommandLine=\n{command}"},
    )

    assert lines == ["active", "success"]
    boots = call("--sysroot", sysroot, "good-boot", "--list", *STOPPED, "--json").result
    assert facts["booted"] in json.dumps(boots)


@BOTH
def test_other_programs_are_answered_by_a_service_that_its_socket_starts(boot: Any, run: Run, web: str) -> None:
    client = f"{sys.executable} -m varlink.cli call unix:/run/org.cfstags/org.cfstags"
    change = '{"changes": [{"verb": "create", "name": "by-varlink:1", "target": "quay.io/apps/web:1"}]}'
    lines = boot(
        SHOW
        + f"""
set -e
systemctl start cfs-tag-varlink.socket
status ActiveState cfs-tag-varlink.service
{client}.Resolve '{{"name": "quay.io/apps/web:1"}}' >/out/found || {{ journalctl -u cfs-tag-varlink | tail -20; exit 1; }}
{client}.Update '{change}' >>/out/found || {{ journalctl -u cfs-tag-varlink | tail -20; exit 1; }}
grep -o 'sha256:[0-9a-f]*' /out/found | sort -u
status ActiveState cfs-tag-varlink.service
systemctl stop cfs-tag-varlink.service 2>/out/warned
status Result cfs-tag-varlink.service
"""
    )
    assert lines == ["inactive", web, "active", "success"]
    assert "by-varlink:1" in run("list").out


@BOTH
def test_the_registry_is_started_by_its_socket(boot: Any, web: str) -> None:
    lines = boot(
        SHOW
        + """
set -e
ip link set lo up
systemctl start cfs-tag-serve.socket
status ActiveState cfs-tag-serve.service
curl -sf http://127.0.0.1:5000/v2/quay.io/apps/web/manifests/1 -H 'Accept: */*' >/out/manifest ||
    { journalctl -u cfs-tag-serve.service | tail -20; exit 1; }
status ActiveState cfs-tag-serve.service
grep -c schemaVersion /out/manifest
"""
    )
    assert lines == ["inactive", "active", "1"]


@BOTH
def test_what_runs_is_published_from_the_timer_and_an_unchanged_host_costs_a_request(
    boot: Any, units: Path, registry: Path, repo: Path, facts: Any, tmp_path: Path
) -> None:
    service, address = "cfs-tag-publish.service", "127.0.0.1:5000"
    options = (*STOPPED[:4], "--booted", facts["booted"])
    before = tree(repo)
    lines = boot(
        SHOW
        + f"""
set -e
ip link set lo up
cat >/run/registry.yml <<'END'
version: 0.1
log: {{accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: /run/registry}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
END
{registry} serve /run/registry.yml >/out/asked 2>&1 &
wait_for 'curl -sf http://{address}/v2/ >/dev/null'
asked() {{ grep -c '"[A-Z]* /v2/os/' /out/asked; }}
fail() {{ journalctl -u {service} | tail -20; exit 1; }}
systemctl start {service}
echo "without a place: $(status ConditionResult {service})"
mkdir -p /etc/cfs-tags
echo PLACE={address}/os >/etc/cfs-tags/publish
systemctl start {service} 2>/dev/null || echo "lost: $(status ExecMainStatus {service})"
{Path(sys.executable).parent}/cfs-tag --system publish {address}/os --restore {" ".join(options)} >/dev/null || fail
rm -r /var/lib/cfs-tags
systemctl start cfs-tag-publish.timer
wait_for 'ls /var/lib/cfs-tags/*.json >/dev/null 2>&1'
wait_for '[ "$(status ActiveState {service})" = inactive ]'
echo "published: $(status Result {service})"
curl -sf http://{address}/v2/os/tags/list >/out/tags
before=$(asked)
systemctl start {service} || fail
echo "unchanged: $(($(asked) - before)) request"
""",
        {
            service: with_options(service, units, *options),
            "cfs-tag-publish.timer": "[Timer]\nOnActiveSec=1s\nAccuracySec=100ms\nRandomizedDelaySec=0\n",
        },
    )

    assert lines == ["without a place: no", "lost: 4", "published: success", "unchanged: 1 request"]
    tags = json.loads((tmp_path / "systemd/out/tags").read_text())["tags"]
    assert {re.sub("-[0-9a-f]{16}", "", tag).partition("-2")[0] for tag in tags} == {
        *("deployed-booted", "deployed-rollback", "deployed-other-4fc89887682a", "host", "seen")
    }
    assert tree(repo) == before
