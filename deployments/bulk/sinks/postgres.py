"""PostgreSQL with pgvector: `postgresql://user@host/database?table=schema.name`."""

import os
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import psycopg
import pyarrow as pa
from pgvector import Bit, HalfVector, Vector
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.types.json import Jsonb

from deployments.bulk.reading.tables import ROW
from deployments.bulk.sinks.store import JOB, Store, check_columns, not_earlier, plain
from deployments.model.errors import OptionError

MAX_NAME_BYTES = 63  # of PostgreSQL, which cuts longer ones
BLOCKS = "_blocks"
COLUMN_TYPES: list[tuple[Callable[[pa.DataType], bool], str, Callable[[Any], Any]]] = [
    (pa.types.is_boolean, "bool", lambda x: x),
    (pa.types.is_uint64, "numeric", Decimal),
    (pa.types.is_integer, "int8", lambda x: x),
    (pa.types.is_floating, "float8", lambda x: x),
    (pa.types.is_decimal, "numeric", Decimal),
    (pa.types.is_date, "date", lambda x: x),
    (pa.types.is_binary, "bytea", lambda x: x),
    (pa.types.is_large_binary, "bytea", lambda x: x),
    (pa.types.is_fixed_size_binary, "bytea", lambda x: x),
    (pa.types.is_nested, "jsonb", lambda x: Jsonb(without_nul(plain(x)))),
]


class Postgres(Store):
    """A table of a PostgreSQL database, which the URL names too."""

    transient = (psycopg.OperationalError,)

    @property
    def shown(self) -> str:
        """The URL without its password."""
        parts = urlsplit(self.url)
        place = f"{parts.username}@{parts.netloc.rpartition('@')[2]}"
        return parts._replace(netloc=place if parts.username else parts.netloc).geturl()

    def create(self, part: str, schema: pa.Schema, key: str) -> None:
        """Create a table, and the extension of vectors, unless they are there."""
        columns = [(sql.Identifier(x.name), sql.SQL(column_type(x.type)[0])) for x in schema]
        made, nulls = (
            sql.SQL(", ").join(sql.SQL(each).format(name=name, kind=kind) for name, kind in columns)
            for each in ("{name} {kind}", "null::{kind} as {name}")
        )
        order = "create table if not exists {} ({}, primary key ({}))"
        with self._connect() as connection:
            connection.execute("create extension if not exists vector")
            connection.execute(sql.SQL(order).format(self._name(part), made, sql.Identifier(key)))
            found = connection.execute(sql.SQL("select * from {} limit 0").format(self._name(part)))
            there = {column.name: column.type_code for column in found.description or ()}
            found = connection.execute(sql.SQL("select {}").format(nulls))
            wanted = {column.name: column.type_code for column in found.description or ()}
        check_columns(self.shown, [x for x in wanted if there.get(x) != wanted[x]])

    def upsert(self, part: str, table: pa.Table, key: str) -> None:
        """Write rows over those with the same key in one transaction."""
        order = (  # rows in one order, so that two writers never wait for each other
            "insert into {table} as old ({names}) select {names} from incoming order by {key} "
            "on conflict ({key}) do update set {sets}"
        )
        if ROW in table.column_names:
            order += f" where {not_earlier('old', 'excluded')}"
        columns = [sql.Identifier(name) for name in table.column_names]
        names = sql.SQL(", ").join(columns)
        sets = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(x) for x in columns)
        places = {"table": self._name(part), "key": sql.Identifier(key)}
        insert = sql.SQL(order).format(names=names, sets=sets, **places)
        types, converters = zip(*(column_type(x.type) for x in table.schema), strict=True)
        values = [table[name].to_pylist() for name in table.column_names]
        temporary = sql.SQL("create temp table incoming (like {}) on commit drop")
        copy_in = sql.SQL("copy incoming ({}) from stdin (format binary)").format(names)
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(temporary.format(self._name(part)))
            with cursor.copy(copy_in) as copy:
                copy.set_types([name.partition("(")[0] for name in types])
                for row in zip(*values, strict=True):
                    pairs = zip(converters, row, strict=True)
                    copy.write_row([None if x is None else convert(x) for convert, x in pairs])
            cursor.execute(insert)

    def rows(self, part: str) -> list[dict[str, Any]]:
        """Return all rows of a table, or none if it is not there."""
        query = sql.SQL("select * from {}").format(self._name(part))
        with self._connect() as connection:
            cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
            try:
                return cursor.execute(query).fetchall()
            except psycopg.errors.UndefinedTable:
                return []

    def count(self, job: str) -> int:
        """Return how many rows of a job the table holds."""
        query = sql.SQL("select count(*) from {} where {} = %s").format(
            self._name(""), sql.Identifier(JOB)
        )
        with self._connect() as connection:
            found = connection.execute(query, [job]).fetchone()
        assert found is not None  # count has one row always
        return int(found[0])

    def _connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        parts = urlsplit(self.url)
        rest = [(name, value) for name, value in parse_qsl(parts.query) if name != "table"]
        connection = psycopg.connect(parts._replace(query=urlencode(rest)).geturl())
        if connection.execute("select 1 from pg_type where typname = 'vector'").fetchone():
            register_vector(connection)
        return connection

    def _name(self, part: str) -> sql.Identifier:
        table = dict(parse_qsl(urlsplit(self.url).query)).get("table")
        if not table:
            raise OptionError(f"{self.shown!r} names no table; add ?table=NAME")
        if len(os.fsencode(table.rpartition(".")[2] + BLOCKS)) > MAX_NAME_BYTES:
            raise OptionError(f"the name of the table {table!r} is too long for {BLOCKS} after it")
        return sql.Identifier(*(table + part).split("."))


def column_type(kind: pa.DataType) -> tuple[str, Callable[[Any], Any]]:
    """Return PostgreSQL's type for a column, and what makes a value of Arrow one of psycopg's.

    Raises:
        OptionError: int8 vectors, which pgvector does not have.
    """
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        vectors: dict[pa.DataType, tuple[str, Callable[[Any], Any]]] = {
            pa.float32(): (f"vector({size})", lambda x: Vector(np.array(x, np.float32))),
            pa.float16(): (f"halfvec({size})", lambda x: HalfVector(np.array(x, np.float16))),
            pa.uint8(): (
                f"bit({size * 8})",
                lambda x: Bit(np.unpackbits(np.uint8(x)).astype(bool)),
            ),
        }
        if kind.value_type not in vectors:
            raise OptionError(
                f"pgvector has no vectors of {kind.value_type}; use --precision float16 or binary"
            )
        return vectors[kind.value_type]
    if pa.types.is_timestamp(kind):
        return ("timestamptz" if kind.tz else "timestamp"), lambda x: x
    for fits, name, convert in COLUMN_TYPES:
        if fits(kind):
            return name, convert
    return "text", lambda x: without_nul(str(x))


def without_nul(value: object) -> object:
    """Return a value of JSON with U+FFFD for U+0000, which PostgreSQL cannot hold."""
    match value:
        case dict():
            return {without_nul(name): without_nul(part) for name, part in value.items()}
        case list():
            return [without_nul(part) for part in value]
        case str():
            return value.replace("\0", "\ufffd")
    return value
