"""Documents to rows and back. Pure: no I/O but reading the mapping file.

``model`` is the mapping file's shape, ``load`` reads it, ``sources`` finds the collection that a namespace
is, ``plan`` turns one collection's mapping into a fast converter, ``rebuild`` its inverse, ``columns`` is one
column both ways, ``values`` converts single values, ``plain`` makes JSON of them, ``ids`` makes row ids,
``extended`` writes and reads what no column can hold, ``hashes`` tells one mapping from another.
"""

from worker.mapping.columns import Unmappable
from worker.mapping.hashes import hashes
from worker.mapping.ids import row_id
from worker.mapping.load import load
from worker.mapping.model import Mapping
from worker.mapping.plan import CollectionPlan, ParentKey, Plans, Rows, TablePlan, scopes
from worker.mapping.rebuild import Rebuilder, Unrebuildable, rebuilder

__all__ = [
    "CollectionPlan",
    "Mapping",
    "ParentKey",
    "Plans",
    "Rebuilder",
    "Rows",
    "TablePlan",
    "Unmappable",
    "Unrebuildable",
    "hashes",
    "load",
    "rebuilder",
    "row_id",
    "scopes",
]
