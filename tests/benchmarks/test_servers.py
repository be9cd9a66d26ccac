"""The servers that are compared, and the direct calls that they are compared with."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import direct, servers
from benchmarks.harness.mixes import calls
from deployments.model import ClipModel
from serve_app.server import needed_gpus


def test_on_a_gpu_both_towers_share_one_and_serve_the_given_weights(tmp_path: Path) -> None:
    setup = servers.Setup.on("cuda", str(tmp_path))
    assert needed_gpus(setup.config) == 1
    assert setup.config.model.source == str(tmp_path)
    assert setup.config.router.num_replicas >= 2
    assert setup.options == ["--device", "cuda", "--source", str(tmp_path)]


def test_on_a_cpu_no_gpu_is_asked_for() -> None:
    setup = servers.Setup.on("cpu")
    assert needed_gpus(setup.config) == needed_gpus(setup.texts) == 0
    assert setup.options == ["--device", "cpu", "--source", "demo"]


@pytest.mark.parametrize("mix", ["query", "32 texts", "8 images", "16 texts + 4 images"])
def test_the_direct_call_embeds_what_the_service_is_sent(mix: str) -> None:
    texts, images = direct.items(mix, direct.FEW)
    requests = (json.loads(call.body)["input"] for call in calls(mix))
    sent = list(itertools.islice(itertools.chain.from_iterable(requests), len(texts + images)))
    assert texts == [item["text"] for item in sent if "text" in item]
    assert len(images) == sum("image" in item for item in sent)
    assert len(texts) >= direct.FEW["texts"] or len(images) >= direct.FEW["images"]


class OnGpu:
    """The shipped towers, which say that they run on a GPU."""

    def __init__(self, model: ClipModel) -> None:
        self.choices = model.choices | {"device": "cuda:0"}
        self.decode_images = model.decode_images
        self.embed_pixels = model.embed_pixels


def test_a_gpus_direct_call_decodes_before_and_gives_the_same_rows(
    demo: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = direct.items("8 images", direct.FEW)[1]
    monkeypatch.setattr(direct, "MAX_BATCH_IMAGES", 3)
    runs: list[Callable[[], Any]] = direct.image_runs(OnGpu(demo), images)  # type: ignore[arg-type]
    rows = [run() for run in runs]
    assert [len(part) for part in rows] == [3, 3, 2]
    expected = demo.encode_image(images, normalized=False)
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-5)


def test_texts_are_cut_into_full_batches_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is longer than a batch goes alone."""
    monkeypatch.setattr(direct, "MAX_BATCH_TOKENS", 10)
    texts = [np.full(length, index, np.int32) for index, length in enumerate((4, 6, 1, 12, 3))]
    batches = direct.text_batches(texts)
    assert [[len(ids) for ids in batch] for batch in batches] == [[4, 6], [1], [12], [3]]
    assert [ids[0] for batch in batches for ids in batch] == [0, 1, 2, 3, 4]


def test_a_server_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.Setup, "options", ["--source", "/nowhere"])
    setup = servers.Setup.on("cpu")
    with pytest.raises(RuntimeError, match="nothing answers"), servers.baseline_server(setup):
        pass
