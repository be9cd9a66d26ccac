"""What the values of a request's fields may be, and what each means."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.config import AppConfig
from deployments.errors import RequestError, UnknownModelError
from deployments.model.architecture import QUERY_TASK, Architecture
from serve_app.api.errors import FieldError
from serve_app.api.items import type_of
from serve_app.api.rendering import ENCODINGS, Encoding

MAX_SHOWN_CHARACTERS = 64
# Clients send it with every document; the model embeds documents without a prefix.
DOCUMENT_TASKS = ("", "retrieval.passage")


@dataclass(frozen=True)
class Served:
    """What a request is read against."""

    config: AppConfig
    architecture: Architecture

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model that a request may ask for."""
        model = self.config.model
        return (model.served_name, model.source, *model.aliases)

    @property
    def image_price_tokens(self) -> int:
        """Tokens that `usage` counts for a picture."""
        price = self.config.router.image_price_tokens
        return self.architecture.vision.num_tokens if price is None else price


def shown(value: object) -> str:
    """Show a value in an error message, shortened."""
    if not isinstance(value, str):
        return type_of(value)
    cut = value[:MAX_SHOWN_CHARACTERS]
    return repr(cut) if cut == value else f"{cut!r}..."


def model(value: object, served: Served) -> str:
    """Return the served name for any name of the model; raises UnknownModelError otherwise."""
    if value not in served.names:
        raise UnknownModelError(
            f"model {shown(value)} is not served here; this is {served.names[0]!r}"
        )
    return served.names[0]


def task(value: object, _served: Served) -> str | None:
    """Return the query task, or None for documents."""
    if value in DOCUMENT_TASKS:
        return None
    if value != QUERY_TASK:
        raise FieldError(f"choose {QUERY_TASK!r} or leave it out", kind="enum")
    return QUERY_TASK


def dimensions(value: object, served: Served) -> int:
    """Return a width that the model has."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldError("it must be a whole number", kind="int_type")
    width = served.architecture.width
    if value < 1:
        raise FieldError(f"it must be from 1 to {width}", kind="greater_than_equal")
    if value > width:
        raise FieldError(
            f"it must be from 1 to {width}, the width of this model", kind="less_than_equal"
        )
    return value


def flag(value: object, _served: Served) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise FieldError("it must be true or false", kind="bool_type")
    return value


def encodings(value: object, _served: Served) -> tuple[Encoding, ...]:
    """Return the encodings asked for, each once."""
    asked = value if isinstance(value, list) else [value]
    if not asked or any(name not in ENCODINGS for name in asked):
        raise FieldError(f"choose from {', '.join(ENCODINGS)}", kind="enum")
    return tuple(dict.fromkeys(asked))


def late_chunking(value: object, _served: Served) -> bool:
    """Return False, the only value."""
    if value is not False:
        raise FieldError("this model does not have it; leave it out", kind="enum")
    return False


def timeout_s(value: object, _served: Served) -> float:
    """Return positive seconds, from a number or a header's text."""
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) else 0.0
    except (ValueError, OverflowError):
        seconds = 0.0
    if isinstance(value, bool) or not 0 < seconds < math.inf:
        raise FieldError("it must be a positive number of seconds", kind="greater_than")
    return seconds


def one_of(*choices: str) -> Callable[[object, Served], Any]:
    """Return a check that takes these words only."""

    def check(value: object, _served: Served) -> object:
        if value not in choices:
            raise FieldError(f"choose {' or '.join(map(repr, choices))}", kind="enum")
        return value

    return check


def input(value: object, _served: Served) -> object:
    """Return it as it is; `items.read` needs other fields too."""
    return value


def required(value: object) -> object:
    """Return the field `input`.

    Raises:
        RequestError: it is absent.
    """
    if value is None:
        raise RequestError("the field 'input' is missing; send a list of texts and images")
    return value
