import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from deployments.bulk import reembed
from deployments.bulk.columns import vector_columns
from deployments.bulk.identity import Identity
from deployments.bulk.output import OutputFolder
from deployments.bulk.reembed import check, compare, finish, identity_of
from deployments.model.errors import OptionError

ROWS, WIDTH = 40, 16
KEPT = '{"kept": []}'
OLD = Identity("m", "abc", WIDTH, "float32", "", "native", "{}", "{}", "", False, KEPT, "123")


def unit_rows(seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def output(
    path: Path, identity: Identity, rows: dict[int, np.ndarray], ids: list[str | None] | pa.Array
) -> str:
    """Write an output of two blocks."""
    folder = OutputFolder(str(path))
    folder.begin(identity, resume=False)
    width = len(next(iter(rows.values())))
    columns = {
        "row": list(range(len(ids))),
        "id": ids,
        "text_embedding": vector_columns(rows, len(ids), width, identity.precision)[0],
        "error": pa.nulls(len(ids), pa.string()),
    }
    table = pa.table(columns)
    for number, part in enumerate((table.slice(0, 25), table.slice(25))):
        folder.write(number, part, 0, identity)
    return folder.url


IDS: list[str | None] = [f"k{i}" for i in range(ROWS)]


def test_the_report_says_what_numpy_says(tmp_path: Path) -> None:
    """Of the same rows, of rows that moved a little, and of others."""
    before = unit_rows(0)
    noisy = before + 0.1 * unit_rows(1)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    old = output(tmp_path / "old", OLD, dict(enumerate(before)), IDS)
    for name, after in (("same", before), ("near", noisy), ("other", unit_rows(2))):
        identity = replace(OLD, fingerprint=name)
        new = output(tmp_path / name, identity, dict(enumerate(after)), IDS)
        found = compare(old, new).changes["text_embedding"]
        assert found.cosine == pytest.approx((before * after).sum(axis=1).mean(), abs=1e-5)
        assert found.overlap == pytest.approx(shared(before, after))
        assert (found.rows, found.lost) == (ROWS, 0)


def shared(before: np.ndarray, after: np.ndarray) -> float:
    total = 0
    for place in range(ROWS):
        tens = []
        for rows in (before, after):
            others = [i for i in range(ROWS) if i != place]
            tens.append({*sorted(others, key=lambda i: -(rows[i] @ rows[place]))[:10]})
        total += len(tens[0] & tens[1])
    return total / (10 * ROWS)


def test_rows_that_are_missing_are_counted(tmp_path: Path) -> None:
    """By id, whatever their order; a row without a new vector is another matter."""
    rows = unit_rows(0)
    old = output(tmp_path / "old", OLD, dict(enumerate(rows)), IDS)
    left = list(reversed(range(3, ROWS)))
    kept = {place: rows[row] for place, row in enumerate(left) if row != 7}
    new = output(tmp_path / "new", replace(OLD, fingerprint="x"), kept, [IDS[i] for i in left])
    found = compare(old, new, "id")
    assert (found.old_rows, found.new_rows, found.missing_rows) == (ROWS, ROWS - 3, 3)
    change = found.changes["text_embedding"]
    assert (change.lost, change.rows) == (4, ROWS - 4)
    assert change.cosine == pytest.approx(1, abs=1e-5)
    with pytest.raises(OptionError, match="has no column url"):
        compare(old, new, "url")


@pytest.mark.parametrize(
    ("old_ids", "new_ids", "missing", "rows"),
    [
        (pa.array(range(ROWS)), pa.array(["x", *map(str, range(1, ROWS))]), 1, ROWS - 1),
        (pa.array(["x", *map(str, range(1, ROWS))]), pa.array(range(ROWS)), 1, ROWS - 1),
        (pa.array(range(ROWS)), pa.array([0.5, *range(1, ROWS)]), 1, ROWS - 1),
        (pa.array(range(ROWS), pa.int32()), pa.array([2**40, *range(1, ROWS)]), 1, ROWS - 1),
        (pa.array(range(ROWS)), pa.array(range(ROWS, 2 * ROWS)), ROWS, 0),
        (pa.array([math.nan, *range(1, ROWS)]), pa.array([math.nan, *range(1, ROWS)]), 0, ROWS),
    ],
)
def test_ids_of_another_type_compare(
    tmp_path: Path, old_ids: pa.Array, new_ids: pa.Array, missing: int, rows: int
) -> None:
    """As those of an input that grew may be; there may be no row in common either."""
    vectors = dict(enumerate(unit_rows(0)))
    old = output(tmp_path / "old", OLD, vectors, old_ids)
    new = output(tmp_path / "new", replace(OLD, fingerprint="x"), vectors, new_ids)
    found = compare(old, new, "id")
    assert found.missing_rows == missing
    change = found.changes["text_embedding"]
    assert (change.rows, change.lost) == (rows, ROWS - rows)
    assert change.cosine == (pytest.approx(1, abs=1e-5) if rows else None)


def test_other_widths_and_precisions_compare(tmp_path: Path) -> None:
    """Neighbours do; a cosine of two widths is none."""
    rows = unit_rows(0)
    old = output(tmp_path / "old", OLD, dict(enumerate(rows)), IDS)
    half = replace(OLD, dimensions=8)
    short = output(tmp_path / "short", half, dict(enumerate(rows[:, :8])), IDS)
    assert compare(old, short).changes["text_embedding"].cosine is None
    for precision in ("float16", "int8", "binary"):
        identity = replace(OLD, precision=precision)
        new = output(tmp_path / precision, identity, dict(enumerate(rows)), IDS)
        change = compare(old, new).changes["text_embedding"]
        assert change.cosine is not None
        assert change.cosine > (0.7 if precision == "binary" else 0.999)


def test_the_manifest_names_both_outputs(tmp_path: Path) -> None:
    """It is no part of the rows that readers of the folder see."""
    rows = dict(enumerate(unit_rows(0)))
    old = output(tmp_path / "old", OLD, rows, IDS)
    new = output(tmp_path / "new", replace(OLD, fingerprint="def"), rows, IDS)
    assert finish(old, new, "id") == compare(old, new)
    stated = json.loads((tmp_path / "new" / "_manifest.json").read_text())
    assert stated["vectors"]["fingerprint"] == "def"
    assert stated["replaced_vectors"]["fingerprint"] == "abc"
    assert (stated["output"], stated["replaces"]) == (new, old)
    assert stated["report"]["missing_rows"] == 0
    assert compare(old, new).new_rows == ROWS


def test_what_cannot_be_compared_is_refused_before_the_job_runs(tmp_path: Path) -> None:
    """A database, a folder that is no output, one folder for both, rows that nothing names."""
    job = replace(OLD, columns='{"kept": ["id"]}')
    old, new = output(tmp_path / "old", job, dict(enumerate(unit_rows(0))), IDS), str(tmp_path)
    check(old, new, replace(job, fingerprint="def"), None)
    check(old, new, replace(job, input="123 in blocks of 9 rows"), None)  # as on another device
    check(old, new, replace(job, input="456"), "id")
    for key in (None, "url"):
        with pytest.raises(OptionError, match=f"by --id, not {key}"):
            check(old, new, replace(job, input="456"), key)
    own = replace(job, columns='{"kept": ["id", "row"]}')  # which is not the place in the input
    check(old, new, own, "id")
    with pytest.raises(OptionError, match="by --id, not None"):
        check(old, new, own, None)
    with pytest.raises(OptionError, match="name another as OUTPUT"):
        check(old, f"{tmp_path}/./old/", job, "id")
    with pytest.raises(OptionError, match="name a folder"):
        check(old, "postgresql:///db?table=t", job, "id")
    with pytest.raises(OptionError, match="is no output of a bulk job"):
        identity_of(str(tmp_path))


def test_rows_that_share_an_id_are_missing_one_by_one(tmp_path: Path) -> None:
    """Of three rows with one id and two without, the new output has one each."""
    rows = dict(enumerate(unit_rows(0)))
    old = output(tmp_path / "old", OLD, rows, ["a", "a", "a", None, None, *IDS[5:]])
    new = output(tmp_path / "new", OLD, rows, ["a", None, "x", "y", "z", *IDS[5:]])
    assert compare(old, new, "id").missing_rows == 3


def test_a_sample_has_no_more_rows_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are spread over all of the output."""
    monkeypatch.setattr(reembed, "SAMPLE_ROWS", 25)
    before, after = unit_rows(0), unit_rows(1)
    old = output(tmp_path / "old", OLD, dict(enumerate(before)), IDS)
    new = output(tmp_path / "new", OLD, dict(enumerate(after)), IDS)
    change = compare(old, new).changes["text_embedding"]
    places = np.linspace(0, ROWS - 1, 25).astype(int)
    cosine = (before[places] * after[places]).sum(axis=1).mean()
    assert (change.rows, change.cosine) == (25, pytest.approx(cosine, abs=1e-5))
