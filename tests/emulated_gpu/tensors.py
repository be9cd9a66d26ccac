"""Tensors of the emulated GPU, and what becomes of each operator on them."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from tests.emulated_gpu import kernels
from tests.emulated_gpu.memory import Memory

if TYPE_CHECKING:
    from tests.emulated_gpu.gpu import EmulatedGpu

aten = torch.ops.aten
CPU, META, GPU = (torch.device(name) for name in ("cpu", "meta", "cuda:0"))

# What needs a value on the host, and so has to wait for the device.
ASKS_FOR_VALUES = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
}
EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}


class CudaTensor(Tensor):
    """Says that it is on `cuda:0`; `host` is where its numbers are."""

    host: Tensor
    memory: Memory
    gpu: "EmulatedGpu"

    @staticmethod
    def __new__(cls, host: Tensor, memory: Memory, gpu: "EmulatedGpu") -> "CudaTensor":
        with torch.inference_mode(False):  # a view of a parameter is to be an ordinary tensor
            tensor: CudaTensor = Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=META,  # for torch's own code, which would ask the driver for `cuda:0`
            )
        tensor.host, tensor.memory, tensor.gpu = host, memory, gpu
        return tensor

    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def is_cuda(self) -> bool:
        return True

    def tolist(self) -> list[Any]:
        return self.to(CPU).tolist()

    def __repr__(self) -> str:
        return f"CudaTensor({self.dtype}, {list(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        gpu = next(x.gpu for x in leaves((args, kwargs)) if isinstance(x, CudaTensor))
        return Dispatcher(gpu).run(func, args, kwargs or {})

    def record_stream(self, stream: Any) -> None:
        self.memory.block.readers.add(stream)


class EverywhereMode(TorchDispatchMode):
    """Catches what makes tensors on the GPU from nothing, or from tensors of the host."""

    def __init__(self, gpu: "EmulatedGpu") -> None:
        super().__init__()
        self._dispatcher = Dispatcher(gpu)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self._dispatcher.run(func, args, kwargs or {})


class Dispatcher:
    """Queues operators; works out shapes only, until the host waits for the numbers."""

    def __init__(self, gpu: "EmulatedGpu") -> None:
        self._gpu = gpu

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = list(leaves((args, kwargs)))
        if not any(map(is_on_gpu, arguments)):
            return func(*args, **{k: v for k, v in kwargs.items() if k != "pin_memory"})
        name = func._schema.name
        if name in OPDEFS:  # an operator written in Python: what it calls is emulated
            with EverywhereMode(self._gpu):
                return OPDEFS[name]._init_fn(*args, **kwargs)
        if func is aten._to_copy.default:
            return self._to_copy(*args, **kwargs)
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if func in ASKS_FOR_VALUES:
            self._gpu.wait(name)
            self._gpu.current_stream().run_up_to(self._gpu.current_stream().queued)
            return func(*mapped(on_host, args), **kwargs)
        if func is aten._has_compatible_shallow_copy_type.default:
            return False
        if func not in kernels.EMULATED and func.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            with EverywhereMode(self._gpu):
                return func.decompose(*args, **kwargs)
        check_devices(func, arguments)
        if is_view(func):
            return self._view(func, args, kwargs)
        return self.launch(func, args, kwargs)

    def launch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Queue an operator; its results have their memory now and their numbers later."""
        gpu = self._gpu
        gpu.count_operator(func._schema.name)
        shape, work = kernels.EMULATED.get(func, (func, func))
        here = mapped(on_host, args), mapped(on_host, kwargs)
        if func._schema.is_mutable:
            gpu.add(lambda: work(*here[0], **here[1]))
            return kwargs.get("out", args[0])
        outs = mapped(self._new, shapes(func, shape, args, kwargs))
        if func in EMPTY:
            return outs
        hosts = [x.host for x in leaves(outs) if isinstance(x, CudaTensor)]

        def fill() -> None:
            found = work(*here[0], **here[1])
            for host, value in zip(hosts, tensors(found), strict=True):
                host.copy_(value)

        gpu.add(fill)
        return outs

    def _new(self, like: Any) -> Any:
        if not isinstance(like, Tensor):
            return like
        memory = self._gpu.take(like.untyped_storage().nbytes())
        return CudaTensor(memory.tensor(like), memory, self._gpu)

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = args[0]
        found = func(*mapped(on_host, args), **kwargs)
        return mapped(
            lambda x: CudaTensor(x, source.memory, self._gpu) if isinstance(x, Tensor) else x, found
        )

    def to(self, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Do what `Tensor.to` does, which on its way would ask the driver for the device."""
        device, dtype, later, _ = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype = device or source.device, dtype or source.dtype
        if device.type == source.device.type and dtype == source.dtype:
            return source
        return self._to_copy(source, device=device, dtype=dtype, non_blocking=later)

    def _to_copy(self, source: Tensor, **kwargs: Any) -> Tensor:
        to = torch.device(kwargs.pop("device", None) or source.device)
        later = kwargs.pop("non_blocking", False)
        kwargs.pop("pin_memory", None)
        if to.type == source.device.type:
            return self.launch(aten._to_copy.default, (source,), kwargs | {"device": to})
        like = torch.empty_like(as_meta(source), dtype=kwargs.get("dtype"))
        target = torch.empty_like(like, device=CPU) if to == CPU else self._new(like)
        return self._copy(target, source, later)

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Copy between host and device, or on it; from pageable memory the host waits."""
        if is_on_gpu(target) and is_on_gpu(source):
            return self.launch(aten.copy_.default, (target, source), {})
        gpu, to, by = self._gpu, on_host(target), on_host(source)
        pinned = is_on_gpu(source) or gpu.is_pinned(source)
        if not (non_blocking and pinned):
            gpu.wait("a copy between host and device")
            by = by if is_on_gpu(source) else by.clone()
        gpu.add(lambda: to.copy_(by))
        if is_on_gpu(source) and not non_blocking:
            gpu.current_stream().run_up_to(gpu.current_stream().queued)
        return target


# Torch's own code for the shapes of results is slow, and a tower asks for the same ones again.
SHAPES: dict[Any, Any] = {}


def shapes(func: Any, shape: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the results of an operator as tensors without numbers."""
    if shape is not func:  # one of `kernels`, which look at more than their arguments
        return shape(*mapped(as_meta, args), **mapped(as_meta, kwargs))
    facts = func, *map(fact, leaves((args, tuple(kwargs.items()))))
    if facts not in SHAPES:
        SHAPES[facts] = func(*mapped(as_meta, args), **mapped(as_meta, kwargs))
    return SHAPES[facts]


def fact(x: Any) -> Any:
    """Return what the shapes of results depend on, so that equal ones are of one type too."""
    return (x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else (type(x), x)


def leaves(x: Any) -> Iterator[Any]:
    """Yield what is in lists, tuples and dictionaries, as torch's `tree_leaves` does, but fast."""
    if isinstance(x, (list, tuple)):
        for part in x:
            yield from leaves(part)
    elif isinstance(x, dict):
        yield from leaves(list(x.values()))
    else:
        yield x


def mapped(change: Callable[[Any], Any], x: Any) -> Any:
    """Change what is in lists, tuples and dictionaries, as torch's `tree_map` does, but fast."""
    if isinstance(x, (list, tuple)):
        return type(x)([mapped(change, part) for part in x])
    if isinstance(x, dict):
        return {name: mapped(change, part) for name, part in x.items()}
    return change(x)


def is_on_gpu(x: object) -> bool:
    """Tell whether it is a tensor of the GPU, or its name."""
    return isinstance(x, CudaTensor) or (isinstance(x, torch.device) and x.type == "cuda")


def on_host(x: Any) -> Any:
    """Return the numbers of a tensor of the GPU; everything else as it is."""
    if isinstance(x, CudaTensor):
        return x.host
    return CPU if is_on_gpu(x) else x


def as_meta(x: Any) -> Any:
    """Return a tensor's shape without its numbers; everything else as it is."""
    if isinstance(x, Tensor):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)
    return META if is_on_gpu(x) else x


def tensors(x: Any) -> Iterable[Tensor]:
    return [leaf for leaf in leaves(x) if isinstance(leaf, Tensor)]


def check_devices(func: Callable[..., Any], arguments: Iterable[Any]) -> None:
    """Raise where tensors of the host take part; single numbers may."""
    tensors = [x for x in arguments if isinstance(x, Tensor) and x.dim() > 0]
    if len({isinstance(x, CudaTensor) for x in tensors}) == 2:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({func})"
        )


def is_view(func: Any) -> bool:
    """Tell whether the result is over the memory of the first argument."""
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    return alias is not None and not alias.is_write
