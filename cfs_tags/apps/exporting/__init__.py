"""Exporting images: layers are put together again from their splitstreams, bit for bit.

What a repository keeps of a layer is its uncompressed tar; the compressed blob that the manifest names cannot be made
again in general. So the exported image has a manifest of its own that names the layers as they are exported, with the
digest of the original as an annotation; config and image ID stay. Where all the layers come out as the manifest names
them (they were plain, or compress to the same bytes) the original manifest is exported.
"""
