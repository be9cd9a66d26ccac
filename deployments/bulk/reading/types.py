"""Types of columns, from all of the input: one that holds every value, or text."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from deployments.bulk.reading.plan import Fields
from deployments.model.errors import OptionError

Record = dict[str, Any]  # Any: whatever JSON holds
ParsedRow = tuple[Record, str | None]
"""A row, or why it cannot be read."""
TEXT = pa.large_string()
UNFIT = (pa.ArrowException, UnicodeEncodeError, OverflowError)  # raised for a value of another type
LOSING = (  # pairs that Arrow has a type for, which does not hold every value of both
    (pa.types.is_uint64, pa.types.is_signed_integer),
    (pa.types.is_decimal, pa.types.is_floating),
)


def plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without what only its file needs: dictionaries, short offsets."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return TEXT
    is_bytes = pa.types.is_binary(kind) or pa.types.is_binary_view(kind)
    return pa.large_binary() if is_bytes else kind


def guessed(records: Sequence[Mapping[str, object]]) -> Fields:
    """Return the columns of parsed rows, of text where no other type holds all values."""
    types = {}
    for name in dict.fromkeys(name for record in records for name in record):
        try:
            types[name] = plain(pa.array([record.get(name) for record in records]).type)
        except UNFIT:
            types[name] = TEXT
    return types


def merged(parts: Iterable[Fields]) -> dict[str, pa.DataType]:
    """Return the columns of all parts, each of a type that holds what every part has in it.

    Raises:
        OptionError: a column has text in one part and bytes in another.
    """
    types: dict[str, pa.DataType] = {}
    for part in parts:
        for name, kind in part.items():
            types[name] = _both(name, types.get(name, pa.null()), kind)
    return types


def _both(name: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    if {one, other} == {TEXT, pa.large_binary()}:
        raise OptionError(
            f"the column {name} has text in one file and bytes in another; embed them one by one"
        )
    if any((a(one) and b(other)) or (a(other) and b(one)) for a, b in LOSING):
        return TEXT
    try:
        schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
        return plain(pa.unify_schemas(schemas, promote_options="permissive").types[0])
    except pa.ArrowException:
        return TEXT


def column_of(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """Return a column, or a field of one as `meta.id`; None where there is none."""
    for _ in name.split("."):
        if name in table.column_names:
            return table[name]
        table = table.flatten()
    return None


def value_of(record: Mapping[str, object], name: str) -> object:
    """Return the value of a column, or of a field of one, null where there is none."""
    if name in record:
        return record[name]
    for dot in (place for place, character in enumerate(name) if character == "."):
        value = record.get(name[:dot])
        if isinstance(value, dict):
            return value_of(value, name[dot + 1 :])
    return None


def to_column(
    name: str, values: pa.ChunkedArray | list[object], kind: pa.DataType, errors: dict[int, str]
) -> pa.Array | pa.ChunkedArray:
    """Return values as a column, null where one does not fit; adds the reason to `errors`."""
    if isinstance(values, pa.ChunkedArray):
        if kind != TEXT or plain(values.type) == TEXT:  # others become text as JSON has them
            with suppress(pa.ArrowException):
                return values.cast(kind)
        values = values.to_pylist()
    if kind == TEXT:
        values = [as_text(value) for value in values]
    with suppress(*UNFIT):
        return pa.array(values, kind)
    for index, value in enumerate(values):
        try:
            pa.array([value], kind)
        except UNFIT as error:
            values[index] = None
            errors[index] = f"{name}: the value is not {kind}: {error}"
    return pa.array(values, kind)


def as_text(value: object) -> str | None:
    """Return a value of a column of text; lists, objects and truth are JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, dict, bool)):
        return json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":"))
    return str(value)
