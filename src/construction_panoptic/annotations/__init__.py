"""From annotation files to panoptic training data."""

from construction_panoptic.parallel.local import PRELOADED

# What other processes run for each image; without pandas, which would take longer to load than all of them.
_RUN_THERE = ("formats.checking", "merging.merging", "stuff.ready")
PRELOADED += [f"{__name__}.{name}" for name in _RUN_THERE]
