"""The lines of a batch's input: one JSON object each, with a request in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import ValidationError

from serve_app.api.json_body import loads
from serve_app.batches.objects import InputLine, LineFault

MOST_FAULTS = 100  # that are told of one input
# Around a body there are the other fields; nothing of a longer line is kept.
ENVELOPE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Line:
    """A request of a batch; `number` counts from 1, `body` is JSON."""

    number: int
    custom_id: str
    body: bytes


def read_lines(path: Path, endpoint: str, max_body_bytes: int) -> Iterator[Line | LineFault]:
    """Yield each line of an input, or what is wrong with it; blank lines are passed over."""
    longest = max_body_bytes + ENVELOPE_BYTES
    with path.open("rb") as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:
                while line and not line.endswith(b"\n"):
                    line = file.readline(longest)
                message = f"the line is longer than {longest:,} bytes; send smaller requests"
                yield LineFault(code="line_too_long", message=message, line=number)
            elif text := line.strip().removeprefix(b"\xef\xbb\xbf"):
                yield _read(text, number, endpoint)


def faults_of(path: Path, endpoint: str, max_body_bytes: int) -> tuple[int, list[LineFault]]:
    """Look at a whole input; returns the number of its requests, and what is wrong with it."""
    faults: list[LineFault] = []
    first: dict[str, int] = {}
    total = 0
    for line in read_lines(path, endpoint, max_body_bytes):
        total += 1
        if isinstance(line, LineFault):
            faults.append(line)
        elif first.setdefault(line.custom_id, line.number) != line.number:
            message = f"custom_id {line.custom_id[:60]!r} is that of line {first[line.custom_id]}"
            place = {"line": line.number, "param": "custom_id"}
            faults.append(LineFault(code="duplicate_custom_id", message=message, **place))
        if len(faults) == MOST_FAULTS:
            break
    if not total:
        faults.append(LineFault(code="empty_file", message="the input has no line"))
    return total, faults


def _read(text: bytes, number: int, endpoint: str) -> Line | LineFault:
    try:
        line = InputLine.model_validate(loads(text))
    except orjson.JSONDecodeError as error:
        message = f"the line is not JSON: {error}"
        return LineFault(code="invalid_json_line", message=message, line=number)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"]))
        message = f"{field or 'the line'}: {fault['msg']}"
        return LineFault(code="invalid_request", message=message, line=number, param=field or None)
    if line.url.rstrip("/") != endpoint:
        message = f"url is {line.url[:60]!r}; the batch is for {endpoint}"
        return LineFault(code="invalid_url", message=message, line=number, param="url")
    return Line(number, line.custom_id, orjson.dumps(line.body))
