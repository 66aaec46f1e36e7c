import numpy as np
import pytest

from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation.sheets import MARGIN, Example, example_sheet, mosaic

RED, GREEN, BLUE = (230, 10, 10), (10, 200, 10), (10, 10, 230)


def solid(color: tuple[int, int, int], height: int = 100, width: int = 150) -> np.ndarray:
    return np.full((height, width, 3), color, dtype=np.uint8)


def box_of(sheet: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of one colour."""
    rows, columns = np.nonzero((sheet == color).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_a_row_shows_its_pictures_side_by_side() -> None:
    pictures = {"Image": solid(RED), "Ground truth": solid(GREEN, 200, 300), "Prediction": solid(BLUE, 50, 75)}
    example = Example("loader.jpg", pictures)
    sheet = np.asarray(example_sheet([example], width=1200))
    assert sheet.shape[1] == 1200
    cell = (1200 - 4 * MARGIN) // 3
    boxes = [box_of(sheet, color) for color in (RED, GREEN, BLUE)]
    for k, (left, _, right, _) in enumerate(boxes):
        assert left == MARGIN + k * (cell + MARGIN)
        assert right - left == cell
    assert len({(top, bottom) for _, top, _, bottom in boxes}) == 1
    _, top, _, bottom = boxes[0]
    assert bottom - top == round(cell * 100 / 150)
    assert sheet.shape[0] - bottom == MARGIN
    assert (sheet[MARGIN:top] < 100).all(axis=2).any()


def test_rows_follow_one_another() -> None:
    colors = [RED, GREEN, BLUE]
    examples = [Example("a.jpg", {"Image": solid(color), "Prediction": solid(color)}) for color in colors]
    sheet = np.asarray(example_sheet(examples, width=800))
    boxes = [box_of(sheet, color) for color in colors]
    assert boxes[0][3] < boxes[1][1] < boxes[1][3] < boxes[2][1]


def test_a_tall_picture_does_not_fill_the_sheet() -> None:
    sheet = np.asarray(example_sheet([Example("a.jpg", {"Image": solid(RED, 3000, 100)})], width=600))
    left, top, right, bottom = box_of(sheet, RED)
    assert bottom - top <= 1.25 * 600
    assert (bottom - top) / (right - left) == pytest.approx(30, rel=0.1)
    assert abs((left + right) / 2 - 300) <= 2


def test_the_quality_is_written() -> None:
    without = np.asarray(example_sheet([Example("a.jpg", {"Image": solid(RED)})]))
    with_quality = np.asarray(example_sheet([Example("a.jpg", {"Image": solid(RED)}, quality=0.0)]))
    assert without.shape == with_quality.shape
    assert (without != with_quality).any()


def test_the_legend_shows_each_colour_over_as_many_lines_as_it_takes() -> None:
    few = Example("a.jpg", {"Image": solid(RED)}, legend=[("crane", GREEN), ("sky", BLUE)])
    sheet = np.asarray(example_sheet([few], width=800))
    green, blue = box_of(sheet, GREEN), box_of(sheet, BLUE)
    assert green[2] < blue[0]
    assert green[1] == blue[1]
    assert blue[3] < box_of(sheet, RED)[1]
    many = Example("a.jpg", {"Image": solid(RED)}, legend=[(f"class {k}", (10, k + 40, 90)) for k in range(64)])
    tall = np.asarray(example_sheet([many], width=800))
    assert tall.shape[0] > sheet.shape[0] + 40
    for k in range(64):
        assert box_of(tall, (10, k + 40, 90))[2] <= 800 - MARGIN


def test_a_mosaic_is_a_grid() -> None:
    colors = [(k * 30 + 10, 10, 200) for k in range(5)]
    sheet = np.asarray(mosaic([solid(color) for color in colors], list("abcde"), columns=2, width=640))
    assert sheet.shape[1] == 640
    boxes = [box_of(sheet, color) for color in colors]
    assert [box[0] for box in boxes] == [boxes[0][0], boxes[1][0]] * 2 + [boxes[0][0]]
    assert boxes[0][1] == boxes[1][1] < boxes[2][1] == boxes[3][1] < boxes[4][1]
    assert boxes[4][3] + MARGIN == sheet.shape[0]


def test_a_caption_stands_under_its_picture() -> None:
    sheet = np.asarray(mosaic([solid(RED), solid(GREEN)], ["a", "b"], ["why a", ""], columns=2, width=640))
    left, _, right, bottom = box_of(sheet, RED)
    ink = sheet[bottom:].max(axis=2) < 128
    assert ink[:, left:right].any()
    assert not ink[:, right:].any()


def test_a_mosaic_of_one_takes_the_whole_width_and_shortens_its_title() -> None:
    sheet = np.asarray(mosaic([solid(RED)], ["folder/" * 60], columns=4, width=500))
    left, top, right, _ = box_of(sheet, RED)
    assert (left, right) == (MARGIN, 500 - MARGIN)
    ink = sheet[:top].max(axis=2) < 128
    assert ink.any()
    assert not ink[:, : MARGIN - 1].any()
    assert not ink[:, 500 - MARGIN + 1 :].any()


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\x0b\x0c\x85\u2028b.jpg", "\u2029", "\u202egpj.exe", "\ud800.jpg"])
def test_any_name_can_be_a_title(name: str) -> None:
    plain = "".join(character if character.isprintable() else " " for character in name)
    pictures = [solid(RED)]
    assert np.array_equal(np.asarray(mosaic(pictures, [name])), np.asarray(mosaic(pictures, [plain])))


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(InputDataError, match="at least one"):
        example_sheet([])
    with pytest.raises(InputDataError, match="mosaic"):
        mosaic([], [])
