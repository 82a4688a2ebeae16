"""Importing images: planned as a value, then carried out.

A plan has read manifests and configs, and knows which layers the repository lacks.  Carrying it out stores objects, has
them on disk (one ``syncfs``), then links streams, then makes refs: an import that stops half-way leaves objects that
nothing names, and the next one finds them.  The repository lock is held shared throughout, so that no collector takes them
away.

Streams are those of ``cfsctl oci pull`` (composefs-rs 0.9.4, ``oci_layout.rs``, ``skopeo.rs``): content ids, named refs,
one external object for manifest and config.  Other than there, every digest and diff_id is checked, all members of a gzip
file are read, and the layers of an artifact are kept as the blobs that they are, so that its digests hold.
"""
