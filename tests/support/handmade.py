"""Tars that test what is done with layers: those that cfsctl stores, and those that it refuses and others take."""

from __future__ import annotations

from support import tars
from support.images import (
    Entry,
    Layer,
    block_device,
    char_device,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    random_bytes,
    symlink,
    whiteout,
)

__all__ = ["BIG", "CFSCTL_CANNOT_MAKE_AN_IMAGE_OF", "REFUSED", "TARS", "everything"]

BIG = b"x" * 65
LONG_PARENT = b"usr/" + b"d" * 200
LONG = LONG_PARENT + b"/" + b"f" * 200


def everything() -> list[Entry]:
    """One of each kind of entry."""
    return [
        directory("usr"),
        directory("usr/lib", 0o750).owned(7, 8),
        file("usr/lib/empty"),
        file("usr/lib/inline", b"i" * 64),
        file("usr/lib/object", b"o" * 65),
        file("usr/lib/same", b"o" * 65),
        file("usr/lib/block", b"b" * 512),
        file("usr/lib/long", random_bytes("long", 300_001)),
        file("usr/lib/setuid", BIG, 0o4755),
        file("usr/lib/attr", BIG).with_xattrs(user__a=b"1", security__capability=b"\1\0\0\2"),
        hardlink("usr/lib/hard", "usr/lib/object"),
        symlink("usr/lib/soft", "../lib/object"),
        char_device("usr/lib/null", 1, 3),
        block_device("usr/lib/loop", 7, 0),
        fifo("usr/lib/pipe"),
        file("usr/lib/" + "n" * 250, BIG),
        whiteout("usr/lib/gone"),
        opaque("usr/lib"),
        file("usr/lib/object", b"twice" * 20),
    ]


TARS = {
    "each kind of entry": Layer(everything()).tar,
    "empty": tars.END,
    "nothing but usr": tars.usr() + tars.END,
    "no end": tars.usr() + tars.entry(b"usr/f", BIG),
    "record padding": tars.usr() + tars.entry(b"usr/f", BIG) + bytes(10240),
    "something after the end": tars.usr() + tars.END + random_bytes("tail", 3000),
    "a block of zeros in between": tars.usr() + bytes(512) + tars.entry(b"usr/f", BIG) + tars.END,
    "a path beyond 255 bytes in a PAX header": tars.usr()
    + tars.pax({"path": LONG_PARENT.decode() + "/"})
    + tars.entry(b"x", kind=b"5")
    + tars.pax({"path": LONG.decode()})
    + tars.entry(b"x", BIG)
    + tars.END,
    "a path beyond 255 bytes in a GNU header": tars.usr()
    + tars.gnu_long(LONG_PARENT + b"/")
    + tars.entry(b"x", kind=b"5", magic=tars.GNU)
    + tars.gnu_long(LONG)
    + tars.entry(b"x", BIG, magic=tars.GNU)
    + tars.END,
    "long name and long target": tars.usr()
    + tars.gnu_long(LONG_PARENT + b"/")
    + tars.entry(b"x", kind=b"5", magic=tars.GNU)
    + tars.gnu_long(LONG, b"K")
    + tars.gnu_long(LONG)
    + tars.entry(b"x", kind=b"2", link=b"y", magic=tars.GNU)
    + tars.END,
    "a size in a PAX header": tars.usr()
    + tars.pax({"size": "700"})
    + tars.header(b"usr/f", 0)
    + tars.sized(b"s" * 700)
    + tars.END,
    "a PAX size for one entry only": tars.usr()
    + tars.pax({"size": "70"})
    + tars.header(b"usr/f", 5)
    + tars.sized(b"s" * 70)
    + tars.entry(b"usr/g", BIG * 3)
    + tars.END,
    "size= in another PAX record": tars.usr() + tars.pax({"comment": "x size=9"}) + tars.entry(b"usr/f", BIG) + tars.END,
    "a global header that ends a PAX header": tars.usr()
    + tars.pax({"size": "700"})
    + tars.pax({"comment": "all"}, b"g")
    + tars.entry(b"usr/f", BIG)
    + tars.END,
    "a size in base 256": tars.usr()
    + tars.header(b"usr/f", length=b"\x80" + (70).to_bytes(11, "big"), magic=tars.GNU)
    + tars.sized(b"6" * 70)
    + tars.END,
    "a size with blanks": tars.usr() + tars.header(b"usr/f", length=b"        106 ") + tars.sized(b"6" * 70) + tars.END,
    "an old header without magic": tars.usr() + tars.entry(b"usr/f", BIG, magic=bytes(8), kind=b"\0") + tars.END,
    "a contiguous file": tars.usr() + tars.entry(b"usr/f", BIG, kind=b"7") + tars.END,
    "a directory with content": tars.usr() + tars.entry(b"usr/d/", b"c" * 700, kind=b"5") + tars.END,
    "another type with content": tars.usr() + tars.entry(b"usr/d", b"c" * 700, kind=b"Z") + tars.END,
    "x without magic": tars.usr() + tars.entry(b"usr/d", b"c" * 700, kind=b"x", magic=bytes(8)) + tars.END,
    "hidden in many inline bytes": tars.usr()
    + b"".join([tars.entry(b"usr/s%d" % n, kind=b"2", link=b"t") for n in range(9000)])
    + tars.entry(b"usr/f", BIG)
    + tars.END,
    "a file longer than what is given out at once": tars.usr() + tars.entry(b"usr/f", random_bytes("3", 3 << 20)) + tars.END,
}
"""Tars that cfsctl stores, too."""

CFSCTL_CANNOT_MAKE_AN_IMAGE_OF = ("another type with content", "x without magic")


def old_gnu_sparse(name: bytes, data: bytes, blocks: int = 0) -> bytes:
    """An entry of type S: a map of four pieces in the header, and of 21 in each of ``blocks`` blocks after it."""
    tail = bytearray(167)
    tail[482 - 345] = 1 if blocks else 0
    tail[483 - 345 : 495 - 345] = b"%011o\0" % (7 << 30)
    made = tars.header(name, len(data), b"S", magic=tars.GNU, tail=bytes(tail))
    for number in range(blocks):
        block = bytearray(512)
        block[504] = 1 if number + 1 < blocks else 0
        made += bytes(block)
    return made + tars.sized(data)


REFUSED = {
    "old GNU sparse": tars.usr() + old_gnu_sparse(b"usr/f", BIG * 9) + tars.entry(b"usr/g", BIG) + tars.END,
    "old GNU sparse with a long map": tars.usr() + old_gnu_sparse(b"usr/f", BIG * 9, 3) + tars.entry(b"usr/g", BIG) + tars.END,
    "PAX sparse 0.1": tars.usr()
    + tars.pax({"GNU.sparse.map": "0,70", "GNU.sparse.size": "9000000000", "GNU.sparse.numblocks": "1"})
    + tars.entry(b"usr/f", b"s" * 70)
    + tars.END,
    "PAX sparse 1.0": tars.usr()
    + tars.pax(
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9663676416", "GNU.sparse.name": "usr/f"}
    )
    + tars.entry(b"usr/GNUSparseFile.0/f", b"1\n0\n70\n".ljust(512, b"\0") + b"s" * 70)
    + tars.END,
    "cut in the padding": (tars.usr() + tars.entry(b"usr/f", BIG))[:-400],
    "one block of zeros": tars.usr() + tars.entry(b"usr/f", BIG) + bytes(512),
    "a header without an entry": tars.usr() + tars.pax({"path": "x"}) + tars.END,
    "a sum of signed bytes": tars.usr() + tars.entry(b"usr/\xff\xfe", BIG, signed=True) + tars.END,
    "a time before 1970": tars.usr() + tars.pax({"mtime": "-1.5"}) + tars.entry(b"usr/f", BIG) + tars.END,
}
"""Tars that cfsctl does not store; podman and skopeo take them."""
