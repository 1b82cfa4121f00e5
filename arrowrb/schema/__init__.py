"""Schemas: spaces <-> Arrow <-> NumPy.

    columns   Column, Extra: one physical column, its dtype, encoding and Arrow type
    tree      Tree: the nesting of observations and actions
    spaces    gymnasium spaces <-> JSON
    layout    spaces and extras -> columns
    document  the other parts of the JSON
    plan      what a batch must hold
    schema    Schema: what one store holds
    coerce    the rule which dtypes and shapes a column takes
    arrays    one column <-> Arrow arrays
    inputs    one column of a user's batch -> NumPy
    convert   a user's batch -> Rows

Importing this package imports neither gymnasium nor torch.
"""

from __future__ import annotations

from arrowrb.schema.arrays import column_array, column_numpy
from arrowrb.schema.columns import ADDED_NAMES, SYSTEM_COLUMNS, Column, Extra, check_shape, dtype_name
from arrowrb.schema.convert import Rows, encode_batch, encode_row
from arrowrb.schema.inputs import column_values
from arrowrb.schema.schema import Schema
from arrowrb.schema.tree import Tree

__all__ = [
    "ADDED_NAMES",
    "SYSTEM_COLUMNS",
    "Column",
    "Extra",
    "Rows",
    "Schema",
    "Tree",
    "check_shape",
    "column_array",
    "column_numpy",
    "column_values",
    "dtype_name",
    "encode_batch",
    "encode_row",
]
