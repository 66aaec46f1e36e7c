"""Panoptic segmentation of construction sites, from CVAT exports to a trained model and its PQ table."""

import ctypes
import os
import sys

# Large arrays in large pages, where the system leaves the choice to programs: a tenth less time for inference on a CPU
# (torch reads it before its first tensor).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Large arrays in memory that others have freed, not in new pages, which the system has to clear first: a third less
# time for the conversion of an image, a tenth for a training step on a CPU. Of malloc.h, in bytes: M_MMAP_THRESHOLD,
# up to what size arrays come from the heap, and M_TRIM_THRESHOLD, how much free memory at its end is kept.
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
if _mallopt is not None:
    _mallopt(-3, 256 * 2**20)
    _mallopt(-1, 512 * 2**20)

__version__ = "0.1.0"
