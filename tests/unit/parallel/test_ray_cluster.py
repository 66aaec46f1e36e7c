import os
import signal
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from construction_panoptic.parallel.ray_cluster import joined_ray


def process() -> int:
    return os.getpid()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_cluster_of_this_machine_is_private_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("home")
    others = set(psutil.Process().children(recursive=True))
    monkeypatch.setenv("HOME", str(home))
    handler = signal.getsignal(signal.SIGTERM)
    with joined_ray(2) as ray:
        with joined_ray(7) as same:
            assert same.cluster_resources()["CPU"] == 2  # it is one and the same, until all have left
        assert ray.get(ray.remote(process).remote()) != process()
        folder = Path(ray._private.worker._global_node.get_session_dir_path())
        processes = set(psutil.Process().children(recursive=True)) - others
        ours = {process(), *(child.pid for child in processes)}
        connections = [connection for connection in psutil.net_connections("inet") if connection.pid in ours]
    listening = {
        connection.laddr.ip for connection in connections if connection.laddr and connection.status == "LISTEN"
    }
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not psutil.wait_procs(processes, timeout=180)[1]  # on a busy machine they take their time
    assert not list(home.iterdir())
    assert folder.parent.name.startswith("ray_")  # made for this cluster
    assert not folder.parent.exists()
