"""Starts a tower: loads it, warms it up, and checks its rows before it serves."""

import gc
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.config import AppConfig
from deployments.engine import self_check
from deployments.engine.inputs import Inputs, TowerName
from deployments.engine.self_check import Batches, SelfCheck
from deployments.model.output import Rows
from deployments.model.weights.source import DEMO

if TYPE_CHECKING:
    from deployments.model import ClipModel

PLAIN = {"dtype": "float32", "compile": "off", "attention": "sdpa"}


def start(config: AppConfig, inputs: Inputs[Any, Any]) -> "tuple[ClipModel, SelfCheck]":
    """Return a tower that is warm and right; call it on the device's thread.

    Raises:
        RuntimeError: the tower does not give the rows that it has to.
    """
    text, vision = config.text, config.vision
    model = load(config, inputs.tower)
    batches, embed = inputs.pinned(model), partial(embed_with, inputs, model)
    expected = plain_rows(config, inputs, model, batches)
    gc.collect()  # the plain model, before warm-up measures what memory is free
    model.warm_up(text.max_batch_tokens, text.max_batch_sequences, vision.max_batch_images)
    rows = self_check.embed_all(embed, batches)
    wanted = rows if expected is None else expected

    def cosine(batches: Batches = batches, wanted: Rows = wanted) -> float:
        return self_check.lowest_cosine(self_check.embed_all(embed, batches), wanted)

    cosines = [self_check.lowest_cosine(rows, wanted)]
    if config.model.source == "demo":
        cosines.append(cosine(*self_check.shipped_rows(DEMO, inputs.tower)))
    check = SelfCheck(cosine, config.model.self_check_period_s)
    check.accept(float(np.min(cosines)))  # NaN if one is
    return model, check


def embed_with(inputs: Inputs[Any, Any], model: "ClipModel", items: Sequence[Any]) -> Rows:
    """Embed one batch of prepared items."""
    return inputs.launch(model, items).rows()


def plain_rows(
    config: AppConfig, inputs: Inputs[Any, Any], model: "ClipModel", batches: Batches
) -> Rows | None:
    """Embed with the tower as simple as it comes; None where it runs like that anyway."""
    choices = model.choices | {"attention": model.choices[f"{inputs.tower}_attention"]}
    if all(choices[name] == value for name, value in PLAIN.items()):
        return None
    plain = load(config, inputs.tower, **PLAIN)
    return self_check.embed_all(partial(embed_with, inputs, plain), batches)


def load(config: AppConfig, tower: TowerName, **changes: str) -> "ClipModel":
    """Load a tower as configured, but for some options."""
    from deployments.model import ClipModel

    model = config.model
    options = {"dtype": model.dtype, "attention": model.attention, "compile": model.compile}
    return ClipModel.load(
        model.source,
        model.revision,
        model.device,
        implementation=model.implementation,
        towers=(tower,),
        image_decode=model.image_decode,
        **(options | changes),
    )
