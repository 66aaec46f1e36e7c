import pytest
import torch

from construction_panoptic.errors import ParameterError
from construction_panoptic.parallel.device import autocast, resolve_device


def test_auto_takes_what_there_is() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_absent_device_is_named() -> None:
    with pytest.raises(ParameterError, match="none of auto, cpu, cuda"):
        resolve_device("tpu9")
    with pytest.raises(ParameterError, match="none of auto, cpu, cuda"):
        resolve_device("meta")
    if torch.cuda.is_available():
        with pytest.raises(ParameterError, match="cuda:99' is not there"):
            resolve_device("cuda:99")
    else:
        with pytest.raises(ParameterError, match="no CUDA device for 'cuda'; set device: auto or cpu"):
            resolve_device("cuda")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_precision_on_a_cpu(precision: str, dtype: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("is_new", [False, True])
def test_fast_is_bfloat16_on_a_cpu_that_computes_it_fast(is_new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_new)
    with autocast(torch.device("cpu"), "fast"):
        assert torch.is_autocast_enabled("cpu") is is_new
    with autocast(torch.device("cpu"), "auto"):
        assert not torch.is_autocast_enabled("cpu")
