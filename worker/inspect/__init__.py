"""Looks at a live MongoDB before anything is copied. Reads only, and needs neither Kafka nor PostgreSQL.

``survey`` reads a database's collections, indexes and samples; ``profile`` is what is kept of a sample's
documents; ``tenants`` and ``references`` find what the values refer to; ``choices`` finds a type for a field,
``draft`` makes tables of it all, ``indexes`` and ``filters`` PostgreSQL's form of indexes; ``mapping_text``
and ``ddl`` write it down, ``report`` tells it. ``check`` maps live documents with a mapping file.
"""
