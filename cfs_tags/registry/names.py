"""Tag names as repositories and references of the distribution protocol, and back.  Pure.

A tag has any name; a registry knows ``<repository>`` and ``<reference>``, both of a narrow grammar (OCI distribution
specification 1.1, "Pulling manifests").  The rule, from the tag's side:

==========================================  ==================================  ===========================================
tag                                         repository                          reference
==========================================  ==================================  ===========================================
``quay.io/org/app:1``                       ``quay.io/org/app``                 ``1``
``quay.io/org/app``                         ``quay.io/org/app``                 ``latest``
``docker://quay.io/org/app:1``              ``quay.io/org/app``                 ``1`` (cfsctl names what it pulls like this)
``quay.io/org/app@sha256:…``                ``quay.io/org/app``                 none: it is pulled by digest
``@deployment/<id>``                        ``deployments``                     ``<id>``
anything else                               not served                          not served
==========================================  ==================================  ===========================================

Where several tags come to the same place, the one whose text is nearest to what the client asks for has it: first
``app:latest``, then ``app``, then the two with ``docker://``, then a deployment's.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_DEPLOYMENTS = "deployments"
"""The repository of deployment refs."""
_MAX_REPOSITORY = 229
"""Characters of the longest repository: 255, which clients grant it with the registry's own name, less the room for one
(OCI distribution specification 1.1, implementers' note)."""

_PREFIX = "docker://"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_REFERENCE = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_DIGEST_AT_END = re.compile(r"@sha(?:256|384|512):[0-9a-f]+$", re.ASCII)


class Place(NamedTuple):
    """Where a tag is served.  ``reference`` is None where it is pulled by digest alone; of several tags in one place, the
    one with the lowest ``rank`` has it."""

    repository: str
    reference: str | None
    rank: int = 0


def is_repository(text: str) -> bool:
    """Whether the specification allows this name for a repository, and clients take it."""
    return len(text) <= _MAX_REPOSITORY and _REPOSITORY.fullmatch(text) is not None


def is_reference(text: str) -> bool:
    """Whether the specification allows this as a tag."""
    return _REFERENCE.fullmatch(text) is not None


def place_of(tag: str) -> Place | str:
    """Where a tag is served, or in one line why it is not.

    >>> place_of("quay.io/org/app:1")
    Place(repository='quay.io/org/app', reference='1', rank=0)
    >>> place_of("Mine")
    'a repository is lower-case letters, digits and single separators'
    """
    if tag.startswith("@deployment/"):
        reference = tag.partition("/")[2]
        return Place(_DEPLOYMENTS, reference, 4) if is_reference(reference) else "it is no deployment"
    rank = 0
    if tag.startswith(_PREFIX):
        tag, rank = tag[len(_PREFIX) :], 2
    pinned = _DIGEST_AT_END.search(tag)
    if pinned is not None:
        tag = tag[: pinned.start()]
    directory, slash, last = tag.rpartition("/")
    base, colon, reference = last.partition(":")
    if not colon:
        reference, rank = "latest", rank + 1
    repository = directory + slash + base
    if ":" in directory:
        return "a repository has no port"
    if _REPOSITORY.fullmatch(repository) is None:
        return "a repository is lower-case letters, digits and single separators"
    if len(repository) > _MAX_REPOSITORY:
        return f"a repository has at most {_MAX_REPOSITORY} characters"
    if pinned is not None:
        return Place(repository, None, rank)
    if not is_reference(reference):
        return "a reference is up to 128 letters, digits, dots, dashes and underscores"
    return Place(repository, reference, rank)
