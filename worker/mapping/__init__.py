"""Documents to rows and back. Pure: no I/O but reading the mapping file.

``model`` is the mapping file's shape, ``load`` reads it, ``plan`` turns one collection's mapping into a
fast converter, ``rebuild`` its inverse, ``values`` converts single values, ``ids`` makes row ids,
``extended`` writes and reads what no column can hold.
"""

from worker.mapping.ids import row_id
from worker.mapping.load import load
from worker.mapping.model import Mapping
from worker.mapping.plan import CollectionPlan, Rows, TablePlan, Unmappable
from worker.mapping.rebuild import Rebuilder, Unrebuildable

__all__ = [
    "CollectionPlan",
    "Mapping",
    "Rebuilder",
    "Rows",
    "TablePlan",
    "Unmappable",
    "Unrebuildable",
    "load",
    "row_id",
]
