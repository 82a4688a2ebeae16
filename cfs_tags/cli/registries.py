"""What the commands that talk to a registry share: options, and how the environment says it is reached."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from cfs_tags.remote.names import Access

_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_OF_HOSTS = ("/etc/ostree/auth.json", "/run/ostree/auth.json", "/usr/lib/ostree/auth.json")
"""Where bootc and ostree have the credentials of a host."""


class Reach(NamedTuple):
    """How a registry is reached: a group of options, each of them an option of the command."""

    authfile: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", show_default=False, help="Credentials; else those of podman, Docker and bootc, in that order."
        ),
    ] = None
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Without TLS; a registry on this machine is asked like that anyhow.")
    ] = False


PlaceArgument = Annotated[
    str, typer.Argument(metavar="REGISTRY/REPO", show_default=False, help="Such as quay.io/org/os, without a tag.")
]


def access(reach: Reach) -> Access:
    """How registries are reached: by the options, then by the environment and the files that it names."""
    from urllib.request import getproxies

    from cfs_tags.remote.names import Access

    return Access(_files(reach.authfile), _CERTIFICATES, getproxies(), reach.plain_http)


def state_directory() -> str:
    """Where this user's machine remembers things; a service of systemd's is told (``StateDirectory=``)."""
    from cfs_tags.api.handle import STATE

    told = os.environ.get("STATE_DIRECTORY")
    if told:
        return told.partition(":")[0]
    if os.geteuid() == 0:
        return STATE
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "cfs-tags")


def cache_directory() -> str:
    """Where this user's machine keeps what it can fetch again."""
    if os.geteuid() == 0:
        return "/var/cache/cfs-tags"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cfs-tags")


def _files(given: str | None) -> list[str]:
    """Files with credentials, as containers-auth.json(5) orders them; one that is named stands alone."""
    named = given or os.environ.get("REGISTRY_AUTH_FILE")
    if named:
        return [named]
    home = os.path.expanduser("~")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    docker = os.environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
    found = [os.path.join(runtime, "containers/auth.json")] if runtime else []
    if os.geteuid() == 0:
        found.append("/run/containers/0/auth.json")
    found += [os.path.join(config, "containers/auth.json"), os.path.join(docker, "config.json")]
    return found + list(_OF_HOSTS) if os.geteuid() == 0 else found
