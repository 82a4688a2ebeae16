"""Connections to a registry: TLS, proxies, and answers whose head comes in time.  All of it is urllib3's but the bounds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from cfs_tags.errors import CfsTagsError
from cfs_tags.remote.bounds import BoundedResponse
from cfs_tags.remote.reasons import reason_of

if TYPE_CHECKING:
    from cfs_tags.remote.names import Access, Place

WHOLE = 120.0
"""Seconds for a whole answer that is no blob."""


def pool(place: Place, access: Access, scheme: str) -> urllib3.PoolManager:
    """Connections to the registry of a place, which any number of threads may use.

    Args:
        place: names the registry.
        access: how it is reached.
        scheme: http or https.

    Raises:
        CfsTagsError (registry-unreachable): a certificate that it is to be trusted by cannot be read.
    """
    settings: dict[str, Any] = {"maxsize": 8}
    if scheme == "https":
        settings["ssl_context"] = _tls(place, access)
    proxy = None if _is_direct(place.address, access.proxies.get("no", "")) else access.proxies.get(scheme)
    made = urllib3.ProxyManager(proxy, **settings) if proxy and not place.is_loopback else urllib3.PoolManager(**settings)
    made.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return made


def _tls(place: Place, access: Access) -> object:
    import os
    import ssl

    context = ssl.create_default_context()
    for directory in access.certificates:
        try:
            names = sorted(os.listdir(os.path.join(directory, place.registry)))
        except OSError:
            continue
        for name in names:
            if name.endswith(".crt"):
                try:
                    context.load_verify_locations(os.path.join(directory, place.registry, name))
                except (OSError, ssl.SSLError) as error:
                    reason = f"{name}, {reason_of(error)}"
                    raise CfsTagsError("registry-unreachable", registry=place.registry, reason=reason) from error
    return context


def _is_direct(address: str, without: str) -> bool:
    """Whether an address is among those that are reached without a proxy."""
    host = address.rpartition(":")[0] if address.rpartition(":")[2].isdigit() else address
    for one in without.split(","):
        name = one.strip().lstrip(".").lower()
        if name == "*" or (name and (host.lower() in (name, name.partition(":")[0]) or host.lower().endswith(f".{name}"))):
            return True
    return False


def _bounded(sock: Any, **options: Any) -> BoundedResponse:
    """An answer whose head and trailer have to be there in time, too."""
    end = time.monotonic() + WHOLE

    def check(came: int) -> None:
        if time.monotonic() > end:
            raise OSError(f"it gave {came} bytes in {WHOLE:.0f} s, too slow")

    return BoundedResponse(sock, check=check, **options)


class _Connection(HTTPConnection):
    response_class = staticmethod(_bounded)  # type: ignore[assignment]


class _SecureConnection(HTTPSConnection):
    response_class = staticmethod(_bounded)  # type: ignore[assignment]


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection
