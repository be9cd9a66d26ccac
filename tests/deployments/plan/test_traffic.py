"""Traces that are read."""

import gzip
from pathlib import Path

import pytest

from deployments.plan.traffic import read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9305900,396,109
2023-11-16 18:15:48.6805900,10,1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_azure_columns_are_understood(tmp_path: Path) -> None:
    """ContextTokens is the text's length; rows out of order are sorted; there are no images."""
    traffic = read_trace(write(tmp_path, AZURE))
    assert traffic.text.arrival_s == pytest.approx([0.0, 2.0, 4.25])
    assert traffic.text.cost.tolist() == [374, 10, 396]
    assert traffic.vision.cost.size == 0
    assert traffic.duration_s == pytest.approx(4.25)


def test_a_packed_trace_is_read_as_it_is(tmp_path: Path) -> None:
    """`.csv.gz` gives the same requests; one that was cut short is refused by name."""
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress(AZURE.encode()))
    assert read_trace(packed).text.cost.tolist() == [374, 10, 396]
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not a whole gzip file"):
        read_trace(packed)


def test_plain_columns_carry_both_modalities(tmp_path: Path) -> None:
    """A row without tokens is an image request; an image counts as an item each."""
    traffic = read_trace(write(tmp_path, "time,tokens,images\n0,5,0\n1.5,,4\n3,7,2\n"))
    assert traffic.text.cost.tolist() == [5, 7]
    assert traffic.text.items.tolist() == [1, 1]
    assert traffic.vision.arrival_s.tolist() == [1.5, 3]
    assert traffic.vision.items.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("when,tokens\n0,1\n", "columns when, tokens are not"),
        ("time,words\n0,1\n", "columns time, words are not"),
        ("time,tokens\n", "no rows"),
        ("time,tokens\n0,many\n", "many"),
        ("time,tokens\nnoon,1\n", "noon"),
        ("time,tokens\n0,-3\n", "negative"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The message names what was found in the place of what was needed."""
    with pytest.raises(ValueError, match=message):
        read_trace(write(tmp_path, text))
