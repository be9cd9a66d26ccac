"""The reference towers as files for ONNX Runtime and OpenVINO, in float32 and int8."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import workloads
from deployments.model import reference
from deployments.model.architecture import Architecture
from deployments.model.output import Rows
from deployments.model.weights.checkpoint import Checkpoint

ENGINES = {
    "onnxruntime float32": "float32.onnx",
    "onnxruntime int8": "int8.onnx",
    "openvino int8": "int8.xml",
}
LIBRARIES = {"onnxruntime": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("nncf", "openvino")}
CALIBRATION_TEXTS, CALIBRATION_TOKENS, CALIBRATION_IMAGES = 8, 64, 2
OPSET = 20
Forward = Callable[[NDArray[Any]], Rows]


def missing(engine: str) -> str:
    """Return which libraries of an engine are not installed, or nothing."""
    wanted = LIBRARIES.get(engine.split()[0], ())
    return ", ".join(name for name in wanted if find_spec(name) is None)


def batch(arch: Architecture, tower: str, count: int, tokens: int) -> NDArray[Any]:
    """Return token ids, int64 [count, tokens], or float32 [count, 3, size, size]."""
    if tower == "text":
        texts = workloads.equal_texts(arch.text, tokens, count)
        return reference.padded(texts, arch.text).numpy()
    return reference.standardised(workloads.pixels(arch.vision, count), arch.vision).numpy()


def write(engine: str, source: str, tower: str, folder: Path) -> None:
    """Write an engine's file; those in int8 are made from the float32 one."""
    if engine == "onnxruntime float32":
        _export(source, tower, folder / ENGINES[engine])
    elif engine == "onnxruntime int8":
        _quantise_onnx(folder / ENGINES["onnxruntime float32"], folder / ENGINES[engine])
    else:
        calibration = _calibration(Checkpoint.open(source).architecture, tower)
        _quantise_openvino(
            folder / ENGINES["onnxruntime float32"], folder / ENGINES[engine], calibration
        )


def _export(source: str, tower: str, path: Path) -> None:
    checkpoint = Checkpoint.open(source)
    build = reference.text_module if tower == "text" else reference.vision_module
    module = build(checkpoint, torch.device("cpu"), torch.float32)
    example = torch.from_numpy(batch(checkpoint.architecture, tower, 2, 16))
    sizes = {0: torch.export.Dim("n")} | ({1: torch.export.Dim("s")} if tower == "text" else {})
    torch.onnx.export(
        module,
        (example,),
        str(path),
        input_names=["inputs"],
        output_names=["rows"],
        dynamic_shapes=(sizes,),
        opset_version=OPSET,
        external_data=True,  # beyond the 2 GB of one protocol buffer
        dynamo=True,
        verbose=False,
    )


def _quantise_onnx(exact: Path, path: Path) -> None:
    """Quantise as ONNX Runtime's documentation says for transformers: dynamically, on a CPU."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(exact),
        str(path),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )


def _quantise_openvino(exact: Path, path: Path, calibration: list[NDArray[Any]]) -> None:
    """Quantise weights and activations as OpenVINO's documentation says for transformers."""
    import nncf
    import openvino

    model = openvino.Core().read_model(str(exact))
    quantised = nncf.quantize(
        model, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER
    )
    openvino.save_model(quantised, str(path), compress_to_fp16=False)


def _calibration(arch: Architecture, tower: str) -> list[NDArray[Any]]:
    count = CALIBRATION_TEXTS if tower == "text" else CALIBRATION_IMAGES
    return np.split(batch(arch, tower, count, CALIBRATION_TOKENS), count)


def load(engine: str, folder: Path, threads: int) -> Forward:
    """Return a file's engine as a function from a batch to un-normalised rows."""
    path = str(folder / ENGINES[engine])
    return _load_onnx(path, threads) if "onnx" in engine else _load_openvino(path, threads)


def _load_onnx(path: str, threads: int) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)

    def forward(inputs: NDArray[Any]) -> Rows:
        rows: Rows = session.run(None, {"inputs": inputs})[0]
        return rows

    return forward


def _load_openvino(path: str, threads: int) -> Forward:
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(path, "CPU", hints)

    def forward(inputs: NDArray[Any]) -> Rows:
        rows: Rows = compiled(inputs)[0]
        return rows

    return forward


def quiet() -> None:
    """Keep OpenVINO from reporting its use over the network; it looks for this variable."""
    os.environ["CI"] = "true"
