"""Collective operations of the processes that train one model together; in a lone process they do nothing.

All processes must call the same functions in the same order. Numbers and plain data go from CPU to CPU; only
gradients and running statistics go from device to device.
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
    """Number of this process, from 0; rank 0 saves and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_max(numbers: Sequence[int]) -> list[int]:
    """The largest over the processes of each number."""
    tensor = torch.tensor(numbers, dtype=torch.int64)
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def all_reduce_mean(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over the processes of each value, whose names are the same everywhere."""
    if world_size() == 1:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / world_size()).tolist(), strict=True))


def all_gather(item: Result) -> list[Result]:
    """Plain data of every process, by rank."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def gather(item: Result) -> list[Result]:
    """Plain data of every process, by rank, on rank 0; nothing elsewhere."""
    if world_size() == 1:
        return [item]
    items: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(item, items)
    return items or []


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 alone and broadcast its result, plain data."""
    if world_size() == 1:
        return function()
    items = [function() if rank() == 0 else None]
    dist.broadcast_object_list(items, src=0)
    return items[0]  # type: ignore[return-value]


def until_stopped(items: Iterable[Result], stop: StopRequest) -> Iterator[Result]:
    """Give this process's items, whose number may differ from the others', and wait for all processes at the end.

    Raises `StoppedError`: ``stop`` is set in one of the processes, after the item that it was at.
    """
    try:
        for item in items:
            yield item
            if stop.is_set():
                break
    except RuntimeError:
        if not stop.is_set():  # Ctrl-C reaches the loading processes too
            raise
    if all_reduce_max([stop.number or 0])[0]:
        raise StoppedError


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give each parameter the mean of its gradients over the processes; None where no process has one."""
    if world_size() == 1:
        return
    parameters, gradients = list(parameters), list[Tensor]()
    anywhere = all_reduce_max([parameter.grad is not None for parameter in parameters])
    for parameter, has_one in zip(parameters, anywhere, strict=True):
        if has_one:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    _average(gradients)


def average_statistics(model: nn.Module) -> None:
    """Give running statistics of batch normalisation their mean over the processes."""
    if world_size() > 1:
        _average(list(running_statistics(model).values()))


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Those of batch normalisation that is being trained, by their names in the model; processes have their own."""
    return {
        f"{name}.{key}": buffer
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.training
        for key, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }


def _average(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
