"""Starting or joining Ray, resources that fit, and the progress of workers; real clusters run in separate processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray._private import state

from prlhf.cluster import _capacity_of, check_fits, connected, worker_resources
from prlhf.config import ClusterConfig
from prlhf.errors import PrlhfError

BOX = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """cluster(nodes, kinds): sets the machines that Ray reports, and those that an autoscaler may add."""

    def make(nodes: list[dict[str, float]], kinds: list[tuple[dict[str, float], int]] = ()) -> None:
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        listed = [{"Alive": True, "Resources": node} for node in nodes] + [{"Alive": False, "Resources": BOX}]
        groups = [SimpleNamespace(resources=machine, max_count=count) for machine, count in kinds]
        config = SimpleNamespace(node_group_configs=groups) if groups else None
        monkeypatch.setattr(ray, "nodes", lambda: listed)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {k: v for k, v in total.items() if v})
        monkeypatch.setattr(state.state, "get_cluster_config", lambda: config)

    return make


# ---- resources that fit ----


@given(
    has=st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 64)),
    each=st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(1, 200), min_size=1),
)
def test_as_many_find_room_as_fit(has: dict[str, int], each: dict[str, int]) -> None:
    """In hundredths, so that the check is exact: n workers fit, and n + 1 do not."""
    room = _capacity_of({name: float(n) for name, n in has.items()}, {name: n / 100 for name, n in each.items()})
    assert all(room * n <= 100 * has.get(name, 0) for name, n in each.items())
    assert any((room + 1) * n > 100 * has.get(name, 0) for name, n in each.items())


def test_fractions_add_up() -> None:
    """0.1 is not a binary fraction, but ten of them must be one GPU."""
    assert _capacity_of({"CPU": 10, "GPU": 1}, {"CPU": 1, "GPU": 0.1}) == 10
    assert _capacity_of({"CPU": 3}, {"CPU": 0.3}) == 10


def test_workers_fit_machine_by_machine(cluster: Any) -> None:
    """Two machines of 3 CPUs have room for two workers of 2 CPUs, not three; dead machines have none."""
    cluster([{"CPU": 3.0}, {"CPU": 3.0}])
    check_fits(2, {"CPU": 2})
    with pytest.raises(PrlhfError) as error:
        check_fits(3, {"CPU": 2})
    assert str(error.value) == (
        "workers = 3 of 2 CPU each do not fit: the cluster has 3 CPU, 0 GPU; 3 CPU, 0 GPU; "
        "ask for at most 2 workers, or give each less"
    )
    with pytest.raises(PrlhfError, match="give each worker less"):
        check_fits(1, {"CPU": 4})
    with pytest.raises(PrlhfError, match=r"workers = 1 of 1 CPU and 1 GPU each do not fit"):
        check_fits(1, {"CPU": 1, "GPU": 1})


def test_machines_that_may_still_come_count(cluster: Any) -> None:
    head, kinds = [{"CPU": 0.0}], [({"CPU": 0}, 1), ({"CPU": 8, "GPU": 1}, 8)]
    cluster(head, kinds)
    check_fits(8, {"CPU": 8, "GPU": 1})
    with pytest.raises(PrlhfError):
        check_fits(9, {"CPU": 8, "GPU": 1})
    with pytest.raises(PrlhfError):  # 64 CPUs in all, and none has 16
        check_fits(1, {"CPU": 16})
    cluster(head, [({"CPU": 4}, -1)])  # without a limit
    check_fits(1000, {"CPU": 2})


def test_workers_take_a_gpu_where_there_are_any(cluster: Any) -> None:
    cluster([{"CPU": 4.0}])
    assert worker_resources(ClusterConfig(workers=2)) == {"CPU": 1}
    assert worker_resources(ClusterConfig(workers=2, gpus_per_worker=0.5, cpus_per_worker=3)) == {"CPU": 3, "GPU": 0.5}
    cluster([BOX])
    assert worker_resources(ClusterConfig(workers=2)) == {"CPU": 1, "GPU": 1}
    assert worker_resources(ClusterConfig(workers=2, gpus_per_worker=0)) == {"CPU": 1}
    cluster([{"CPU": 4.0}], [({"CPU": 8, "GPU": 1}, 8)])  # scaled down to none at the moment
    assert worker_resources(ClusterConfig(workers=2)) == {"CPU": 1, "GPU": 1}


# ---- addresses ----


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_nothing_listens(prefix: str) -> None:
    """Ray itself would try for minutes, ignore Ctrl-C meanwhile, and print warnings."""
    address = f"{prefix}127.0.0.1:{free_port()}"
    began = time.monotonic()
    with (
        pytest.raises(PrlhfError, match=f"no Ray cluster answers at ray_address = {address}: .*refused"),
        connected(ClusterConfig(workers=1, ray_address=address)),
    ):
        pass
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["machine", "machine:", ":", "127.0.0.1:99999", "http://machine"])
def test_no_address(address: str) -> None:
    with (
        pytest.raises(PrlhfError, match="neither auto nor HOST:PORT nor ray://HOST:PORT"),
        connected(ClusterConfig(workers=1, ray_address=address)),
    ):
        pass


def test_ray_says_where_a_submitted_job_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(PrlhfError, match=f"no Ray cluster answers at ray_address = {address}"),
        connected(ClusterConfig(workers=1)),
    ):
        pass


# ---- a real one ----

REAL = """
import json, sys
from prlhf.cluster import check_fits, connected, shown_by, worker_resources
from prlhf.config import ClusterConfig
from prlhf.errors import PrlhfError

class Kept:
    def __init__(self): self.events = []
    def start(self, label, total): self.events.append([label, "start", total])
    def advance(self, steps=1, **values): self.events += [[name, "advance", value] for name, value in values.items()]
    def finish(self): self.events.append(["finish"])
    def note(self, line): self.events.append([line, "note"])

def work(relay, name):
    relay.start(name, 30)
    for step in range(30):
        relay.advance(1, **{name: step})
    relay.note(name)
    relay.finish()

said, config = {"alive": []}, ClusterConfig(workers=2)
with connected(config):
    import ray
    with connected(config):  # the one there is, which is not ended
        each = worker_resources(config)
    said["alive"].append(ray.is_initialized())
    said["each"] = each
    try:
        check_fits(1000, each)
    except PrlhfError as error:
        said["refused"] = str(error)
    check_fits(1, each)
    with shown_by(kept := Kept()) as relay:
        run = ray.remote(num_cpus=0.5)(work)
        ray.get([run.remote(relay, "a"), run.remote(relay, "b")])
    said["events"] = kept.events
said["alive"].append(ray.is_initialized())
with connected(config):
    said["alive"].append(ray.is_initialized())
said["alive"].append(ray.is_initialized())
json.dump(said, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The results of a process with two real clusters, one after the other, and its whole output."""
    path = tmp_path_factory.mktemp("real") / "said.json"
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout + done.stderr


def test_it_is_there_while_it_is_used_and_quiet(real: tuple[dict[str, Any], str]) -> None:
    said, printed = real
    assert said["alive"] == [True, False, True, False]
    assert printed == ""


def test_too_many_workers_are_refused(real: tuple[dict[str, Any], str]) -> None:
    said, _ = real
    assert said["each"]["CPU"] == 1
    assert said["refused"].startswith("workers = 1000 of 1 CPU")
    assert "each do not fit: the cluster has" in said["refused"]


def test_progress_comes_whole_and_in_order(real: tuple[dict[str, Any], str]) -> None:
    """The events of two workers are mixed; those of one worker are in order, and none is lost at the end."""
    events = real[0]["events"]
    for name in ("a", "b"):
        own = [what for who, *what in events if who == name]
        assert own == [["start", 30], *(["advance", step] for step in range(30)), ["note"]]
    assert events.count(["finish"]) == 2
    assert events[-1] == ["finish"]
