"""Generated documents to rows in a real PostgreSQL and back: `python -m bench.roundtrip`.

``mappings`` uses everything that the mapping language has, ``values`` makes values of every BSON type,
``generate`` documents for a mapping, ``tables`` the tables; ``run`` does the work and judges it.
"""
