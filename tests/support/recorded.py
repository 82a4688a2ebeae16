"""What is in the recorded hosts below ``tests/data``."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["objects_of_hosts"]


def objects_of_hosts(hosts: Path) -> Iterator[dict[str, bytes]]:
    """The objects of each recorded host: name and content."""
    for path in hosts.glob("*.tar.gz"):
        objects = {}
        with tarfile.open(path) as archive:
            for member in archive:
                _, found, name = member.name.partition("composefs/objects/")
                if found and member.isfile():
                    opened = archive.extractfile(member)
                    assert opened is not None
                    objects[name.replace("/", "")] = opened.read()
        yield objects
