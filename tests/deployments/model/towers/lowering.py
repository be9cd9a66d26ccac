"""What the compiler makes of a tower's blocks for a card that is not here.

    python -m tests.deployments.model.towers.lowering CARD text|vision [BATCH]

Dynamo and Inductor run on fake tensors, Triton and its ptxas for the card's architecture. Prints
JSON: the kernels by name with registers and bytes spilled of each configuration, and the calls of
matrix products. A process of its own: torch is told about the card for good.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ |= {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

import numpy as np
import torch
import triton
from torch import nn
from torch._dynamo import device_interface
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from deployments.model.architecture import TextArchitecture, VisionArchitecture
from deployments.model.towers import attention
from deployments.model.towers.packing import pack
from deployments.model.towers.text import TextEncoder
from deployments.model.towers.vision import CUDA_MLP_MULTIPLE, VisionEncoder

GPU = torch.device("cuda:0")
# Compute capability, multiprocessors, bytes of memory and of shared memory, precision.
CARDS = {
    "H100": (9, 0, 132, 80 << 30, 232448, torch.bfloat16),
    "A100": (8, 0, 108, 80 << 30, 166912, torch.bfloat16),
    "L4": (8, 9, 58, 24 << 30, 101376, torch.bfloat16),
    "T4": (7, 5, 40, 16 << 30, 65536, torch.float16),
}
USAGE = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Lowered(Exception):
    """Ends a compilation."""


def pretend(card: str) -> None:
    """Tell torch and Triton of one card of this kind."""
    from torch._inductor.runtime import triton_helpers, triton_heuristics

    major, minor, processors, total, shared, _ = CARDS[card]
    facts = SimpleNamespace(
        name=card,
        major=major,
        minor=minor,
        multi_processor_count=processors,
        total_memory=total,
        warp_size=32,
        max_threads_per_multi_processor=1024 if major == 7 else 2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=shared,
        shared_memory_per_multiprocessor=shared,
        L2_cache_size=50 << 20,
        gcnArchName="",
        is_integrated=False,
        clock_rate=1_700_000,
        memory_clock_rate=2_600_000,
        memory_bus_width=5120,
    )

    def has_bfloat16(including_emulation: bool = True) -> bool:
        return major >= 8 or including_emulation

    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda _=None: facts,
        "get_device_capability": lambda _=None: (major, minor),
        "get_device_name": lambda _=None: card,
        "mem_get_info": lambda _=None: (total, total),
        "is_bf16_supported": has_bfloat16,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
        "get_rng_state": lambda _=None: torch.zeros(16, dtype=torch.uint8, device="cpu"),
        "set_rng_state": lambda *_: None,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda _=None: None,
        "empty_cache": lambda: None,
    }
    interface: dict[str, Any] = {
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "device_count": lambda: 1,
        "get_device_properties": lambda _=None: facts,
        "is_bf16_supported": has_bfloat16,
        "get_raw_stream": lambda _=0: 0,
        "synchronize": lambda _=None: None,
        "exchange_device": lambda _: 0,
        "maybe_exchange_device": lambda _: 0,
        "memory_allocated": lambda _=None: 0,
    }
    for name, value in cuda.items():
        setattr(torch.cuda, name, value)
    for name, value in interface.items():
        setattr(device_interface.CudaInterface, name, staticmethod(value))
    device_interface.CudaInterface.device = contextmanager(lambda *_: iter([None]))
    device_interface.caching_worker_device_properties["cuda"] = [facts]
    device_interface.caching_worker_current_devices["cuda"] = 0
    torch.cuda.graphs.is_current_stream_capturing = cuda["is_current_stream_capturing"]
    for name in ("_cuda_getDevice", "_cuda_exchangeDevice", "_cuda_maybeExchangeDevice"):
        setattr(torch._C, name, lambda *_: 0)
    properties = {
        "max_shared_mem": shared,
        "multiprocessor_count": processors,
        "max_num_regs": 65536,
        "warpSize": 32,
    }
    pretended = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", major * 10 + minor, 32),
        get_active_torch_device=lambda: GPU,
        get_current_device=lambda: 0,
        get_current_stream=lambda _=0: 0,
        get_device_interface=lambda: torch.cuda,
        map_python_to_cpp_type=lambda kind: kind,
        utils=SimpleNamespace(get_device_properties=lambda _: properties),
    )
    driver.set_active(pretended)
    triton_helpers.set_driver_to_gpu = lambda *_, **__: driver.set_active(pretended)
    static = triton_heuristics.StaticTritonCompileResult
    static.can_statically_launch = staticmethod(lambda *_, **__: None)


def on_gpu(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Build a tower as it is loaded on a GPU."""
    with GPU:
        tower = build()
    for module in tower.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                half = nn.Parameter(parameter.to(dtype), requires_grad=False)
                module._parameters[name] = half
    return tower.eval()


def sources(card: str, tower: str, batch: int) -> Iterator[str]:
    """Yield the code that Inductor makes of each compiled part of the published tower."""
    # Not at the top, which the tests import: in torch 2.11 this warns of what it does itself.
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.graph import GraphLowering

    dtype, made = CARDS[card][-1], []

    def keep(graph: Any) -> None:
        code, _ = graph.codegen()
        made.append(code.value if hasattr(code, "value") else str(code))
        raise Lowered

    for passes in (joint_graph, post_grad):
        passes.lazy_init(None)
        passes.lazy_init = lambda *_, **__: None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        if tower == "text":
            kernels = attention.packed_attention(attention.PackedKernels("varlen", "flash4"))
            arch = TextArchitecture(num_hidden_layers=1)
            encoder = on_gpu(lambda: TextEncoder(arch, kernels), dtype)
            host = pack([np.zeros(n, np.int32) for n in (48 * batch, 17, 5)], 1)
            inputs: Any = host.on(torch.empty_like(host.buffer, device=GPU))
        else:
            dense, image = attention.dense_attention("cudnn"), VisionArchitecture(layers=1)
            encoder = on_gpu(lambda: VisionEncoder(image, dense, CUDA_MLP_MULTIPLE), dtype)
            inputs = torch.empty(batch, 512, 512, 3, dtype=torch.uint8, device=GPU)
        pretend(card)
        encoder.compile_blocks()
        with patch.object(GraphLowering, "compile_to_module", keep):
            for _ in range(1 if tower == "text" else 2):
                try:
                    encoder(inputs)
                except Exception as error:
                    if "Lowered" not in str(error) and not isinstance(error, Lowered):
                        raise
                encoder._run_embed = VisionEncoder.embed  # lowered; the block comes next
    yield from made


def usage(kernel: Any) -> dict[str, int]:
    """Return registers and bytes of stack, where spilled ones go, of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [USAGE, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", told)
    assert found, told
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spilled_bytes": stack + local}


def kernels_of(code: str, folder: Path) -> dict[str, list[dict[str, int]]]:
    """Compile each Triton kernel, in every configuration that would be tried."""
    pattern = r"^(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)"
    found = {}
    for name, source in re.findall(pattern, code, re.MULTILINE | re.DOTALL):
        path = folder / f"{name[:60]}.py"
        path.write_text(source)
        space: dict[str, Any] = {"__name__": name, "__file__": str(path)}
        exec(compile(source, str(path), "exec"), space)
        tuner = space[name]
        found[name] = [usage(tuner._precompile_config(x).kernel) for x in tuner.configs]
    return found


def main() -> None:
    """Lower one tower for one card."""
    card, tower, *rest = sys.argv[1:]
    report: dict[str, Any] = {"parts": []}
    with tempfile.TemporaryDirectory() as folder:
        for code in sources(card, tower, int(rest[0]) if rest else 2):
            products = len(re.findall(r"^\s+extern_kernels\.(?:addmm|mm)\(", code, re.MULTILINE))
            kernels = kernels_of(code, Path(folder))
            report["parts"].append({"products": products, "kernels": kernels})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
