"""A client of the avatar server that reads in the background, for the tests of one server and of a cluster."""
import json
import threading
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from liveavatar_nb.serve.messages import unpack


class Reader:
    "What came: `messages` (with the time, `at`), `blocks` (time, header, parts), and once it is over `closed` and its `code`."
    def __init__(self, port, seconds):
        self.ws, self.seconds = connect(f"ws://127.0.0.1:{port}/v1/session", max_size=None, open_timeout=90), seconds
        self.messages, self.blocks, self.code, self.closed = [], [], None, threading.Event()
        threading.Thread(target=self.read, daemon=True).start()
    def read(self):
        try:
            for m in self.ws:
                now = time.monotonic()
                if isinstance(m, str): self.messages.append(json.loads(m) | dict(at=now))
                else: self.blocks.append((now, *unpack(m)))
        except ConnectionClosed: pass
        self.code = self.ws.close_code
        self.closed.set()
    def wait(self, test):
        "What `test(client)` gives, as soon as it is something; AssertionError after so many `seconds`."
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            found = test(self)
            if found: return found
            time.sleep(.01)
        raise AssertionError(f"waited in vain: {self.messages[-3:]}, {len(self.blocks)} blocks, closed with {self.code}")
    def errors(self): return [m for m in self.messages if m["type"] == "error"]
