import pandas as pd
from PIL import Image

from construction_panoptic.visualisation.reports import training_report


def test_the_page_has_curves_speed_and_the_last_pictures() -> None:
    history = pd.DataFrame({"epoch": [1, 2], "train/loss": [3.0, 2.0], "val/pq": [0.1, 0.4]})
    timings = {"time/epoch_seconds": [60.0, 66.0], "train/images_per_second": [9.0, 11.0]}
    timings["train/data_wait_share"] = [0.1, 0.3]
    picture = Image.new("RGB", (800, 300))
    page = training_report({"model": "mask_head, epoch 2"}, history, pd.DataFrame(timings), picture)
    for text in ("mask_head, epoch 2", "<b>2</b> epochs", "<b>2.1</b> minutes", "<b>10</b> images a second"):
        assert text in page
    assert "<b>20 %</b> of the time waiting for images" in page
    chart = page[page.index("<svg") : page.index("</svg>")]
    assert "best: 40.0 in epoch 2" in chart
    assert page.count("data:image/jpeg;base64,") == 1


def test_a_training_that_was_finished_before_has_no_timings() -> None:
    page = training_report({}, pd.DataFrame({"epoch": [1]}), pd.DataFrame({"epoch": []}), Image.new("RGB", (8, 3)))
    assert "<b>n/a</b> images a second" in page
    assert "nothing was logged yet" in page
