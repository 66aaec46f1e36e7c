"""What the process that workers are forked from loads, once for all pools of a run; nothing here starts a thread."""

import os
from importlib import import_module

from construction_panoptic.parallel.reuse import keep_freed_memory

# The processes are the parallelism; threads below them would only wait for each other.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"

keep_freed_memory()
# None of these needs pandas, which would take longer to load than all of them.
for _name in ("formats.checking", "merging.merging", "merging.panoptic_check", "stuff.ready"):
    import_module(f"construction_panoptic.annotations.{_name}")
