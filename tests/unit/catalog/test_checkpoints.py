import json
import re
from pathlib import Path

import pytest
import torch
from kedro.io import DatasetError

from construction_panoptic.catalog.checkpoints import CheckpointDataset, ExportedModelDataset, ResumeDataset
from construction_panoptic.errors import CheckpointError, StorageError, user_error
from tests.unit.small_model import small_model


def checkpoint(epoch: int, finished: bool) -> dict[str, object]:
    return {"epoch": epoch, "finished": finished, "model": {"weight": torch.full((2,), float(epoch))}}


def test_an_unfinished_checkpoint_can_be_resumed_but_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "last.pt"
    dataset, resume = CheckpointDataset(filepath=str(path)), ResumeDataset(filepath=str(path))
    assert resume.load() is None
    dataset.save(checkpoint(3, finished=False))
    assert path.is_file()
    assert not dataset.exists()
    loaded = resume.load()
    assert loaded is not None
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["model"]["weight"], torch.tensor([3.0, 3.0]))


def test_a_finished_checkpoint_exists_and_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    dataset, resume = CheckpointDataset(filepath=str(path)), ResumeDataset(filepath=str(path))
    dataset.save(checkpoint(5, finished=True))
    assert dataset.exists()
    assert resume.load() is None


def test_a_failed_save_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    dataset = CheckpointDataset(filepath=str(path))
    dataset.save(checkpoint(1, finished=False))
    with pytest.raises(DatasetError):
        dataset.save({"epoch": 2, "model": lambda: None})  # cannot be pickled
    assert dataset.load()["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_what_to_do(small_disk: Path) -> None:
    dataset = CheckpointDataset(filepath=str(small_disk / "last.pt"))
    dataset.save(checkpoint(1, finished=False))
    before = (small_disk / "last.pt").read_bytes()
    with pytest.raises(DatasetError) as caught:
        dataset.save({**checkpoint(2, finished=True), "optimizer": torch.zeros(2**18)})
    error = user_error(caught.value)
    assert isinstance(error, StorageError)
    assert re.search(r"last\.pt cannot be written: No space left.*Make room .*kept", str(error))
    assert (small_disk / "last.pt").read_bytes() == before
    assert [path.name for path in small_disk.iterdir()] == ["last.pt"]
    dataset.save(checkpoint(2, finished=True))
    assert dataset.load()["epoch"] == 2


def test_nothing_but_plain_data_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"finished": True, "model": Path("x")}, path)
    with pytest.raises(DatasetError) as caught:
        CheckpointDataset(filepath=str(path)).load()
    assert isinstance(user_error(caught.value), CheckpointError)
    assert "weights_only" not in str(user_error(caught.value))  # torch's advice how to read it after all


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    CheckpointDataset(filepath=str(path)).save(checkpoint(1, finished=True))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError) as caught:
        CheckpointDataset(filepath=str(path)).load()
    assert str(path) in str(user_error(caught.value))


def test_a_resume_entry_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        ResumeDataset(filepath=str(tmp_path / "last.pt")).save({})


def test_the_preview_tells_the_epoch_and_no_weights(tmp_path: Path) -> None:
    dataset = CheckpointDataset(filepath=str(tmp_path / "last.pt"))
    dataset.save(checkpoint(7, finished=False))
    assert json.loads(dataset.preview()) == {"epoch": 7, "finished": False, "numbers_in_model": 2}


@pytest.mark.parametrize("damage", ["empty", "cut", "names", "weights", "data"])
def test_damage_is_found_and_the_message_says_what_to_do(tmp_path: Path, damage: str) -> None:
    """Wherever it is: torch itself reads changed weights without a word."""
    path = tmp_path / "last.pt"
    dataset, resume = CheckpointDataset(filepath=str(path)), ResumeDataset(filepath=str(path))
    dataset.save({**checkpoint(3, finished=False), "model": {"weight": torch.full((5000,), 3.0)}})
    content = path.read_bytes()
    weights = content.index(torch.full((5000,), 3.0).numpy().tobytes())
    places = {"names": len(content) - 60, "weights": weights + 9000, "data": content.index(b"finished")}
    if damage in places:
        at = places[damage]
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
    else:
        path.write_bytes(content[: {"empty": 0, "cut": len(content) // 2}[damage]])
    begin = f"^{re.escape(str(path))} is not a readable checkpoint "
    with pytest.raises(DatasetError) as caught:
        resume.load()
    assert re.match(
        begin + r".*\. Give another file; or, .* remove it to train from the beginning\.$",
        str(user_error(caught.value)),
    )
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        dataset.load()
    assert re.match(begin + r".*\. Copy best\.pt over it to go on from the best epoch", str(user_error(caught.value)))


def test_any_flipped_byte_is_found_or_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    dataset = CheckpointDataset(filepath=str(path))
    dataset.save(checkpoint(3, finished=False))
    content = path.read_bytes()
    errors, loaded = [], []
    for at in range(0, len(content), 11):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            loaded.append(dataset.load())
        except DatasetError as error:
            errors.append(user_error(error))
    assert len(errors) > 10
    assert {type(error) for error in errors} == {CheckpointError}
    assert {(item["epoch"], item["finished"], *item["model"]["weight"].tolist()) for item in loaded} == {
        (3, False, 3, 3)
    }


def test_an_exported_model_comes_back(tmp_path: Path) -> None:
    model = small_model()
    entry = ExportedModelDataset(filepath=str(tmp_path / "model"))
    assert not entry.exists()
    entry.save(model)
    assert entry.exists()
    loaded = entry.load()
    assert loaded.spec == model.spec
    expected = model.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.network.state_dict().items())
