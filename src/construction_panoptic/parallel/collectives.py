"""What the processes that train one model together tell one another; each function does nothing more in a lone process.

All processes of a team must call the same functions in the same order. Numbers and plain data go from CPU to CPU;
only gradients and running statistics go from device to device.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from construction_panoptic.signals import StopRequest

Result = TypeVar("Result")


class StoppedError(Exception):
    """All processes leave what they were at, since one of them was asked to stop."""


def rank() -> int:
    """Number of this process, from 0; the first one saves and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def largest(numbers: Sequence[int]) -> list[int]:
    """The largest over the processes of each number."""
    return _reduced(torch.tensor(numbers, dtype=torch.int64), dist.ReduceOp.MAX)


def totals(numbers: Sequence[float]) -> list[float]:
    """The sum over the processes of each number."""
    return _reduced(torch.tensor(numbers, dtype=torch.float64), dist.ReduceOp.SUM)


def means(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over the processes of each value, whose names are the same everywhere."""
    if size() == 1:
        return dict(values)
    return {name: total / size() for name, total in zip(values, totals(list(values.values())), strict=True)}


def gathered(item: Result) -> list[Result]:
    """Plain data of every process, in their order."""
    if size() == 1:
        return [item]
    items: list[Any] = [None] * size()
    dist.all_gather_object(items, item)
    return items


def merged(items: Iterable[Result], key: Callable[[Result], Any]) -> Iterable[Result]:
    """What all processes have, in the order of ``key``, in the first of them; nothing in the others."""
    if size() == 1:
        return items
    shares: list[Any] | None = [None] * size() if rank() == 0 else None
    dist.gather_object(list(items), shares)
    return sorted((item for share in shares or [] for item in share), key=key)


def from_first(function: Callable[[], Result]) -> Result:
    """What ``function`` gives in the first process, the only one that calls it; plain data."""
    if size() == 1:
        return function()
    items = [function() if rank() == 0 else None]
    dist.broadcast_object_list(items, src=0)
    return items[0]  # type: ignore[return-value]


def until_stopped(items: Iterable[Result], stop: StopRequest) -> Iterator[Result]:
    """Give the items of this process, of which each has its own number, and bring the processes together at the end.

    Raises:
        StoppedError: ``stop`` is set in one of the processes, after the item that it was at.
    """
    source = iter(items)
    while not stop.is_set():
        try:
            item = next(source)
        except StopIteration:
            break
        except RuntimeError:
            if not stop.is_set():
                raise
            break  # Ctrl-C reaches the processes that load too
        yield item
    if largest([stop.number or 0])[0]:
        raise StoppedError


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give each parameter the mean of its gradients over the processes; None where no process has one."""
    if size() == 1:
        return
    parameters = list(parameters)
    anywhere = largest([parameter.grad is not None for parameter in parameters])
    learning = [parameter for parameter, has_one in zip(parameters, anywhere, strict=True) if has_one]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    _average([parameter.grad for parameter in learning if parameter.grad is not None])


def average_statistics(model: nn.Module) -> None:
    """Give running statistics of batch normalisation their mean over the processes."""
    if size() > 1:
        _average(list(running_statistics(model).values()))


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Those of batch normalisation that is being trained, by their names in the model; processes have their own."""
    norms = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d) and module.training
    }
    return {
        f"{name}.{key}": buffer
        for name, norm in norms.items()
        for key, buffer in norm.named_buffers()
        if buffer.is_floating_point()
    }


def _average(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _reduced(numbers: Tensor, operation: Any) -> list[Any]:
    if size() > 1:
        dist.all_reduce(numbers, operation)
    return numbers.tolist()
