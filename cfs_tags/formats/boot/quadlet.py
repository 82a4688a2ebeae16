"""Quadlet files, as far as bootc reads them: which app image a ``.image`` or ``.container`` file names.

Source: bootc 1.16.9, ``boundimage.rs``.  The links to such files in ``usr/lib/bootc/bound-images.d`` make app images *bound* to
the operating system image that they are in.
"""

from __future__ import annotations

from cfs_tags.errors import FormatError

BOUND_DIRECTORY = "usr/lib/bootc/bound-images.d"
"""Where the links stand, from the root of a deployment."""

MAX_QUADLET = 1 << 20
"""Bytes of the longest file that is read."""

_SECTIONS = {".image": "Image", ".container": "Container"}


def bound_image(name: str, data: bytes) -> str:
    """The image that a quadlet file names.

    Args:
        name: of the file; its ending decides which section counts.
        data: its bytes.

    Raises:
        FormatError: another ending; no ``Image=`` in the section; ``AuthFile=`` or a systemd specifier, which bootc refuses.
    """
    section = next((title for ending, title in _SECTIONS.items() if name.endswith(ending)), None)
    if section is None:
        raise _wrong(name, "a name that ends in .image or .container", name)
    if len(data) > MAX_QUADLET:
        raise _wrong(name, f"at most {MAX_QUADLET} bytes", f"{len(data)} bytes")
    values: dict[str, str] = {}
    current = ""
    for line in data.decode("utf-8", "replace").splitlines():
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            current = text[1:-1]
        elif current == section and "=" in text and not text.startswith(("#", ";")):
            key, _, value = text.partition("=")
            values[key.strip()] = value.strip()
    image = values.get("Image")
    if not image:
        raise _wrong(name, f"Image= in [{section}]", "none")
    if section == "Image" and "AuthFile" in values:
        raise _wrong(name, "no AuthFile=, which bound images may not have", values["AuthFile"])
    return _unescaped(name, image)


def _unescaped(name: str, value: str) -> str:
    """``%%`` stands for one; specifiers such as ``%h`` are not for images."""
    parts = value.split("%%")
    if any("%" in part for part in parts):
        raise _wrong(name, "no systemd specifier", value)
    return "%".join(parts)


def _wrong(name: str, wanted: str, found: str) -> FormatError:
    return FormatError(structure=f"quadlet {name}", offset=0, wanted=wanted, found=found)
