from deployments.bulk.progress import JobProgress, duration

FIGURES = {"rows": 100, "taken": 5, "tokens": 1000, "images": 10, "errors": 1} | dict.fromkeys(
    ("read_s", "prepare_s", "text_s", "vision_s", "write_s"), 0.5
)


def test_the_time_left_follows_the_pace_after_the_first_block() -> None:
    """Starting the actors does not count, resumed rows are not done again."""
    now = [0.0]
    progress = JobProgress(1000, 300, errors=2, clock=lambda: now[0])
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
    progress = JobProgress(300, 100, errors=2, clock=lambda: now[0])
    progress.add(FIGURES)
    progress.add(FIGURES)
    now[0] = 4.0
    summary = progress.summary("out", blocks=3, resumed_blocks=1, lost={"a": "broken"})
    assert (summary.rows, summary.total_rows, summary.total_errors) == (200, 300, 4)
    assert summary.taken_rows == 10
    assert (summary.rows_per_s, summary.tokens_per_s, summary.images_per_s) == (50, 500, 5)
    assert summary.lost == {"a": "broken"}
    assert summary.stage_s == dict.fromkeys(("read", "prepare", "text", "vision", "write"), 1.0)


def test_durations_are_short() -> None:
    """Seconds alone below a minute."""
    assert [duration(x) for x in (3.4, 61, 3723)] == ["3 s", "1:01", "1:02:03"]
