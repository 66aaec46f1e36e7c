import pytest
import torch

from construction_panoptic.training.watch import LossWatch, NonFiniteLossError


def test_means_over_the_steps_read() -> None:
    watch = LossWatch("detection", 1, every=2)
    watch.add(["a"], {"loss": torch.tensor(1.0)})
    assert watch.means() == {}
    watch.add(["b"], {"loss": torch.tensor(3.0), "extra": torch.tensor(7)})
    assert watch.means() == {"loss": 2.0, "extra": 7.0}
    watch.add(["c"], {"loss": torch.tensor(5.0)})
    watch.read()
    assert watch.means()["loss"] == 3.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_step_that_is_not_finite_is_named(value: float) -> None:
    watch = LossWatch("detection", 4, every=10)
    watch.add(["a.jpg"], {"loss": torch.tensor(1.0), "loss_ce": torch.tensor(0.5)})
    watch.add(["b.jpg", "c.jpg"], {"loss": torch.tensor(value), "loss_ce": torch.tensor(0.25)})
    watch.add(["d.jpg"], {"loss": torch.tensor(value), "loss_ce": torch.tensor(value)})
    with pytest.raises(NonFiniteLossError, match=r"epoch 4, step 2, images b\.jpg, c\.jpg: .*loss_ce 0\.25"):
        watch.read()


def test_an_earlier_cause_comes_before_a_failed_step() -> None:
    watch = LossWatch("detection", 1, every=10)
    watch.add(["a.jpg"], {"loss": torch.tensor(float("nan"))})
    with pytest.raises(NonFiniteLossError, match=r"step 1, images a\.jpg"):
        watch.failed_step(["b.jpg"], "outputs")
    assert "step 1, images b.jpg: outputs" in str(LossWatch("detection", 1, every=10).failed_step(["b.jpg"], "outputs"))
