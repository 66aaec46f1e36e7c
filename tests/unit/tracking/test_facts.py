from pathlib import Path

import pandas as pd

from construction_panoptic.tracking.facts import flat_parameters, origin_tags, row_metrics


def test_the_commit_and_whether_it_is_clean_are_tagged(repository: Path, tmp_path: Path) -> None:
    tags = origin_tags(repository)
    assert len(tags["git_commit"]) == 40
    assert tags["git_dirty"] in {"true", "false"}
    assert origin_tags(tmp_path).keys() == {"device"}


def test_row_metrics_leave_out_what_is_no_number() -> None:
    table = pd.DataFrame({"name": ["a", "b"], "pq": [0.25, float("nan")], "n": [True, False]})
    assert row_metrics(table, "name", {"PQ": "pq", "n": "n"}) == {"PQ/a": 0.25}


def test_parameters_are_named_by_their_path() -> None:
    nested = {"detection": {"optimizer": {"lr": 0.1}, "sides": [96]}, "seed": 1}
    assert flat_parameters(nested) == {"detection.optimizer.lr": "0.1", "detection.sides": "[96]", "seed": "1"}
