"""How large blocks are, and how many are under way, where nobody says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.bulk import prepare
from deployments.bulk.options import EmbedOptions
from deployments.config import AppConfig


def test_blocks_are_larger_where_texts_alone_go_to_gpus(
    tmp_path: Path, make_options: Callable[..., EmbedOptions], bulk_app: AppConfig, inputs: Any
) -> None:
    gpu = bulk_app.text.model_copy(update={"num_gpus": 1})
    app = bulk_app.model_copy(update={"text": gpu})
    source = inputs.jsonl(tmp_path / "in.jsonl", [{"text": "a", "image": None}] * 5000)

    def chosen(**options: Any) -> tuple[int, int]:
        job = prepare(str(source), str(tmp_path / "out"), make_options(**options))
        return max(block.num_rows for block in job.plan.blocks), job.max_blocks_under_way

    assert chosen(text="text", app=app) == (4096, 1 + 8 + 1)
    assert chosen(text="text") == (512, 1 + 2 + 1)
    assert chosen(app=app) == (512, 2 + 2 * 2 + 1)  # it has images too
