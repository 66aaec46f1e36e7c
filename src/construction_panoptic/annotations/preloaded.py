"""What the process that workers are forked from loads, once for all pools of a run; nothing here starts a thread."""

import os

# The processes are the parallelism; threads below them would only wait for each other.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import construction_panoptic.annotations.coco_files  # noqa: E402
import construction_panoptic.annotations.cvat  # noqa: E402
import construction_panoptic.annotations.merging  # noqa: E402
import construction_panoptic.annotations.stuff  # noqa: E402, F401
