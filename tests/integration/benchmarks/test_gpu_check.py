"""The check of a GPU, tried on a CPU."""

from dataclasses import replace

import pytest

from benchmarks import gpu_check, panoptic_deeplab_step
from benchmarks.measuring import Options

TINY = Options(threads=1, device="cpu", small=True)


def test_a_cpu_agrees_with_itself_and_bfloat16_within_its_precision() -> None:
    pytest.importorskip("transformers")

    checks = list(gpu_check.parity(TINY))

    assert {check.name for check in checks if check.passed} == {check.name for check in checks}
    assert any("bfloat16" in check.name and "0.0e+00" not in check.found for check in checks)


def test_a_network_that_computes_otherwise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    step = panoptic_deeplab_step.our_outputs
    options = iter([TINY, replace(TINY, small=False), TINY])  # the second one has another backbone
    monkeypatch.setattr(panoptic_deeplab_step, "our_outputs", lambda _: step(next(options)))
    monkeypatch.setattr(gpu_check, "PARITY", {"panoptic_deeplab_step": gpu_check.TOLERANCES})

    checks = list(gpu_check.parity(TINY))

    assert [check.passed for check in checks] == [False, True]
    assert "**failed**" in gpu_check.table(checks)
