"""Types of columns, from all of the input: one that holds every value, or text."""

import json
from collections.abc import Iterable, Mapping, Sequence

import orjson
import pyarrow as pa

from deployments.model.errors import OptionError

Fields = Mapping[str, pa.DataType]
TEXT = pa.large_string()


def plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without what only its file needs: dictionaries, short offsets."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return TEXT
    return pa.large_binary() if pa.types.is_binary(kind) else kind


def guess_type(values: Sequence[object]) -> pa.DataType:
    """Return an Arrow type that holds all values, or text where none does."""
    try:
        return plain(pa.array(values).type)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return TEXT


def merged(parts: Iterable[Fields]) -> dict[str, pa.DataType]:
    """Return the columns of all parts, each of a type that holds what every part has in it.

    Raises:
        OptionError: a column has text in one part and bytes in another.
    """
    types: dict[str, pa.DataType] = {}
    for part in parts:
        for name, kind in part.items():
            types[name] = _both(name, types.get(name, pa.null()), kind)
    return {name: TEXT if pa.types.is_null(kind) else kind for name, kind in types.items()}


def _both(name: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    if {one, other} == {TEXT, pa.large_binary()}:
        raise OptionError(
            f"the column {name} has text in one file and bytes in another; embed them one by one"
        )
    schemas = [pa.schema([pa.field("x", kind)]) for kind in (one, other)]
    try:
        found = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return TEXT
    return plain(found)


def nested(types: Fields, name: str) -> pa.DataType | None:
    """Return the type of a column, or of a field of one as `meta.id`; None where there is none."""
    if name in types:
        return types[name]
    column, dot, rest = name.partition(".")
    kind = types.get(column)
    if not dot or kind is None or not pa.types.is_struct(kind):
        return None
    return nested({field.name: plain(field.type) for field in kind}, rest)


def value_of(record: Mapping[str, object], name: str) -> object:
    """Return the value of a column, or of a field of one, null where there is none."""
    if name in record or "." not in name:
        return record.get(name)
    column, _, rest = name.partition(".")
    value = record.get(column)
    return value_of(value, rest) if isinstance(value, dict) else None


def as_text(value: object) -> str | None:
    """Return a value of a column of text: what is no string as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:  # a whole number of more than 64 bits
        return json.dumps(value, default=str, ensure_ascii=False)
