"""Generated documents to rows in a real PostgreSQL and back: `python -m bench.roundtrip`.

``mappings`` uses everything the mapping language has, ``values`` makes values of every BSON type, ``generate``
makes documents for a mapping, ``tables`` makes the tables, ``run`` does the work and judges it.
"""
