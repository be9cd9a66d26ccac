"""What a request that does not fit its model is told: one fault, under the name that was sent."""

from collections.abc import Mapping

from pydantic import ValidationError

from deployments.errors import RequestError
from deployments.model.errors import InputError
from serve_app.api import dialects
from serve_app.api.errors import FieldError
from serve_app.api.items import type_of

MAX_SHOWN_CHARACTERS = 64
# What a value must be, by pydantic's type of the error; other errors bring their own words.
MUST_BE = {
    "bool_type": "it must be true or false",
    "int_type": "it must be a whole number",
    "literal_error": "choose {expected}",
}


def refuse_conflicts(sent: Mapping[str, object], fields: tuple[tuple[str, ...], ...]) -> None:
    """Refuse a field that was sent under two of its names and differs.

    Raises:
        FieldError: names both; one of them would be passed over in silence.
    """
    for names in fields:
        first, *others = [name for name in names if name in sent] or [""]
        for other in others:
            if dialects.listed(dialects.truncate(sent[other])) != dialects.listed(
                dialects.truncate(sent[first])
            ):
                raise FieldError(
                    f"{first} is {shown(sent[first])} and {other} is {shown(sent[other])}; they "
                    "mean the same field, so send one of them",
                    other,
                    "conflict",
                    shown(sent[other]),
                )


def shown(value: object) -> str:
    """Show a value in an error message, shortened."""
    if not isinstance(value, str):
        return type_of(value)
    cut = value[:MAX_SHOWN_CHARACTERS]
    return repr(cut) if cut == value else f"{cut!r}..."


def refusal(error: ValidationError, from_headers: Mapping[str, str]) -> InputError:
    """Return the first fault that was found, under the name that the client used."""
    first = error.errors(include_url=False)[0]
    kind, value, facts = first["type"], first["input"], first.get("ctx", {})
    if isinstance(own := facts.get("error"), InputError):
        return own
    name = str(first["loc"][0])
    if kind == "missing" and name == "labels":
        return RequestError("the field 'labels' is missing; send a list of texts")
    if kind == "missing":
        return RequestError("the field 'input' is missing; send a list of texts and images")
    name = from_headers.get(name, name)
    hint = MUST_BE[kind].format(**facts) if kind in MUST_BE else first["msg"]
    short = value if isinstance(value, (bool, int, float)) else shown(value)
    kind = "enum" if kind == "literal_error" else kind
    return FieldError(f"{name} is {shown(value)}; {hint}", name, kind, short)
