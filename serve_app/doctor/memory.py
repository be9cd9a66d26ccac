"""Findings about memory: what the towers need against what there is."""

import os
from pathlib import Path
from typing import Literal

from deployments.config import AppConfig
from serve_app.doctor.finding import Finding, fails, ok, warning

GIB = 2**30


def memory(config: AppConfig, folder: Path) -> Finding:
    """Compare an estimate of what the towers need with the memory of the GPUs, or of the machine.

    The estimate counts the first replicas: weights, a full batch, and for the self-check
    one tower in float32. On a GPU, warm-up runs a full batch and so tells for certain.
    """
    from deployments.model.architecture import Architecture
    from deployments.model.runtime import hardware
    from deployments.model.weights import loading

    place = loading.place(config.model.device, config.model.dtype)
    dtype = str(place.dtype).removeprefix("torch.")
    arch = Architecture.read(folder)

    def need(tower: Literal["text", "vision"], budget: int) -> int:
        weights = hardware.weight_bytes(arch, tower, place)
        exact = loading.place(config.model.device, "float32")
        once = 0 if dtype == "float32" else hardware.weight_bytes(arch, tower, exact)
        return weights + max(hardware.batch_bytes(arch, tower, dtype, budget), once)

    text, vision = config.text, config.vision
    needs = {"text": need("text", text.max_batch_tokens) if text.enabled else 0}
    needs["vision"] = need("vision", vision.max_batch_images) if vision.enabled else 0
    if place.device.type == "cuda":
        gpu = min(hardware.gpus(), key=lambda gpu: gpu.total_bytes)
        shared = text.num_gpus + vision.num_gpus <= 1
        needed = sum(needs.values()) if shared else max(needs.values())
        return judge(f"{gpu.name}", needed, gpu.free_bytes, gpu.total_bytes, needs)
    pages = {name: os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")}
    free, total = (count * os.sysconf("SC_PAGE_SIZE") for count in pages.values())
    return judge("this machine", sum(needs.values()), free, total, needs)


def judge(
    where: str, needed_bytes: int, free_bytes: int, total_bytes: int, parts: dict[str, int]
) -> Finding:
    """Say whether what is needed fits."""
    split = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size)
    found = (
        f"about {needed_bytes / GIB:.1f} GiB needed ({split}); {where} has "
        f"{free_bytes / GIB:.1f} GiB free of {total_bytes / GIB:.1f}"
    )
    advice = "lower text.max_batch_tokens and vision.max_batch_images, or give each tower a GPU"
    if needed_bytes > total_bytes:
        return fails("memory", found, advice)
    if needed_bytes > free_bytes:
        return warning("memory", found, "stop what else uses the memory; else " + advice)
    return ok("memory", found)
