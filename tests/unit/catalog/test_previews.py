import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.catalog.previews import image_grid, picture_preview


def decoded(preview: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(preview)))


def test_a_tall_picture_keeps_its_width_and_shows_its_upper_part() -> None:
    pixels = np.zeros((6000, 2400, 3), np.uint8)
    pixels[:3000] = 255
    shown = decoded(picture_preview(Image.fromarray(pixels)))
    assert shown.size == (1200, 1600)
    assert shown.getpixel((600, 1490)) == (255, 255, 255)
    assert shown.getpixel((600, 1590)) == (0, 0, 0)


def test_neighbouring_ids_are_told_apart_and_the_same_in_every_picture(tmp_path: Path) -> None:
    for number, ids in enumerate(([[0, 1], [2, 70_000]], [[2, 2], [1, 1]])):
        (tmp_path / f"{number}.png").write_bytes(encode_id_map(np.array(ids)))
    shown = np.asarray(decoded(image_grid(sorted(tmp_path.glob("*.png")), labels=True))).astype(int)
    # Two cells of 240 pixels; a picture of 2 by 2 pixels fills its cell.
    quarters = {name: shown[y, x] for name, (x, y) in {"0": (60, 60), "1": (180, 60), "2": (60, 180)}.items()}
    assert quarters["0"].tolist() == [0, 0, 0]
    colors = [quarters["1"], quarters["2"], shown[180, 180]]
    for k, color in enumerate(colors):
        assert max(color) > 200
        assert all(abs(color - other).max() > 40 for other in colors[:k])
    assert shown[60, 300].tolist() == quarters["2"].tolist()
    assert shown[180, 300].tolist() == quarters["1"].tolist()


def test_many_pictures_are_represented_by_twelve(tmp_path: Path) -> None:
    for number in range(40):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    shown = decoded(image_grid(sorted(tmp_path.glob("*.png"))))
    assert shown.size == (960, 720)
    reds = [shown.getpixel((x * 240 + 120, y * 240 + 60)) for y in range(3) for x in range(4)]
    assert reds == [(3 * k, 0, 0) for k in range(12)]


def test_an_empty_folder_has_a_preview() -> None:
    assert decoded(image_grid([])).size == (960, 240)
