"""An answer's body: JSON in any encoding, or the bare matrix as .npy or Arrow."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from deployments.errors import RequestError
from deployments.messages import Embeddings, Usage
from deployments.model.errors import EmbeddingError
from deployments.model.output import Rows, to_binary, to_int8, to_ubinary
from serve_app.api import arrow
from serve_app.api.answers import ItemFault, Row, UsageCount
from serve_app.api.errors import answer_to

Encoding = Literal["float", "base64", "binary", "ubinary", "int8"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
PACKED = ("binary", "ubinary")

JSON = "application/json"
NPY = "application/x-npy"

# The JSON encoder holds Python's global lock; after this many numbers others get their turn.
NUMBERS_AT_ONCE = 64 * 1024


@dataclass(frozen=True)
class Form:
    """How an answer is to be written.

    Raises:
        RequestError: what is asked for cannot be written in this body type.
    """

    encodings: tuple[Encoding, ...]
    model_name: str
    image_price_tokens: int
    media_type: str = JSON

    def __post_init__(self) -> None:
        if self.media_type != JSON and len(self.encodings) > 1:
            raise RequestError(
                f"{self.media_type} holds one matrix, not {' and '.join(self.encodings)}; ask for "
                "one embedding_type, or accept JSON"
            )


def negotiate(accept: str) -> str:
    """Return the body type that an Accept header prefers; JSON where it names none of ours.

    Raises:
        RequestError: this server cannot write it.
    """
    best, best_quality = JSON, 0.0
    for part in accept.split(","):
        name, *parameters = (x.strip().lower() for x in part.split(";"))
        quality = next((_number(x[2:]) for x in parameters if x.startswith("q=")), 1.0)
        if name in BODIES and quality > best_quality:
            best, best_quality = name, quality
    if best == arrow.MEDIA_TYPE:
        arrow.require()
    return best


def render(answer: Embeddings, form: Form) -> bytes:
    """Return the body of an answer, rows in request order.

    Raises:
        RequestError: the body type has no place for items that failed.
    """
    return BODIES[form.media_type](answer, form)


def usage(cost: Usage, image_price_tokens: int) -> UsageCount:
    """Return what the request cost."""
    images = cost.images
    image_tokens = images * image_price_tokens
    total = cost.text_tokens + image_tokens
    return {
        "total_tokens": total,
        "prompt_tokens": total,
        "image_tokens": image_tokens,
        "images": images,
    }


def render_json(answer: Embeddings, form: Form) -> bytes:
    """Return JSON; floats are the shortest decimals that give back the same float32."""
    head: dict[str, object] = {
        "model": form.model_name,
        "object": "list",
        "usage": usage(answer.usage, form.image_price_tokens),
    }
    if answer.failures:
        head["errors"] = faults(answer.failures)
    num_rows, width = answer.embeddings.shape
    step = max(1, NUMBERS_AT_ONCE // width)
    parts = [
        orjson.dumps(_rows(answer, form, slice(start, start + step)), option=OPTION)[1:-1]
        for start in range(0, num_rows, step)
    ]
    return orjson.dumps(head)[:-1] + b',"data":[' + b",".join(parts) + b"]}"


def render_npy(answer: Embeddings, form: Form) -> bytes:
    """Return the matrix in NumPy's .npy format: float32, or the integers of the encoding."""
    (encoding,) = form.encodings
    return npy(MATRICES[encoding](answer.embeddings), answer.failures)


def npy(matrix: NDArray[Any], failures: Mapping[int, EmbeddingError]) -> bytes:
    """Return a matrix in NumPy's .npy format.

    Raises:
        RequestError: it has no place for items that failed.
    """
    if failures:
        raise RequestError(
            "an .npy body has no place for the failures that errors 'partial' allows; accept JSON"
        )
    buffer = io.BytesIO()
    np.save(buffer, matrix, allow_pickle=False)
    return buffer.getvalue()


def render_arrow(answer: Embeddings, form: Form) -> bytes:
    """Return an Arrow stream: `index`, `embedding` (null where the item failed), `error`."""
    (encoding,) = form.encodings
    columns = {"embedding": MATRICES[encoding](answer.embeddings)}
    if encoding == "int8":
        columns["int8_scale"] = to_int8(answer.embeddings)[1]
    cost = usage(answer.usage, form.image_price_tokens)
    facts = {"model": form.model_name, "encoding": encoding, "usage": cost}
    return arrow.stream(columns, messages(answer.failures), orjson.dumps(facts))


def messages(failures: Mapping[int, EmbeddingError]) -> dict[int, str]:
    """Return what is said of single items where there is room for a text alone."""
    return {x["index"]: f"{x['code']}: {x['message']}" for x in faults(failures)}


def faults(failures: Mapping[int, EmbeddingError]) -> list[ItemFault]:
    """Return the failures of single items, in their order."""
    return [
        {"index": index, "code": how.code, "message": message}
        for index in sorted(failures)
        for how, message in [answer_to(failures[index])]
    ]


def _rows(answer: Embeddings, form: Form, part: slice) -> list[Row]:
    """Return the `data` entries of some rows; NumPy rows are left to the JSON encoder."""
    rows = answer.embeddings[part]
    encoded = {name: ENCODERS[name](rows) for name in form.encodings}
    scales = to_int8(rows)[1].tolist() if "int8" in form.encodings else None
    entries: list[Row] = []
    for i in range(len(rows)):
        index = part.start + i
        # Any: a NumPy row, which the encoder writes as a list of numbers.
        embedding: Any = {name: values[i] for name, values in encoded.items()}
        if len(embedding) == 1:
            (embedding,) = embedding.values()
        failed = index in answer.failures
        entry: Row = {
            "object": "embedding",
            "index": index,
            "embedding": None if failed else embedding,
        }
        if scales is not None and not failed:
            entry["int8_scale"] = scales[i]
        entries.append(entry)
    return entries


def _base64(rows: Rows) -> list[str]:
    return [pybase64.b64encode_as_string(row) for row in _little_endian(rows)]


def _little_endian(rows: Rows) -> Rows:
    return np.ascontiguousarray(rows, dtype=np.dtype("<f4"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


OPTION = orjson.OPT_SERIALIZE_NUMPY
MATRICES: Mapping[Encoding, Callable[[Rows], NDArray[Any]]] = {
    "float": _little_endian,
    "base64": _little_endian,
    "binary": to_binary,
    "ubinary": to_ubinary,
    "int8": lambda rows: to_int8(rows)[0],
}
# Any: a matrix, whose rows the JSON encoder writes as lists, or a list of strings.
ENCODERS: Mapping[Encoding, Callable[[Rows], Any]] = {**MATRICES, "base64": _base64}
BODIES: Mapping[str, Callable[[Embeddings, Form], bytes]] = {
    JSON: render_json,
    NPY: render_npy,
    arrow.MEDIA_TYPE: render_arrow,
}
