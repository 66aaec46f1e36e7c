import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from construction_panoptic.commands.predict import predict
from construction_panoptic.models.files import export_model
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction import merge_panoptic

pytestmark = pytest.mark.medium


@pytest.fixture
def model(trained: PanopticModel, tmp_path: Path) -> Path:
    export_model(trained, tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(predict, [str(argument) for argument in arguments])


def test_the_short_way_writes_everything_and_says_what_was_seen(model: Path, site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # As it is typed, from a folder that is no project, in a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "construction_panoptic", "predict", str(site), "--model", str(model), "--out", str(out)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = pd.read_csv(out / "seen.csv")
    assert set(seen["image"]) == {"a.jpg", "a.png", "film.mp4", "north/b.JPG"}
    assert f"{seen.groupby('class')['count'].sum().max()}  class " in done.stdout
    assert "Images and frames: 10." in done.stdout
    assert "bad.jpg" in done.stdout
    assert pd.read_csv(out / "rejected.csv")["file"].tolist() == ["bad.jpg", "bad.mp4", "north/empty.png"]


def test_the_threshold_is_used(model: Path, site: Path, tmp_path: Path) -> None:
    assert run(site / "a.jpg", "--model", model, "--out", tmp_path / "out", "--threshold", 0.9999).exit_code == 0
    assert pd.read_csv(tmp_path / "out" / "seen.csv")["count"].tolist() == [0]


def test_classes_and_cvat_can_be_asked_for(model: Path, site: Path, tmp_path: Path) -> None:
    options = ["--model", model, "--out", tmp_path / "out", "--classes", "class 3, class 1", "--threshold", 0.01]
    result = run("--cvat", site / "a.*", *options, "--things-only")
    assert result.exit_code == 0
    assert "cvat.zip" in result.output
    assert (tmp_path / "out" / "cvat.zip").is_file()
    assert set(pd.read_csv(tmp_path / "out" / "seen.csv")["class"].dropna()) <= {"class 3"}


def test_parts_merge_to_the_whole(model: Path, site: Path, tmp_path: Path) -> None:
    assert run(site, "--model", model, "--out", tmp_path / "whole").exit_code == 0
    parts = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert run(site, "--model", model, "--out", part, "--shard", f"{number}/3").exit_code == 0
    merge_panoptic(parts, tmp_path / "merged")

    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "panoptic").iterdir()}
    assert len(whole) == 12  # ten images and frames, and two files about them
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == whole
    for table in ("seen.csv", "rejected.csv"):
        merged = pd.concat([pd.read_csv(part / table) for part in parts], ignore_index=True)
        pd.testing.assert_frame_equal(merged, pd.read_csv(tmp_path / "whole" / table), check_dtype=False)


def test_results_among_the_photographs_are_not_predicted_the_next_time(model: Path, site: Path) -> None:
    for out in (site / "predictions", site):
        for _ in range(2):
            assert "Images and frames: 10." in run(site, "--model", model, "--out", out).output
        for written in ("masks", "boxes", "panoptic"):
            shutil.rmtree(out / written)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, names of files are Unicode")
def test_names_that_are_not_unicode_are_made_readable(model: Path, site: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "film.mp4", "bad.jpg"):
        (site / name).rename(os.fsdecode(os.fsencode(site) + b"/\xe4" + name.encode()))
    assert run(site, "--model", model, "--out", tmp_path / "out", "--cvat").exit_code == 0
    assert set(pd.read_csv(tmp_path / "out" / "seen.csv")["image"]) == {"�a.jpg", "a.png", "�film.mp4", "north/b.JPG"}
    assert set(pd.read_csv(tmp_path / "out" / "rejected.csv")["file"]) == {"�bad.jpg", "bad.mp4", "north/empty.png"}


def test_files_that_are_all_bad_are_an_error(model: Path, site: Path, tmp_path: Path) -> None:
    result = run(site / "bad.*", "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "None of the 2 files could be read" in result.output
    assert pd.read_csv(tmp_path / "out" / "rejected.csv")["file"].tolist() == ["bad.jpg", "bad.mp4"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard", "4/3"], "--shard is '4/3'; give K/N"),
        (["--shard", "1/99"], "fewer files than 99 parts; part 1 is empty"),
        (["--classes", "class 1,lorry"], "no class 'lorry'; known are class 1"),
        (["--threshold", 1.5], "predict.threshold: input should be less than 1"),
        (["--device", "tpu"], "predict.device"),
        (["--model", "nowhere.pt"], "There is no model at nowhere.pt"),
    ],
)
def test_mistakes_are_one_message(model: Path, site: Path, tmp_path: Path, options: list[object], words: str) -> None:
    result = run(site, "--out", tmp_path / "out", "--model", model, *options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert words in result.output
    assert not (tmp_path / "out").exists()
