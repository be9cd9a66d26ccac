"""What a line of a batch's input may be, and what is said of one that is not."""

import json

import pytest

from serve_app.batches.lines import ENVELOPE_BYTES, Line, faults_of, read_lines
from tests.serve_app.batches.told import line

ENDPOINT = "/v1/embeddings"


def faults(tmp_path, text: str | bytes, max_body_bytes: int = 1000):
    path = tmp_path / "in.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    total, found = faults_of(path, ENDPOINT, max_body_bytes)
    return total, [(fault.code, fault.line, fault.param) for fault in found]


def test_lines_are_read_with_their_numbers_and_bodies(tmp_path):
    """Blank lines are passed over and counted; a missing last line end and a BOM do no harm."""
    path = tmp_path / "in.jsonl"
    path.write_text(f"\ufeff{line(1)}\n\n  \r\n{line(2)}", encoding="utf-8")
    lines = list(read_lines(path, ENDPOINT, 1000))
    assert [(x.number, x.custom_id) for x in lines if isinstance(x, Line)] == [(1, "r1"), (4, "r2")]
    assert json.loads(lines[1].body) == {"input": ["text 2"]}
    assert faults(tmp_path, path.read_bytes()) == (2, [])


def test_a_line_is_read_as_a_body_over_http_is(tmp_path):
    """Half an emoji in a text is mended, in place of failing the whole batch."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(line(1).encode().replace(b"text 1", rb"text \ud83d"))
    (read,) = read_lines(path, ENDPOINT, 1000)
    assert isinstance(read, Line)
    assert json.loads(read.body) == {"input": ["text \ufffd"]}


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        ("{", "invalid_json_line", None),
        ("[1]", "invalid_request", None),
        (line(2, custom_id=""), "invalid_request", "custom_id"),
        (line(2, custom_id=None), "invalid_request", "custom_id"),
        (line(2, method="GET"), "invalid_request", "method"),
        (line(2, url="/v1/chat/completions"), "invalid_url", "url"),
        (line(2, body="text"), "invalid_request", "body"),
        (line(1), "duplicate_custom_id", "custom_id"),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path, text, code, param):
    """Nothing of the input is run then; the others are looked at all the same."""
    assert faults(tmp_path, f"{line(1)}\n{text}\n{line(3)}\n") == (3, [(code, 2, param)])


def test_an_input_without_a_line_is_a_fault(tmp_path):
    """So that nobody waits for nothing."""
    assert faults(tmp_path, "\n\n") == (0, [("empty_file", None, None)])


def test_a_line_that_no_request_may_have_is_never_held_whole(tmp_path):
    """What follows it is read."""
    longest = 1000 + ENVELOPE_BYTES
    text = f"{line(1)}\n{'x' * (3 * longest)}\n{line(3)}\n"
    assert faults(tmp_path, text) == (3, [("line_too_long", 2, None)])


def test_a_hundred_faults_are_enough(tmp_path):
    """The rest is not read."""
    total, found = faults(tmp_path, "{\n" * 500)
    assert (total, len(found)) == (100, 100)
