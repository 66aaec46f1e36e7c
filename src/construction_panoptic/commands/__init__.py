"""Commands that need no Kedro project: ``python -m construction_panoptic predict``, ``serve`` and ``app``."""
