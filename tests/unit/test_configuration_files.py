import shutil
from pathlib import Path

from construction_panoptic.configuration import ConfigurationHook


def files_of(source: Path) -> ConfigurationHook:
    hook = ConfigurationHook()
    hook.source = source
    return hook


def test_files_lie_in_the_folder_of_the_configuration(tmp_path: Path) -> None:
    assert ConfigurationHook().file("base/taxonomy.json") == "conf/base/taxonomy.json"
    assert files_of(tmp_path).file("base/x.json") == f"{tmp_path}/base/x.json"


def test_files_are_taken_out_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "in" / "conf" / "base").mkdir(parents=True)
    (tmp_path / "in" / "conf" / "base" / "x.json").write_text("{}")
    archive = Path(shutil.make_archive(str(tmp_path / "conf-name"), "gztar", tmp_path / "in"))
    path = Path(files_of(archive).file("base/x.json"))
    assert path.read_text() == "{}"
    assert not path.is_relative_to(tmp_path / "in")
