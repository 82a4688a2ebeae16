"""Hosts of the local network whose ``cfs-tag serve`` says that it is there, by DNS-SD (RFC 6763) over multicast DNS.

Through python-zeroconf.  Whoever answers is a stranger: what comes from there is checked by digest, and all that they learn is
which digests are asked for.  They can name any address: one is taken only if it belongs to another host of a network that
this host is in itself, so that nobody has it ask its own services, a router's other side or a cloud's metadata.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from time import monotonic, sleep
from typing import TYPE_CHECKING

from cfs_tags.errors import CfsTagsError, SystemFailure, UsageError

if TYPE_CHECKING:
    import socket
    from types import ModuleType

    from zeroconf import Zeroconf

    Interface = IPv4Interface | IPv6Interface

_SERVICE = "_cfs-tags._tcp.local."
_SECONDS = 2.0
"""For which answers are waited for at most; a host answers within half a second."""
_QUIET = 0.7
"""Seconds without a new answer after which no more is expected."""
_DETAILS = 4.0
"""Seconds in which all of them have to say where they are."""
_MOST = 64
"""Hosts that are taken at most: anybody on the network can make up any number."""
_MOST_NAMES = 1000
"""Names from which those are drawn."""


def find(command: str, seconds: float = _SECONDS, interfaces: Sequence[str] | None = None) -> list[str]:
    """Addresses (``http://HOST:PORT``) of hosts that say that they serve.  Threads that this takes have ended afterwards.

    Args:
        command: which needs it, for the error.
        seconds: for which answers are waited for at most.
        interfaces: addresses of this host's interfaces to ask on; None: all.

    Raises:
        CfsTagsError (missing-extra): python-zeroconf is not installed.
        SystemFailure: the system refused.
    """
    zeroconf = _library(command)
    found: dict[str, float] = {}

    def changed(zeroconf: object, service_type: str, name: str, state_change: object) -> None:
        if len(found) < _MOST_NAMES:
            found.setdefault(name, monotonic())

    addresses: dict[str, None] = {}
    own = _own()
    with _running(interfaces) as running:
        browser = zeroconf.ServiceBrowser(running, _SERVICE, handlers=[changed])
        began = monotonic()
        while monotonic() - began < seconds:
            sleep(0.05)
            if found and monotonic() - max(found.values()) > _QUIET:
                break
        browser.cancel()
        end = monotonic() + _DETAILS
        infos = [zeroconf.ServiceInfo(_SERVICE, name) for name in random.sample(list(found), len(found))]
        # most have said where they are with their names; those that have not are waited for
        for info in sorted(infos, key=lambda info: not info.load_from_cache(running)):
            left = end - monotonic()
            if left <= 0 or len(addresses) >= _MOST:
                break
            if info.request(running, min(500, int(left * 1000))) and info.port:
                given = info.parsed_addresses(zeroconf.IPVersion.V4Only) + info.parsed_addresses(zeroconf.IPVersion.V6Only)
                address = next((one for one in given if is_near(one, own)), None)
                if address is not None:
                    addresses[f"http://[{address}]:{info.port}" if ":" in address else f"http://{address}:{info.port}"] = None
    return list(addresses)


def is_near(address: str, own: Sequence[Interface]) -> bool:
    """Whether an address is that of another host of a network that this host is in.

    Args:
        address: of any kind.
        own: addresses of this host with their networks.
    """
    one = ip_address(address)
    return (
        not (one.is_loopback or one.is_link_local)
        and all(one != mine.ip for mine in own)
        and any(one in mine.network for mine in own)
    )


def _own() -> list[Interface]:
    import ifaddr

    return [
        ip_interface((ip.ip if isinstance(ip.ip, str) else ip.ip[0], ip.network_prefix))
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]


@contextmanager
def announced(listeners: Sequence[socket.socket]) -> Iterator[list[str]]:
    """Say on the local network, while the block runs, that this host serves at the addresses of these sockets.

    A socket that only this machine can reach is not announced.

    Raises:
        UsageError: there is no other.
        CfsTagsError (missing-extra): python-zeroconf is not installed.
        SystemFailure: the system refused.
    """
    import socket

    zeroconf = _library("serve")
    shown: list[str] = []
    with ExitStack() as stack:
        for one in listeners:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            host, port = one.getsockname()[:2]
            if ip_address(host).is_loopback:
                continue
            own = None if host in ("0.0.0.0", "::") else [host]
            running = stack.enter_context(_running(own))
            addresses = own or [address for address in zeroconf.get_all_addresses() if not address.startswith("127.")]
            name = f"{os.urandom(6).hex()}.{_SERVICE}"
            info = zeroconf.ServiceInfo(_SERVICE, name, port=port, parsed_addresses=addresses, properties={"v": "1"})
            running.register_service(info, cooperating_responders=True)
            stack.callback(running.unregister_service, info)
            shown += [f"{address}:{port}" for address in addresses]
        if not shown:
            reason = "needs an address that other machines can reach"
            raise UsageError("invalid-argument", argument="announce", value="", reason=reason)
        yield shown


@contextmanager
def _running(interfaces: Sequence[str] | None) -> Iterator[Zeroconf]:
    import zeroconf

    try:
        running = zeroconf.Zeroconf(list(interfaces) if interfaces is not None else zeroconf.InterfaceChoice.All)
    except OSError as error:
        raise SystemFailure.of(error, "use multicast DNS on", "the network") from error
    try:
        yield running
    finally:
        running.close()


def _library(command: str) -> ModuleType:
    try:
        import zeroconf
    except ImportError:
        raise CfsTagsError("missing-extra", package="zeroconf", extra="lan", command=command) from None
    return zeroconf
