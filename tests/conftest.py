"""Factories that every test may use: checkpoints in the published layout, the golden vectors."""

import atexit
import copy
import gc
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.model.weights.source import DEMO

# Before torch is imported, here and in what the tests start. Its threads wait for each other in a
# loop otherwise; on a busy machine a model's tests then took five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The fields of the published config.json; every text size is left to jina-embeddings-v3.
PUBLISHED_CONFIG: dict[str, Any] = {
    "model_type": "jina_clip",
    "add_projections": False,
    "projection_dim": 1024,
    "logit_scale_init_value": 2.6592,
    "matryoshka_dimensions": [32, 64, 128, 256, 512, 768, 1024],
    "truncate_dim": None,
    "torch_dtype": "bfloat16",
    "text_config": {
        "embed_dim": 1024,
        "hf_model_name_or_path": "jinaai/jina-embeddings-v3",
        "pooler_type": "mean_pooler",
        "proj_type": None,
        "proj_bias": False,
        "default_instruction_task": None,
        "default_lora_task": "retrieval.query",
        "hf_model_config_kwargs": {
            "lora_adaptations": ["retrieval.query"],
            "lora_rank": 4,
            "lora_alpha": 4,
            "lora_dropout_p": 0.0,
            "load_trained_adapters": False,
            "task_instructions": {
                "retrieval.query": "Represent the query for retrieving evidence documents: "
            },
            "use_flash_attn": True,
        },
    },
    "vision_config": {
        "embed_dim": 1024,
        "width": 1024,
        "image_size": 512,
        "patch_size": 14,
        "layers": 24,
        "head_width": 64,
        "mlp_ratio": 2.6667,
        "ls_init_value": None,
        "patch_dropout": 0.1,
        "qkv_bias": True,
        "fused_layer_norm": False,
        "x_attention": True,
        "post_norm": False,
        "rope_embeddings": True,
        "pt_hw_seq_len": 16,
        "intp_freq": True,
        "naive_swiglu": True,
        "subln": True,
        "proj_type": None,
    },
}
PUBLISHED_PREPROCESSOR: dict[str, Any] = {
    "size": 512,
    "resize_mode": "shortest",
    "interpolation": "bicubic",
    "fill_color": 0,
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
# No two sizes are equal and few are powers of two, so that mixing them up breaks a shape.
REDUCED_TEXT = {
    "vocab_size": 14503,
    "hidden_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 150,
    "lora_rank": 3,
    "lora_alpha": 2,
}
REDUCED_VISION = {
    "embed_dim": 88,
    "width": 88,
    "image_size": 75,
    "layers": 2,
    "head_width": 44,
    "mlp_ratio": 2.65,
    "pt_hw_seq_len": 3,
}

WriteCheckpoint = Callable[[Path], Path]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """See to it that the exit code is that of the tests."""
    atexit.register(leave, session)


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections, which took half a second each."""
    gc.collect()
    gc.freeze()


def leave(session: pytest.Session) -> None:
    """End the process with the run's exit code, and skip the interpreter's own end.

    Threads in native code outlive the tests, those of gRPC and of Ray Serve's handles among them,
    and no public call stops them. While the interpreter and the libraries' global objects are
    destroyed they may crash a process whose tests have all passed. What was registered to run at
    exit since the session began has run by now: Arrow's S3, Ray, torch, pytest's folders.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(session.exitstatus)


@dataclass(frozen=True)
class Golden:
    """The third-party vectors of the shipped checkpoint (its README says how they were made)."""

    texts: list[dict[str, Any]]
    images: list[dict[str, Any]]
    negative_controls: dict[str, Any]
    arrays: dict[str, Any]

    def image_bytes(self) -> list[bytes]:
        """Return the encoded pictures, in order."""
        return [(DEMO / image["file"]).read_bytes() for image in self.images]


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The golden texts and pictures with their ids, crops and vectors."""
    facts = json.loads((DEMO / "golden.json").read_text(encoding="utf-8"))
    with np.load(DEMO / "golden.npz") as arrays:
        kept = dict(arrays)
    return Golden(facts["texts"], facts["images"], facts["negative_controls"], kept)


@pytest.fixture
def published_config() -> dict[str, Any]:
    """The published config.json, free to change."""
    return copy.deepcopy(PUBLISHED_CONFIG)


def write_configs(folder: Path, config: dict[str, Any]) -> None:
    """Write both configuration files, the pixel size agreeing with the vision tower's."""
    pixels = PUBLISHED_PREPROCESSOR | {"size": config["vision_config"]["image_size"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


@pytest.fixture(scope="session")
def write_checkpoint() -> WriteCheckpoint:
    """A function that writes a random checkpoint of reduced size in the published layout."""

    def write(folder: Path) -> Path:
        import torch
        from safetensors.torch import save_file

        from deployments.model.architecture import Architecture
        from deployments.model.weights.checkpoint import expected_shapes

        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(PUBLISHED_CONFIG)
        config["text_config"]["hf_model_config_kwargs"] |= REDUCED_TEXT
        config["vision_config"] |= REDUCED_VISION
        write_configs(folder, config)
        shutil.copy(DEMO / "tokenizer.json", folder)
        generator = torch.Generator().manual_seed(7)
        tensors = {
            name: random_tensor(name, shape, generator).to(torch.float16)
            for name, shape in expected_shapes(Architecture.read(folder)).items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write


# Any: torch is imported only by the tests that need it.
def random_tensor(name: str, shape: tuple[int, ...], generator: Any) -> Any:
    """Return values under which every trait of the model shows in its vectors.

    Layer norms lie around 1 and biases around 0; matrices keep the variance of their input, and an
    adapter's product is as large as the matrix that it is added to.
    """
    import torch

    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * noise + float(name.endswith(".weight"))
    fan_in = noise[0].numel() if len(shape) == 4 else shape[-1] if shape else 1
    return noise / fan_in**0.5


@pytest.fixture(scope="session")
def reduced_folder(write_checkpoint: WriteCheckpoint, tmp_path_factory: Any) -> Path:
    """A random checkpoint of reduced size; do not change its files."""
    return write_checkpoint(tmp_path_factory.mktemp("reduced"))


@pytest.fixture(scope="session")
def reduced(reduced_folder: Path) -> Any:
    """The native model of the reduced checkpoint."""
    from deployments.model import ClipModel

    return ClipModel.load(reduced_folder)


@pytest.fixture(scope="session")
def demo() -> Any:
    """The native model of the shipped checkpoint."""
    from deployments.model import ClipModel

    return ClipModel.load("demo")
