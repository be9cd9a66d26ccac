"""The towers called directly with full batches, in a process of their own: no HTTP and no Ray.

    python -m benchmarks.harness.direct --mix "32 texts" [--device cuda --source FOLDER]

Prints items per second. Texts are tokenised before. Pictures are decoded in the measured time on a
CPU, whose cores decode for the service too, and before it for a GPU.
"""

import argparse
import base64
import json
import time
from collections.abc import Callable, Sequence

from benchmarks.harness.load import calls
from deployments.model import ClipModel
from deployments.model.clip import MAX_BATCH_IMAGES, MAX_BATCH_TOKENS, TowerName
from deployments.routing.dispatch import cut

ENOUGH = {"texts": 1920, "images": 320}
FEW = {"texts": 16, "images": 4}  # the published size takes seconds for each on a CPU


def items(mix: str, enough: dict[str, int]) -> tuple[list[str], list[bytes]]:
    """Return the texts and the pictures of as many requests as give enough of either."""
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


def texts_run(model: ClipModel, texts: Sequence[str]) -> Callable[[], object]:
    """Return what embeds the texts once."""
    token_ids = model.tokenizer.encode(texts)
    parts = cut([len(ids) for ids in token_ids], MAX_BATCH_TOKENS)
    batches = [token_ids[part] for part in parts]
    return lambda: [model.embed_tokens(batch) for batch in batches]


def images_run(model: ClipModel, images: Sequence[bytes]) -> Callable[[], object]:
    """Return what embeds the pictures once."""
    if model.choices["device"] == "cpu":
        return lambda: model.encode_image(images, normalized=False, batch_size=MAX_BATCH_IMAGES)
    parts = [slice(x, x + MAX_BATCH_IMAGES) for x in range(0, len(images), MAX_BATCH_IMAGES)]
    batches = [model.decode_images(images[part]).pixels for part in parts]
    return lambda: [model.embed_pixels(batch) for batch in batches]


def rate(mix: str, seconds: float, device: str, source: str) -> float:
    """Return the items per second of a mix."""
    slow = device == "cpu" and source != "demo"
    texts, images = items(mix, FEW if slow else ENOUGH)
    wanted: tuple[tuple[TowerName, object], ...] = ("text", texts), ("vision", images)
    towers = [name for name, work in wanted if work]
    model = ClipModel.load(source, device=device, dtype="auto", towers=towers)
    model.warm_up()
    runs = [texts_run(model, texts)] if texts else []
    runs += [images_run(model, images)] if images else []
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
