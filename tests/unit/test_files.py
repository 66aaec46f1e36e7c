import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from construction_panoptic.errors import StorageError, UserError
from construction_panoptic.files import atomic_path, remove_leftovers, write_bytes

WRITE_AND_WAIT = """
import sys
from construction_panoptic.errors import StorageError, UserError
from construction_panoptic.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("written", flush=True)
    sys.stdin.read()
"""


def fail_halfway(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    write_bytes(target, b"old")
    with pytest.raises(RuntimeError):
        fail_halfway(target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "picture.png"
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=os.curdir)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    (tmp_path / "deep" / ".hidden.tmp.png").write_bytes(b"somebody else's")
    remove_leftovers(tmp_path)
    assert len(list(target.parent.iterdir())) == 2
    process.kill()
    process.communicate(timeout=60)
    remove_leftovers(tmp_path)
    assert [path.name for path in target.parent.iterdir()] == [".hidden.tmp.png"]


def test_a_read_only_file_system_is_named_with_what_to_do(small_disk: Path) -> None:
    target = small_disk / "tables" / "classes.csv"
    write_bytes(target, b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        StorageError, match=r"tables/classes\.csv cannot be written: .*Make .*tables writable"
    ) as caught:
        write_bytes(target, b"new")
    assert isinstance(caught.value, UserError)
    assert target.read_bytes() == b"old"
    assert len(list(target.parent.iterdir())) == 1


def test_a_failure_elsewhere_is_not_taken_for_one_of_the_file(tmp_path: Path) -> None:
    source = tmp_path / "raw" / "image.jpg"
    with pytest.raises(PermissionError, match=r"image\.jpg") as caught, atomic_path(tmp_path / "made" / "image.jpg"):
        raise PermissionError(errno.EACCES, "Permission denied", str(source))
    assert not isinstance(caught.value, StorageError)


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path, b"")
