"""The first module that the process loads which workers are forked from; nothing here starts a thread."""

import os

from construction_panoptic.parallel.local import keep_freed_memory

# The processes are the parallelism; threads below them would only wait for each other.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"

keep_freed_memory()
