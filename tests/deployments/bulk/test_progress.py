import json

from deployments.bulk.progress import JobProgress, duration

FIGURES = {"rows": 100, "taken": 5, "tokens": 1000, "images": 10, "errors": 1} | dict.fromkeys(
    ("read_s", "prepare_s", "text_s", "vision_s", "write_s"), 0.5
)


def test_the_time_left_follows_the_pace_after_the_first_block() -> None:
    """Starting the actors does not count, resumed rows are not done again."""
    now = [0.0]
    progress = JobProgress("out", 1000, 10, 3, 300, 2, clock=lambda: now[0])
    assert progress.left_s() is None
    now[0] = 50.0
    progress.add(FIGURES)
    assert progress.left_s() is None
    now[0] = 60.0
    progress.add(FIGURES)
    assert progress.left_s() == 500 * 10 / 100
    assert progress.line() == (
        "500 of 1,000 rows, 3 rows/s, 33 tokens/s, 0.3 images/s, 4 errors, 50 s left"
    )


def test_the_summary_adds_up_this_run_and_the_whole() -> None:
    """Rates are of this run, errors of the whole output."""
    now = [0.0]
    progress = JobProgress("out", 300, 3, 1, 100, 2, {"a": "broken"}, clock=lambda: now[0])
    progress.add(FIGURES)
    progress.add(FIGURES)
    now[0] = 4.0
    found = progress.summary()
    assert (found["rows"], found["total_rows"], found["total_errors"]) == (200, 300, 4)
    assert (found["total_blocks"], found["resumed_blocks"], found["taken_rows"]) == (3, 1, 10)
    assert (found["rows_per_s"], found["tokens_per_s"], found["images_per_s"]) == (50, 500, 5)
    assert (found["seconds"], found["first_block_rows"]) == (4, 100)
    assert found["lost"] == {"a": "broken"}
    assert found["stage_s"] == dict.fromkeys(("read", "prepare", "text", "vision", "write"), 1.0)
    json.dumps(found)


def test_durations_are_short() -> None:
    """Seconds alone below a minute."""
    assert [duration(x) for x in (3.4, 61, 3723)] == ["3 s", "1:01", "1:02:03"]
