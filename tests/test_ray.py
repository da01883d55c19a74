"""Sessions on a Ray cluster of two nodes (integrations/ray_serve.py): a replica is killed, its client is told once, the other talks on."""
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0", RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="120", RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="120",
                  RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S="2", RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S="10")  # a busy machine is not a dead one
pytest.importorskip("ray", reason="pip install 'liveavatar-nb[ray]'")
pytest.importorskip("fastapi", reason="needs the extra `serve`")
root = Path(__file__).resolve().parents[1]
if not (root / "integrations").is_dir():
    pytest.skip("no sources here", allow_module_level=True)
from websockets.exceptions import ConnectionClosed  # noqa: E402

from talking import Reader  # noqa: E402

HELLO = dict(type="hello", token="secret")
VOICE = (3000 * np.random.default_rng(0).standard_normal(16_000)).clip(-32768, 32767).astype("<i2").tobytes()


def small():
    from liveavatar_nb.stream.avatar import untrained
    return untrained("pico", levels=(1., 0.), policy="timestep", window_frames=3)


@pytest.fixture(scope="module")
def port():
    "Two nodes, a replica with one place on each, one door."
    import ray
    from ray import cloudpickle, serve
    from ray.cluster_utils import Cluster
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    sys.path.insert(0, str(root / "integrations"))
    from ray_serve import application, start
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    app, token = application(small, "secret", replicas=2, limit=1, per_node=1, workers=1, idle=300., patience=60.)
    assert token == "secret"
    start(app, port=port, patience=8., every_node=False)
    yield port
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


class Client(Reader):
    "Says hello; who finds no place may hear of it before."
    def __init__(self, port, **hello):
        super().__init__(port, 120)
        with suppress(ConnectionClosed): self.ws.send(json.dumps(HELLO | hello))


def replicas():
    "The replicas' processes: children of this one's nodes."
    found = []
    for p in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):                                 # it ended meanwhile
            if "ServeReplica" in " ".join(p.cmdline()): found.append(p)
    return found


def page(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as r: return r.status, r.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.read().decode()


def test_a_wrong_token_and_the_health_of_a_replica(port):
    c = Client(port, token="guess")
    assert c.wait(Client.errors)[0]["code"] == "token"
    c.wait(lambda c: c.code == 1008)
    status, body = page(port, "/healthz")
    assert status == 200 and json.loads(body) == dict(status="ok", sessions=0, limit=1, preset="pico")
    assert page(port, "/-/healthz") == (200, "success")              # of the door, for a load balancer


def test_a_replica_dies_and_the_other_talks_on(port):
    two = [Client(port, seed=i) for i in range(2)]
    for c in two:
        c.wait(lambda c: [m for m in c.messages if m["type"] == "ready"])
        c.ws.send(VOICE)                                             # a microphone
        c.wait(lambda c: len(c.blocks) >= 3)
    third = Client(port)                                             # each replica has one place
    assert third.wait(Client.errors)[0]["code"] == "full" and third.wait(lambda c: c.code) == 1013
    status, body = page(port, "/healthz")
    assert (status, json.loads(body)["code"]) == (503, "full")
    processes = replicas()
    assert len(processes) == 2
    os.kill(processes[0].pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while not (dead := [c for c in two if c.code is not None]) and time.monotonic() < until: time.sleep(.02)
    (dead,), (good,) = dead, [c for c in two if c not in dead]
    assert dead.code == 1012 and [(e["code"], e["fatal"]) for e in dead.errors()] == [("lost", True)] and "\n" not in dead.errors()[0]["message"]
    n = len(good.blocks)
    good.ws.send(VOICE)
    good.wait(lambda c: len(c.blocks) > n + 3)
    assert [header["number"] for _, header, _ in good.blocks] == list(range(len(good.blocks))) and good.code is None and not good.errors()
    good.wait(lambda c: len(replicas()) == 2)                        # Ray puts another one in its place
    def comes_back(good):
        good.ws.send(json.dumps(dict(type="ping")))                  # it keeps its place
        c = Client(port)
        return c if c.wait(lambda c: c.messages)[0]["type"] == "ready" else None
    again = good.wait(comes_back)
    again.wait(lambda c: len(c.blocks) >= 2)
    for c in (again, good): c.ws.close()
