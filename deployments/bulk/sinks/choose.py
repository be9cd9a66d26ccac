"""Which kind of output a URL means; the client of a database is imported for its URLs alone."""

from urllib.parse import urlsplit

import pyarrow as pa

from deployments.bulk.columns import IMAGE_EMBEDDING, SCALES, TEXT_EMBEDDING, TYPES
from deployments.bulk.options import BITS, EmbedOptions
from deployments.bulk.output import Output, OutputFolder
from deployments.bulk.reading.tables import ROW, Layout
from deployments.bulk.sinks.store import Store, StoreOutput
from deployments.model.errors import OptionError


def open_output(url: str, layout: Layout, options: EmbedOptions, key: str | None) -> Output:
    """Return the output at a URL; connects to nothing yet.

    Raises:
        OptionError: a database without a key, or one whose client is not installed; columns that
            it cannot have.
    """
    if key is not None and pa.types.is_nested(layout.types[key]):
        raise OptionError(f"the column {key} is {layout.types[key]}; an id is one value")
    store = open_store(url)
    if store is None:
        return OutputFolder(url)
    if key is None:
        raise OptionError(f"{store.shown!r} holds each row under its id; name the column by --id")
    if ROW in layout.kept:
        raise OptionError(f"a kept column may not be named {ROW} in a database")
    kept = {ROW: pa.int64()} | {name: layout.types[name] for name in (*layout.kept, key)}
    return StoreOutput(store, kept, key, vector_types(options))


def open_store(url: str) -> Store | None:
    """Return the database that a URL names, or None for a folder.

    Raises:
        OptionError: its client is not installed.
    """
    scheme = urlsplit(url).scheme
    try:
        if scheme == "lance" or url.rstrip("/").endswith(".lance"):
            from deployments.bulk.sinks.lance import Lance

            return Lance(url.removeprefix("lance://"))
        if scheme in ("postgres", "postgresql"):
            from deployments.bulk.sinks.postgres import Postgres

            return Postgres(url)
        if scheme in ("qdrant", "qdrants"):
            from deployments.bulk.sinks.qdrant import Qdrant

            return Qdrant(url)
    except ImportError as error:
        raise OptionError(
            f"the output needs {error.name}; install it: pip install 'jina-clip-serve[sinks]'"
        ) from error
    return None


def vector_types(options: EmbedOptions) -> dict[str, pa.DataType]:
    """Return the columns with vectors that a job makes, and scales, and their types."""
    width = options.width(options.architecture())
    if options.precision == "binary":
        width //= BITS
    columns = {TEXT_EMBEDDING: options.text, IMAGE_EMBEDDING: options.image}
    made = [name for name, source in columns.items() if source is not None]
    types = dict.fromkeys(made, pa.list_(TYPES[options.precision], width))
    scales = [SCALES[name] for name in made if options.precision == "int8"]
    return types | dict.fromkeys(scales, pa.float32())
