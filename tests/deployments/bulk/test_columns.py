import numpy as np
import pyarrow as pa
import pytest

from deployments.bulk import columns

ROWS = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("precision", "least"), [("float16", 0.999999), ("int8", 0.9999)])
def test_fewer_bits_keep_the_direction(precision: columns.Precision, least: float) -> None:
    """Cosines to the exact rows stay near 1; rows of another order do not."""
    stored, _ = columns.encode(ROWS, precision)
    assert cosines(stored, ROWS).min() > least
    assert cosines(stored[::-1], ROWS).max() < 0.9


def test_binary_keeps_the_signs() -> None:
    """Bit 7 of the first byte is the sign of the first component."""
    row = np.array([[0.5, -0.5, 0.1, 0.0, -1, -1, -1, 1]], dtype=np.float32)
    assert columns.encode(row, "binary")[0].tolist() == [[0b10100001]]


def test_vectors_stand_in_their_rows_and_others_are_null() -> None:
    """Rows without a vector are null, not zero."""
    column, scales = columns.vector_columns({2: ROWS[0], 0: ROWS[1]}, 3, 64, "float32")
    assert scales is None
    assert column.type == pa.list_(pa.float32(), 64)
    assert column.is_valid().to_pylist() == [True, False, True]
    np.testing.assert_array_equal(column[2].as_py(), ROWS[0])
    np.testing.assert_array_equal(column[0].as_py(), ROWS[1])


def test_int8_rows_times_their_scales_rank_as_the_vectors_do() -> None:
    """By inner products; the whole numbers alone do not, since their lengths differ."""
    rows = ROWS * np.linspace(0.5, 1, len(ROWS), dtype=np.float32)[:, None]
    column, scales = columns.vector_columns(dict(enumerate(rows)), len(rows), 64, "int8")
    numbers = np.array(column.to_pylist(), np.float32)
    exact = np.argsort(-(rows @ rows.T), axis=1)[:, :6]
    scaled = numbers * np.array(scales.to_pylist(), np.float32)[:, None]
    np.testing.assert_allclose(scaled, rows, atol=np.abs(rows).max() / 127 / 2 + 1e-6)

    def agreement(vectors: np.ndarray) -> float:
        found = np.argsort(-(vectors @ vectors.T), axis=1)[:, :6]
        same = [len({*a} & {*b}) / 6 for a, b in zip(exact, found, strict=True)]
        return float(np.mean(same))

    assert agreement(scaled) > 0.97
    assert agreement(numbers) < agreement(scaled)


def test_no_vectors_at_all_is_a_column_of_nulls() -> None:
    """A block whose rows all failed has the type of the others."""
    column, _ = columns.vector_columns({}, 2, 64, "binary")
    assert column.type == pa.list_(pa.uint8(), 8)
    assert column.null_count == 2


@pytest.mark.parametrize("part", [slice(0, 4), slice(1, 3)])
def test_token_ids_come_back_from_any_part(part: slice) -> None:
    """Also from a slice of a table, whose offsets do not begin at 0."""
    texts = [np.arange(3, dtype=np.int32), None, np.arange(9, dtype=np.int32), None]
    table = pa.table({"x": columns.token_column(texts)}).slice(part.start, part.stop - part.start)
    found = columns.token_rows(table["x"])
    assert [x is None for x in found] == [x is None for x in texts[part]]
    for ids, expected in zip(found, texts[part], strict=True):
        assert ids is None or ids.tolist() == expected.tolist()


def test_reasons_add_up() -> None:
    """A row that failed twice says both."""
    table = columns.add_errors(pa.table({"x": [1, 2]}), {1: "first"})
    table = columns.add_errors(table, {0: "alone", 1: "second"})
    assert table["error"].to_pylist() == ["alone", "first; second"]
