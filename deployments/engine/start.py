"""Starts a tower: loads it, warms it up, and checks its rows before it serves."""

import gc
import logging
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

logger = logging.getLogger("ray.serve")

PLAIN = {"dtype": "float32", "compile": "off", "attention": "sdpa"}


def start(config: AppConfig, inputs: Inputs[Any, Any]) -> "tuple[ClipModel, SelfCheck]":
    """Return a tower that is warm and right; call it on the device's thread.

    Where the rows differ too much from those of float32, the tower is run in plainer ways before
    it is given up.

    Raises:
        RuntimeError: it does not give the rows that it has to, in any way.
    """
    changes: dict[str, str] = {}
    while True:
        model = load(config, inputs.tower, **changes)
        plainer = next_way(model, inputs.tower)
        batches = inputs.pinned(model)
        rows, cosine = warm_and_compare(config, inputs, model, batches)
        if plainer is None or self_check.passes(cosine):
            break
        logger.warning("self-check: cosine %.6f with %s; trying %s", cosine, model.choices, plainer)
        changes = plainer
        del model  # before another is loaded
        gc.collect()

    def drift() -> float:
        again = self_check.embed_all(partial(embed_with, inputs, model), batches)
        return self_check.lowest_cosine(again, rows)

    check = SelfCheck(drift, config.model.self_check_period_s)
    is_int8 = model.choices["dtype"] == "int8"
    check.accept(cosine, self_check.USUAL_INT8 if is_int8 else self_check.USUAL)
    return model, check


def next_way(model: "ClipModel", tower: TowerName) -> dict[str, str] | None:
    """Return options that run a tower in a plainer way; None where there is no plainer one."""
    if model.choices["compile"] == "on":
        return {"compile": "off"}
    if model.choices[f"{tower}_attention"] != "sdpa":
        return {"compile": "off", "attention": "sdpa"}
    return None if model.choices["dtype"] == "float32" else PLAIN


def warm_and_compare(
    config: AppConfig, inputs: Inputs[Any, Any], model: "ClipModel", batches: Batches
) -> tuple[Rows, float]:
    """Warm a tower up; return its rows for the pinned inputs, and their lowest cosine.

    They are compared with float32, and the shipped checkpoint's own inputs with the rows that it
    came with.
    """
    text, vision = config.text, config.vision
    embed = partial(embed_with, inputs, model)
    expected = plain_rows(config, inputs, model, batches)
    gc.collect()  # the plain model, before warm-up measures what memory is free
    model.warm_up(text.max_batch_tokens, text.max_batch_sequences, vision.max_batch_images)
    rows = self_check.embed_all(embed, batches)
    cosines = [self_check.lowest_cosine(rows, rows if expected is None else expected)]
    if config.model.source == "demo":
        shipped, known = self_check.shipped_rows(DEMO, inputs.tower)
        cosines.append(self_check.lowest_cosine(self_check.embed_all(embed, shipped), known))
    return rows, float(np.min(cosines))  # NaN if one is


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
        seeing=config.images.seeing,
        **(options | changes),
    )
