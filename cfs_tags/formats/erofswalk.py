"""The objects of an EROFS image, three times as fast as :func:`cfs_tags.formats.erofs.object_refs` finds them.

It makes the same walk over images of the usual shape.  Wherever anything is unusual it gives up, and the parser of
``formats/erofs.py``, which has the description of the format, decides what that is: so there is one judge of damage.
"""

from __future__ import annotations

from operator import le
from struct import Struct, pack, unpack_from

from cfs_tags.formats import erofs
from cfs_tags.values import Algorithm

# format, xattr_icount, mode, size, u
_COMPACT = Struct("<3H2xI4xI")
_EXTENDED = Struct("<3H2xQI")
_ENTRY = Struct("<QHBx")
_XATTR = Struct("<BBH")
_NAMES = (b"overlay.metacopy", b"overlay.redirect")
_DOTS = (b".", b"..")
_BLOCK = 4096


class _Unusual(Exception):
    """Something that is left to the parser."""


def image_refs(data: bytes, algorithm: Algorithm) -> set[str]:
    """The digests, in hexadecimal, that an image needs: those of :func:`cfs_tags.formats.erofs.object_refs`.

    Raises:
        FormatError: the image is damaged.
    """
    table = image_table(data, algorithm).hex()
    width = algorithm.hex_length
    return {table[at : at + width] for at in range(0, len(table), width)}


def image_table(data: bytes, algorithm: Algorithm) -> bytes:
    """The same as raw digests, one after the other; some may be there twice.

    Raises:
        FormatError: the image is damaged.
    """
    try:
        return _Walk(data, algorithm).table(erofs.superblock(data))
    except _Unusual:
        return bytes.fromhex("".join(erofs.object_refs(data, algorithm)))


class _Walk:
    def __init__(self, data: bytes, algorithm: Algorithm) -> None:
        self._data = data
        self._width = width = algorithm.size
        self._metacopy = pack("<BBH", 16, 4, 4 + width) + _NAMES[0] + bytes((0, 4 + width, 0, algorithm.number))
        self._redirect = pack("<BBH", 16, 4, 2 * width + 2) + _NAMES[1] + b"/"
        self._digests: list[bytes] = []
        self._paths: list[bytes] = []
        self._shared: set[int] = set()

    def table(self, top: erofs.Superblock) -> bytes:
        data, size = self._data, len(self._data)
        budget = size
        seen = {top.root}
        pending = [top.root]
        while pending:
            offset = pending.pop() * 32
            if offset + 64 > size:
                raise _Unusual
            extended = data[offset] & 1
            form, icount, mode, length, u = (_EXTENDED if extended else _COMPACT).unpack_from(data, offset)
            xattrs = offset + (64 if extended else 32)
            tail = xattrs + 8 + 4 * icount if icount else xattrs
            layout = form & 0b1110
            inline = length % _BLOCK if layout == 4 else 0
            if layout not in (0, 4, 8) or tail + (inline or layout) > size:
                raise _Unusual
            if icount:
                budget -= tail - xattrs
                self._xattrs(xattrs, tail)
            if mode & 0o170000 == 0o040000:
                whole = (length - inline) if layout == 4 else -(-length // _BLOCK) * _BLOCK
                budget -= whole + inline
                if layout == 8 or budget < 0:
                    raise _Unusual
                start = u * _BLOCK
                if start + whole > size and whole:
                    raise _Unusual
                for at in range(start, start + whole, _BLOCK):
                    self._directory(data[at : at + _BLOCK], seen, pending)
                if inline:
                    self._directory(data[tail : tail + inline], seen, pending)
        if budget < 0:
            raise _Unusual
        for identity in self._shared:
            self._other(top.xattrs + identity * 4, size)
        return self._result()

    def _xattrs(self, start: int, end: int) -> None:
        data, width = self._data, self._width
        count = data[start + 4]
        at = start + 12 + 4 * count
        if at > end:
            raise _Unusual
        if count:
            self._shared.update(unpack_from(f"<{count}I", data, start + 12))
        while at < end:
            if data.startswith(self._metacopy, at):
                self._digests.append(data[at + 24 : at + 24 + width])
                at += 24 + width
            elif data.startswith(self._redirect, at):
                self._paths.append(data[at + 20 : at + 22 + 2 * width])
                at += 24 + 2 * width
            else:
                at = self._other(at, end)
        if at != end:
            raise _Unusual

    def _other(self, at: int, end: int) -> int:
        """Pass over an xattr that names no object; where the next one starts."""
        if at + 4 > end:
            raise _Unusual
        name, index, value = _XATTR.unpack_from(self._data, at)
        after: int = at + 4 + (name + value + 3 & ~3)
        if after > end or (index == 4 and self._data[at + 4 : at + 4 + name] in _NAMES):
            raise _Unusual
        return after

    def _directory(self, block: bytes, seen: set[int], pending: list[int]) -> None:
        heads = int.from_bytes(block[8:10], "little")
        if heads == 0 or heads % 12 or heads > len(block):
            raise _Unusual
        entries = list(_ENTRY.iter_unpack(block[:heads]))
        names = [name for _, name, _ in entries]
        zero = block.find(0, names[-1])
        ends = [*names[1:], zero if zero >= 0 else len(block)]
        if not all(map(le, names, ends)) or ends[-1] > len(block):
            raise _Unusual
        for (nid, name, _), end in zip(entries, ends, strict=True):
            if nid not in seen and block[name:end] not in _DOTS:
                seen.add(nid)
                pending.append(nid)

    def _result(self) -> bytes:
        digests = b"".join(self._digests)
        try:
            # fromhex leaves blanks out, translate any slash: the length tells
            redirected = bytes.fromhex(b"".join(self._paths).translate(None, b"/").decode())
        except ValueError:
            raise _Unusual from None
        if len(redirected) != len(self._paths) * self._width or any(path[3] != 47 for path in self._paths):
            raise _Unusual
        # both xattrs of a file say the same, in images that composefs makes
        return digests if redirected == digests else digests + redirected
