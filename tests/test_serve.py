"""The server: one clear answer to everything that goes wrong, while the sessions that behave keep their pace. Loopback only, fresh weights."""
import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra `serve`")
uvicorn = pytest.importorskip("uvicorn")
from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from liveavatar_nb.cli import main  # noqa: E402
from liveavatar_nb.serve.server import House, make_app  # noqa: E402
from liveavatar_nb.stream.avatar import untrained  # noqa: E402
from talking import Reader  # noqa: E402

HELLO = dict(type="hello", token="secret")
VOICE = (3000 * np.random.default_rng(0).standard_normal(32_000)).clip(-32768, 32767).astype("<i2").tobytes()


class Server:
    def __init__(self, **options):
        self.house = House(untrained("pico", levels=(1., 0.), policy="timestep", window_frames=3), "secret", **options).warm()
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        self.port = door.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(make_app(self.house), log_level="error", ws_ping_interval=2, ws_ping_timeout=15))
        self.thread = threading.Thread(target=self.server.run, kwargs=dict(sockets=[door]), daemon=True)
        self.thread.start()
        while not self.server.started: time.sleep(.02)
        self.url = f"ws://127.0.0.1:{self.port}/v1/session"
    def get(self, path, token="secret"):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=dict(Authorization=f"Bearer {token}"))
        try:
            with urllib.request.urlopen(request, timeout=60) as r: return r.status, r.read().decode()
        except urllib.error.HTTPError as e: return e.code, e.read().decode()
    def count(self, name):
        return next((float(line.split()[-1]) for line in self.get("/metrics")[1].splitlines() if line.startswith(name)), 0.)
    def empty(self, seconds=90):
        until = time.monotonic() + seconds
        while self.house.seats and time.monotonic() < until: time.sleep(.05)
        return not self.house.seats


@pytest.fixture(scope="module")
def server():
    torch.set_num_threads(1)
    s = Server(limit=4, idle=300., stall=60., patience=60.)      # a busy machine is not an idle client; tests of these limits set their own
    yield s
    s.server.should_exit = True
    s.thread.join(10)


class Client(Reader):
    "Says hello, unless it is `silent`."
    def __init__(self, server, silent=False, **hello):
        super().__init__(server.port, 150)
        if not silent: self.send(**{**HELLO, **hello})
    def send(self, data=None, **message): self.ws.send(json.dumps(message) if data is None else data)
    def error(self): return self.wait(Reader.errors)[0]
    def close(self): self.ws.close()


def test_talk_interrupt_and_go(server):
    c = Client(server, image="robo", prompt="a person, calm, still", seed=3)
    ready = c.wait(lambda c: next((m for m in c.messages if m["type"] == "ready"), None))
    assert ready["size"] == [64, 64] and ready["seconds"] == .48
    assert ready["film"] in [seat.session.stamp.film.hex() for seat in server.house.seats]       # what the invisible mark says
    c.send(type="utterance", mark="a")
    for i in range(0, len(VOICE), 9998): c.send(VOICE[i:i + 9998])
    c.send(type="end")
    c.wait(lambda c: any(h["begins"] == ["a"] for _, h, _ in c.blocks))
    c.send(type="interrupt", shown=c.blocks[-1][1]["number"])
    epoch = c.wait(lambda c: [m for m in c.messages if m["type"] == "stop"][1:])[0]["epoch"]
    at = len(c.blocks)
    c.wait(lambda c: len(c.blocks) > at + 1)
    new = [(h, parts) for _, h, parts in c.blocks if h["epoch"] == epoch]
    assert new and not any(h["speech"] or any(p[-1]) for h, p in new) and len(new[0][1]) == 13
    c.close()
    assert server.empty()


def test_film_as_mp4_plays(server, tmp_path, monkeypatch):
    import av
    monkeypatch.setattr(server.house, "mark", False)     # serve --no-mark
    c = Client(server, format="mp4", block_frames=1)
    assert c.wait(lambda c: c.messages)[0]["film"] is None and next(iter(server.house.seats)).session.stamp is None
    c.send(VOICE)                                        # a microphone
    c.wait(lambda c: len(c.blocks) >= 12)
    c.close()
    (tmp_path / "a.mp4").write_bytes(b"".join(parts[0] for _, _, parts in c.blocks))
    assert [h["number"] for _, h, _ in c.blocks] == list(range(len(c.blocks)))
    with av.open(str(tmp_path / "a.mp4")) as f: assert sum(1 for _ in f.decode(video=0)) >= 4 * (len(c.blocks) - 2)
    with av.open(str(tmp_path / "a.mp4")) as f: assert any(np.abs(s.to_ndarray()).max() > .01 for s in f.decode(audio=0))
    assert server.empty()


@pytest.mark.parametrize("sends, code", [
    ([dict(type="hello", token="guess")], "token"), ([dict(type="hello")], "token"), ([dict(type="say", text="x")], "hello"), ([b"\0\0"], "hello"), (["["], "json"),
    ([dict(HELLO, rate=44100)], "rate"), ([dict(HELLO, format="gif")], "format"), ([dict(HELLO, image="../x")], "image"), ([dict(HELLO, block_frames=7)], "block_frames"),
    ([dict(HELLO, prompt="x" * 5000)], "field"), ([], "slow")])
def test_refused_at_the_door(server, sends, code, monkeypatch):
    if code == "slow": monkeypatch.setattr(server.house, "patience", 1.)
    c = Client(server, silent=True)
    for s in sends: c.send(s if isinstance(s, bytes) else s if isinstance(s, str) else json.dumps(s))
    e = c.error()
    assert e["code"] == code and e["fatal"] and len(e["message"]) < 200 and "\n" not in e["message"] and "Traceback" not in e["message"]
    assert c.closed.wait(60) and not c.blocks and len([m for m in c.messages if m["type"] == "error"]) == 1
    assert server.empty()


def test_mistakes_do_not_end_a_session(server):
    c = Client(server)
    wrong = [(b"abc", "sound"), (b"\0" * (1 << 20) + b"\0\0", "size"), ('{"type": "sing"}', "type"), ('{"type": "change", "steps": 0}', "value"), ('{"type": "say", "text": " "}', "value"),
             ('{"type": "say", "text": "x", "voice": "nobody"}', "value"), ('{"type": "change", "policy": "no"}', "value"), ('{"type": "hello", "token": "secret"}', "hello"), ("nonsense", "json")]
    for data, code in wrong:
        n = len(c.messages)
        c.send(data)
        assert c.wait(lambda c: [m for m in c.messages[n:] if m["type"] == "error"])[0]["code"] == code
    c.send(type="ping")
    c.wait(lambda c: any(m["type"] == "pong" for m in c.messages))
    c.send(type="ask", text="what is the sink?")
    assert c.wait(lambda c: [m for m in c.messages if m["type"] == "answer"])[0]["chapter"] == "41_stream.sink"
    n = len(c.blocks)
    c.wait(lambda c: len(c.blocks) > n)
    c.close()
    assert server.empty()


def test_full_idle_health_and_token(server, monkeypatch):
    clients = [Client(server) for _ in range(4)]
    for c in clients: c.wait(lambda c: c.messages)
    assert Client(server).error()["code"] == "full"
    status, body = server.get("/healthz", token="")
    assert status == 503 and json.loads(body) == dict(status="full", sessions=4, limit=4, preset="pico")
    monkeypatch.setattr(server.house, "idle", 2.)                # seconds of silence
    for c in clients: assert c.wait(lambda c: [m for m in c.messages if m["type"] == "error"])[0]["code"] == "idle" and c.closed.wait(60)
    assert server.empty() and server.get("/healthz")[0] == 200
    assert server.get("/metrics", token="wrong")[0] == 401 and server.get("/v1/voices", token="")[0] == 401
    assert "en-ada" in server.get("/v1/voices")[1] and "ada" in server.get("/v1/portraits")[1]
    assert server.count("liveavatar_sessions ") == 0 and server.count('liveavatar_sessions_ended_total{reason="idle"}') >= 4
    page = server.get("/docs", token="")[1]
    assert "utterance" in page and "http" not in page        # loads nothing from elsewhere
    assert "/v1/voices" in json.loads(server.get("/openapi.json")[1])["paths"]


def raw(server, hello=HELLO):
    "A websocket by hand, so that it can stop reading or vanish without goodbye."
    s = socket.create_connection(("127.0.0.1", server.port))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.sendall(b"GET /v1/session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
    assert b"101" in s.recv(400)
    data = json.dumps(hello).encode()
    s.sendall(bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data)
    return s


def test_stalled_and_vanished_clients_end_alone(server, monkeypatch):
    monkeypatch.setattr(server.house, "stall", 1.5)
    good = Client(server)
    good.wait(lambda c: len(c.blocks) >= 2)
    stalled, vanished = raw(server), raw(server)
    time.sleep(.5)
    vanished.close()
    for _ in range(400):                                     # the good one keeps talking; the others must go
        good.send(type="ping")
        if len(server.house.seats) == 1: break
        time.sleep(.3)
    assert len(server.house.seats) == 1 and not good.closed.is_set()
    n = len(good.blocks)
    good.wait(lambda c: len(c.blocks) > n + 1)
    stalled.close(); good.close()
    assert server.empty()


def test_a_thousand_connections(server):
    "All but four are refused with one message; a session that runs keeps its pace."
    good = Client(server)
    good.wait(lambda c: len(c.blocks) >= 4)
    before = np.diff([t for t, *_ in good.blocks])
    n, codes, lock = len(good.blocks), [], threading.Lock()
    def knock(count):
        for i in range(count):
            try:
                with connect(server.url, max_size=None, open_timeout=120) as ws:
                    ws.send(json.dumps(dict(HELLO, token="guess" if i % 2 else "")))
                    m = json.loads(ws.recv(timeout=120))
            except Exception as e: m = dict(code=repr(e))
            with lock: codes.append(m.get("code"))
    threads = [threading.Thread(target=knock, args=(100,)) for _ in range(10)]
    for t in threads: t.start()
    while any(t.is_alive() for t in threads): good.send(type="ping"); time.sleep(.5)
    during = np.diff([t for t, *_ in good.blocks[n:]])
    good.close()
    assert len(codes) == 1000 and set(codes) <= {"token", "slow"} and codes.count("token") > 900, set(codes)
    assert len(during) >= 3 and np.median(during) < max(1.5, 3 * np.median(before)), (np.median(before), np.median(during))
    assert server.empty()


def test_sessions_killed_at_random_leave_nothing(server):
    "Twenty sessions begin, talk and are killed at random moments; memory and threads stay."
    r, process = random.Random(0), psutil.Process()
    def one(i):
        c = Client(server, block_frames=r.choice([1, 3]), format=r.choice(["jpeg", "mp4"]))
        try:
            c.wait(lambda c: c.messages)
            c.send(VOICE)
            time.sleep(r.uniform(.1, 1.))
            if i % 2: c.ws.socket.shutdown(socket.SHUT_RDWR)  # without goodbye
            else: c.close()
        except (ConnectionClosed, OSError): pass
    def batch(n):
        for i in range(0, n, 4):
            threads = [threading.Thread(target=one, args=(i + k,)) for k in range(4)]
            for t in threads: t.start()
            for t in threads: t.join()
            assert server.empty()
    batch(8)                                                 # libraries and pools have grown
    memory, threads = process.memory_info().rss, process.num_threads()
    batch(20)
    grown = (process.memory_info().rss - memory) / 2**20
    assert grown < 60 and process.num_threads() <= threads + 2, (grown, threads, process.num_threads())


@pytest.mark.parametrize("words, says", [(["--token", "none", "--host", "0.0.0.0"], "only on this computer"), (["--port", "0"], "from 1 to 65535"),
                                         (["--llm", "http://x"], "--model"), (["--preset", "huge"], "unknown preset")])
def test_command_line_refuses(words, says, capsys):
    assert main(["serve", "--preset", "pico", *words]) in (1, 2)
    assert says in capsys.readouterr().err
