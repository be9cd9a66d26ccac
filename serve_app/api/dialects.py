"""Values of a request's fields in the words of several APIs, and what each means here."""

import math

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from deployments.model.architecture import QUERY_TASK

# What other APIs call the task in `input_type`: NIM and Voyage, Cohere.
INPUT_TYPES = {
    "query": QUERY_TASK,
    "search_query": QUERY_TASK,
    "passage": "retrieval.passage",
    "document": "retrieval.passage",
    "search_document": "retrieval.passage",
}
# NIM's and Cohere's words for where a text is cut.
TRUNCATE = {"none": False, "end": True, "start": "start"}


def seconds(value: object) -> float:
    """Return positive seconds, from a number or a header's text."""
    try:
        is_number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        seconds = float(value) if is_number else 0.0  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise PydanticCustomError("greater_than", "it must be a positive number of seconds")
    return seconds


def listed(value: object) -> object:
    """Return the list of encodings; an empty one is no encoding."""
    return value if isinstance(value, list) and value else [value]


def input_type(value: object) -> object:
    """Return the value in lower case; NIM's, Voyage's and Cohere's have no case."""
    return value.lower() if isinstance(value, str) else value


def task(task: str | None, info: ValidationInfo) -> str | None:
    """Return the task that has a prefix, from `task` or as `input_type` names it."""
    named = INPUT_TYPES.get(str(info.data.get("input_type")))
    if task and named and task != named:
        raise PydanticCustomError(
            "conflict", "input_type says {named}; send one of them", {"named": named}
        )
    # Some clients send a task with every document; documents have no prefix.
    return QUERY_TASK if QUERY_TASK in (task, named) else None


def truncate(value: object) -> object:
    """Return whether and where a text is cut; NIM's and Cohere's words have no case."""
    return TRUNCATE.get(value.lower(), value) if isinstance(value, str) else value
