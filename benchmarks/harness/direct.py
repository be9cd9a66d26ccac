"""The towers called directly with full batches: no HTTP and no Ray.

    python -m benchmarks.harness.direct --mix "32 texts" [--device cuda --source FOLDER]

Prints items per second. Texts are tokenised before. Images are decoded in the measured time on a
CPU, whose cores decode for the service too, and before it for a GPU.
"""

import argparse
import base64
import json
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.harness.mixes import calls
from deployments.model import ClipModel
from deployments.model.clip import MAX_BATCH_IMAGES, MAX_BATCH_TOKENS, TowerName
from deployments.model.pictures.image import Pixels
from deployments.model.tokenizer import TokenIds

ENOUGH = {"texts": 1920, "images": 320}
FEW = {"texts": 16, "images": 4}  # the published size takes seconds for each on a CPU
Run = Callable[[], object]


def items(mix: str, enough: dict[str, int]) -> tuple[list[str], list[bytes]]:
    """Return the texts and the images of as many requests as give enough of either."""
    texts: list[str] = []
    images: list[bytes] = []
    for call in calls(mix):
        for item in json.loads(call.body)["input"]:
            if "text" in item:
                texts.append(item["text"])
            else:
                images.append(base64.b64decode(item["image"]))
        if len(texts) >= enough["texts"] or len(images) >= enough["images"]:
            break
    return texts, images


def text_batches(token_ids: Sequence[TokenIds]) -> list[list[TokenIds]]:
    """Cut texts into batches of the most tokens that the towers take at once, in their order."""
    batches: list[list[TokenIds]] = [[]]
    tokens = 0
    for ids in token_ids:
        if batches[-1] and tokens + len(ids) > MAX_BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(ids)
        tokens += len(ids)
    return batches


def text_runs(model: ClipModel, token_ids: Sequence[TokenIds]) -> list[Run]:
    """Return a call for each batch of texts."""
    return [partial(model.embed_tokens, batch) for batch in text_batches(token_ids)]


def pixel_runs(model: ClipModel, pixels: Pixels) -> list[Run]:
    """Return a call for each batch of decoded images."""
    starts = range(0, len(pixels), MAX_BATCH_IMAGES)
    return [partial(model.embed_pixels, pixels[x : x + MAX_BATCH_IMAGES]) for x in starts]


def image_runs(model: ClipModel, images: Sequence[bytes]) -> list[Run]:
    """Return calls that embed encoded images."""
    if model.choices["device"] == "cpu":
        return [partial(model.encode_image, images, normalized=False, batch_size=MAX_BATCH_IMAGES)]
    parts = [images[x : x + MAX_BATCH_IMAGES] for x in range(0, len(images), MAX_BATCH_IMAGES)]
    return [partial(model.embed_pixels, model.decode_images(part).pixels) for part in parts]


def rate(mix: str, seconds: float, device: str, source: str) -> float:
    """Return the items per second of a mix."""
    slow = device == "cpu" and source != "demo"
    texts, images = items(mix, FEW if slow else ENOUGH)
    wanted: tuple[tuple[TowerName, object], ...] = ("text", texts), ("vision", images)
    towers = [name for name, work in wanted if work]
    model = ClipModel.load(source, device=device, dtype="auto", towers=towers)
    model.warm_up()
    runs = text_runs(model, model.tokenizer.encode(texts)) if texts else []
    runs += image_runs(model, images) if images else []
    for run in runs:
        run()
    begin_s, rounds = time.perf_counter(), 0
    while time.perf_counter() < begin_s + seconds:
        for run in runs:
            run()
        rounds += 1
    return rounds * (len(texts) + len(images)) / (time.perf_counter() - begin_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", required=True)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--source", default="demo")
    options = parser.parse_args(arguments)
    print(rate(options.mix, options.seconds, options.device, options.source))


if __name__ == "__main__":
    main()
