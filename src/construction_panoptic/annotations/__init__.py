"""From annotation files to panoptic training data."""

from construction_panoptic.parallel.local import preload

# What other processes run for each image; without pandas, which would take longer to load than all of them.
for _name in ("formats.checking", "merging.merging", "merging.panoptic_check", "stuff.ready"):
    preload(f"{__name__}.{_name}")
