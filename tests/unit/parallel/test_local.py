import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from construction_panoptic.parallel.local import keep_freed_memory

if {keep}:
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.ones(40_000_000, np.uint8)
before = faults()
for _ in range(10):
    np.ones(40_000_000, np.uint8)
print(faults() - before)
"""


def new_pages(*, keep: bool) -> int:
    ran = subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_an_array_takes_the_pages_of_one_that_is_gone() -> None:
    assert new_pages(keep=True) < new_pages(keep=False) / 2
