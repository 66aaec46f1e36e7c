from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.cli import message, user_error
from construction_panoptic.errors import InputDataError


class Pictures(Dataset[object]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        return decode_id_map(self.path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_for_people_has_no_traceback_whatever_process_raised_it(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "damaged.png"
    path.write_bytes(b"\x89PNG")
    with pytest.raises(InputDataError) as caught:
        next(iter(DataLoader(Pictures(path), num_workers=workers, multiprocessing_context="fork" if workers else None)))
    told = user_error(caught.value)
    assert told is not None
    assert message(told).startswith(f"{path}: cannot be read as a PNG")
    assert "Traceback" not in message(told)
