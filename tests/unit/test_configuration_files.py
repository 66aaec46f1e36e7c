import shutil
from pathlib import Path
from types import SimpleNamespace

from construction_panoptic.configuration import ConfigurationFiles


def files_of(source: Path) -> ConfigurationFiles:
    files = ConfigurationFiles()
    files.after_context_created(SimpleNamespace(config_loader=SimpleNamespace(conf_source=str(source))))
    return files


def test_files_lie_in_the_folder_of_the_configuration(tmp_path: Path) -> None:
    assert ConfigurationFiles().path("base/taxonomy.json") == "conf/base/taxonomy.json"
    assert files_of(tmp_path).path("base/x.json") == f"{tmp_path}/base/x.json"


def test_files_are_taken_out_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "in" / "conf" / "base").mkdir(parents=True)
    (tmp_path / "in" / "conf" / "base" / "x.json").write_text("{}")
    archive = Path(shutil.make_archive(str(tmp_path / "conf-name"), "gztar", tmp_path / "in"))
    path = Path(files_of(archive).path("base/x.json"))
    assert path.read_text() == "{}"
    assert not path.is_relative_to(tmp_path / "in")
