"""Where things stand in a repository: paths, link targets and the encoding of tag names.

Paths are relative to the repository, with ``/`` between components; nothing here touches a disk.  Source of the facts:
composefs-rs 0.9.4, ``repository.rs`` (objects, streams, images, their ``refs/``) and ``oci_image.rs`` (tags, referrers).
The places below ``cfs-tags/`` are this program's own.

=============================================  ===================================================================
``meta.json``                                  algorithm and features
``objects/XX/YYYY…``                           content, named by its fs-verity digest
``streams/<content id>``                       link to the object of a splitstream
``images/<digest>``                            link to the object of an EROFS image
``streams/refs/…``, ``images/refs/…``          links to those two: the roots of every collector
``cfs-tags/``                                  our state; collectors do not look at it
=============================================  ===================================================================
"""

from __future__ import annotations

import os
import re

from cfs_tags.errors import BadRefLink, FormatError
from cfs_tags.values import Algorithm, ContentId, ObjectId

OBJECTS = "objects"
STREAMS = "streams"
IMAGES = "images"
STREAM_REFS = "streams/refs"
IMAGE_REFS = "images/refs"
SHARED_TAGS = "streams/refs/oci"
REFERRERS = "streams/refs/oci-referrers"
OUR_REFS = "streams/refs/cfs-tags"
OUR_IMAGE_REFS = "images/refs/cfs-tags"
PRIVATE_TAGS = f"{OUR_REFS}/tags"
DEPLOYMENTS = f"{OUR_REFS}/deployments"
CONFIGS = f"{OUR_REFS}/configs"
DEPLOYMENT_IMAGES = f"{OUR_IMAGE_REFS}/deployments"
BOUND = f"{OUR_REFS}/bound"
INDEXES = f"{OUR_REFS}/indexes"
LEASES = f"{OUR_REFS}/leases"
PINS = f"{OUR_REFS}/pins"
PIN_CONFIGS = f"{OUR_REFS}/pin-configs"
PIN_IMAGES = f"{OUR_IMAGE_REFS}/pins"
TRASH = f"{OUR_REFS}/trash"
STATE = "cfs-tags"
LOCK_FILE = f"{STATE}/refs.lock"
"""The process that changes refs holds it exclusive, readers hold it shared where a transaction came in between."""
TMP = f"{STATE}/tmp"
"""Links that are being prepared or were taken out, by writers that hold the refs lock."""
JOURNALS = f"{STATE}/journal"
QUARANTINE = f"{STATE}/quarantine"
PINNED = f"{STATE}/pins"
"""What is kept beside the refs of pins, a directory for each."""
META = "meta.json"

_NAME_MAX = 255
"""Bytes of the longest name of a file (Linux, NAME_MAX)."""
_PATH_MAX = 4095
"""Bytes of the longest path, and of the text of a link (Linux, PATH_MAX)."""
_ESCAPES = {"2F": "/", "25": "%"}
_ESCAPE = re.compile("%(.{0,2})", re.DOTALL)
_EXPIRY = re.compile(r"(\d{8}T\d{6}Z)\.\d+", re.ASCII)
_OBJECT_LINK = re.compile(r"\.\./objects/([0-9a-f]{2})/([0-9a-f]{62}(?:[0-9a-f]{64})?)", re.ASCII)


def encode_name(name: str) -> str:
    """The one path component that stands for a tag name: ``%`` becomes ``%25``, ``/`` becomes ``%2F``, nothing else.

    >>> encode_name("quay.io/app:1")
    'quay.io%2Fapp:1'
    """
    if "%" in name or "/" in name:
        return name.replace("%", "%25").replace("/", "%2F")
    return name


def decode_name(component: str) -> str:
    """The name that a path component stands for, decoded in one pass; other uses of ``%`` stand for themselves.

    A ``%`` takes the two characters after it with it whatever they are, as in cfsctl: ``%%2F`` stands for itself.

    >>> decode_name("a%252Fb")
    'a%2Fb'
    """
    if component.count("%") == component.count("%2F"):
        return component.replace("%2F", "/")
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[0]), component)


def expiry_of(component: str) -> str | None:
    """When a lease, a pin or what is in the trash runs out, by the directory below ``leases/``, ``pins/`` or ``trash/``.

    Returns:
        the time in UTC as YYYYMMDDThhmmssZ, so that later ones sort later; None for any other name.

    >>> expiry_of("20261125T131400Z.2")
    '20261125T131400Z'
    """
    match = _EXPIRY.fullmatch(component)
    return match[1] if match is not None else None


def named_by(link: str) -> str:
    """What a ref's link names, as people write it: the digest of a manifest, else the name in ``streams/`` or ``images/``.

    >>> named_by("../../oci-manifest-sha256:00")
    'sha256:00'
    """
    return link.rpartition("/")[2].removeprefix(ContentId.MANIFEST)


def object_path(object_id: ObjectId) -> str:
    """Where an object is kept.

    >>> object_path(ObjectId("ab" + "0" * 62))[:13]
    'objects/ab/00'
    """
    return f"objects/{object_id[:2]}/{object_id[2:]}"


def object_link(object_id: ObjectId) -> str:
    """What the link ``streams/<content id>`` or ``images/<digest>`` says for that object."""
    return f"../objects/{object_id[:2]}/{object_id[2:]}"


def object_of_link(target: str, algorithm: Algorithm, path: str) -> ObjectId:
    """The object that a link in ``streams/`` or ``images/`` names.

    Args:
        target: text of the link.
        algorithm: of the repository; decides the number of digits.
        path: of the link, for the error.

    Raises:
        FormatError: the link leads somewhere else than to an object of this repository.
    """
    match = _OBJECT_LINK.fullmatch(target)
    if match is None or len(target) != 12 + algorithm.hex_length:
        raise FormatError(
            structure="object link",
            offset=0,
            wanted=f"../objects/XX/ and {algorithm.hex_length - 2} hexadecimal digits",
            found=target,
            path=path,
        )
    return ObjectId(match[1] + match[2])


def is_ref_path(path: object) -> bool:
    """Whether what was read from a file is a path that a ref can have, below ``streams/refs/`` or ``images/refs/``.

    >>> is_ref_path("streams/refs/oci/app"), is_ref_path("streams/refs/../../meta.json")
    (True, False)
    """
    if not isinstance(path, str):
        return False
    tree, _, below = path.partition("/refs/")
    parts = below.split("/")
    return tree in (STREAMS, IMAGES) and not {"", ".", ".."} & set(parts) and all(is_text(part, _NAME_MAX) for part in parts)


def is_text(value: object, limit: int = _PATH_MAX) -> bool:
    """Whether what was read from a file is text that the system takes for a path or a link, of at most ``limit`` bytes."""
    if not isinstance(value, str) or "\0" in value:
        return False
    if value.isascii():
        return len(value) <= limit
    try:
        return len(os.fsencode(value)) <= limit
    except UnicodeEncodeError:  # half a character, which JSON may hold and no name of a file
        return False


def ref_link(path: str, name: str) -> str:
    """What the link at ``path`` below ``streams/refs/`` or ``images/refs/`` says to name ``streams/NAME`` or ``images/NAME``.

    >>> ref_link("streams/refs/oci/app", "oci-manifest-sha256:00")
    '../../oci-manifest-sha256:00'
    """
    return "../" * (path.count("/") - 1) + name


def ref_target(path: str, target: str) -> ContentId:
    """The name in ``streams/`` (or ``images/``) that a ref's link leads to.

    Args:
        path: of the ref, from the repository: ``streams/refs/oci/app``.
        target: text of the link.

    Raises:
        BadRefLink: the link is absolute, leads to another ref, or out of ``streams/`` (``images/``).  The collectors of
            cfsctl and bootc look at the last component only; a link that leads elsewhere makes them stop or keep the
            wrong thing, so nothing is guessed here.
    """
    depth = path.count("/") - 1
    name = target[3 * depth :]
    if target[: 3 * depth] == "../" * depth and name and "/" not in name and name not in (".", "..", "refs"):
        return ContentId(name)
    if target.startswith("/"):
        reason = "an absolute link leads out of the repository"
    else:
        place = path.split("/")[:-1]
        for part in target.split("/"):
            if part == "..":
                if not place:
                    break
                place.pop()
            elif part not in ("", "."):
                place.append(part)
        tree = path.partition("/")[0]
        if place[:2] == [tree, "refs"]:
            reason = "a ref may not lead to another ref: cfsctl gc stops at it"
        else:
            reason = f"a ref leads to a name in {tree}/ and nowhere else"
    raise BadRefLink(path=path, target=target, reason=reason)
