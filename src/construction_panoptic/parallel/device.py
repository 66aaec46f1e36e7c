"""Where the network runs and in which arithmetic."""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from construction_panoptic.errors import ParameterError


def resolve_device(name: str = "auto") -> torch.device:
    """The device of a name: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:<index>``.

    Raises `ParameterError`: the name is unknown, or CUDA is asked for and that device is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if known is None:
        raise ParameterError(f"device: {name!r} is none of auto, cpu, cuda, cuda:<index>")
    if name != "cpu" and count == 0:
        raise ParameterError(f"device: there is no CUDA device for {name!r}; set device: auto or cpu")
    if name != "cpu" and int(known[1] or 0) >= count:
        raise ParameterError(f"device: {name!r} is not there; the last CUDA device is cuda:{count - 1}")
    return torch.device(name)


def process_count(devices: int | Literal["auto"], device: str = "auto") -> int:
    """The number of processes that train together, one a device; ``auto``: all CUDA devices, or one process on a CPU.

    Raises `ParameterError`: there are not so many CUDA devices.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() and device != "cpu" else 0
    if devices == "auto":
        return max(1, count)
    if count and devices > count:
        raise ParameterError(f"devices: {devices} are asked for, but there are {count} CUDA devices; set auto")
    return devices


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[object]:
    """The context to run the network in: bfloat16 autocast, or nothing for float32.

    ``auto`` is bfloat16 where CUDA has it, ``fast`` on CPUs with AVX512-BF16 too: others compute it slowly.
    """
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported()
    else:
        # torch.cpu.get_capabilities, the public way, is newer than torch 2.10.
        is_fast = precision == "fast" and torch.cpu._is_avx512_bf16_supported()
    if precision == "bfloat16" or (precision != "float32" and is_fast):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
