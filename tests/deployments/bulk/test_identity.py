"""What has to stay the same for a job to go on: all that changes its vectors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deployments.bulk.identity import Identity
from deployments.bulk.options import EmbedOptions
from deployments.bulk.reading.blocks import Plan
from deployments.bulk.reading.tables import Layout
from deployments.model.errors import OptionError
from deployments.model.towers.linear import int8_fault

PLAN = Plan((), {}, "123", {})
LAYOUT = Layout("text", "image", (), {})


def identity(options: EmbedOptions, images: dict[str, Any] | None = None, **model: Any) -> Identity:
    app = options.app.model_copy(update={"model": options.app.model.model_copy(update=model)})
    seen = options.images.model_copy(update=images or {})
    return Identity.of(options.model_copy(update={"app": app, "images": seen}), LAYOUT, PLAN)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"image_decode": "draft"}, "image_decode"),
        ({"images": {"exif": True}}, "image_decode"),
        ({"images": {"background": "white"}}, "image_decode"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"device": "cuda"}, "device"),
        ({"implementation": "reference"}, "implementation"),
    ],
)
def test_what_changes_the_vectors_ends_the_job(
    make_options: Callable[..., EmbedOptions], changed: dict[str, Any], field: str
) -> None:
    """The message names it."""
    options = make_options(text="text", image="image")
    before = Identity.from_json(identity(options).to_json())
    identity(options).check_same(before)
    with pytest.raises(OptionError, match=f"{field} was"):
        identity(options, **changed).check_same(before)


@pytest.mark.skipif(bool(int8_fault(torch.device("cpu"))), reason="no int8 on this CPU")
def test_int8_is_another_job_than_the_half_precision_around_it(
    make_options: Callable[..., EmbedOptions],
) -> None:
    """Its towers are in bfloat16 but for their linear layers."""
    options = make_options(text="text", image="image")
    with pytest.raises(OptionError, match=r"dtype was .*bfloat16.*now .*int8"):
        identity(options, dtype="int8").check_same(identity(options, dtype="bfloat16"))


def test_auto_stands_for_what_it_becomes(
    make_options: Callable[..., EmbedOptions], gpu: Any
) -> None:
    """On a GPU `auto` is another job than on a CPU; by name it is the same one."""
    options = make_options(text="text", image="image")
    on_cpu = identity(options, device="cpu")
    assert identity(options, device="cpu", dtype="float32", image_decode="exact") == on_cpu
    on_gpu = identity(options, device="auto")
    with pytest.raises(OptionError, match=r"device was .*cpu.*now .*cuda.*dtype was .*float32"):
        on_gpu.check_same(on_cpu)
    assert identity(options, device="cuda", dtype="bfloat16") == on_gpu
