import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
{extra}

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.ones(40_000_000, np.uint8)
before = faults()
for _ in range(10):
    np.ones(40_000_000, np.uint8)
print(faults() - before)
"""


def new_pages(extra: str) -> int:
    ran = subprocess.run([sys.executable, "-c", CODE.format(extra=extra)], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_an_array_takes_the_pages_of_one_that_is_gone() -> None:
    assert new_pages("import construction_panoptic") < new_pages("") / 2
