"""What the page without Python does in headless Chromium: `python tests/measure_play.py --json results/play.json [--seconds 20]` (after `make play`).

Pictures a second and bytes on the wire for each size and for the choice that the page makes by itself, with threads and, from a server
without the two headers, without. `wall` is what a visitor gets now; `core` is pictures per second of processor time of the page's process,
which says more on a machine that is busy with other things."""
import argparse
import os
import sys
import threading
import time
from pathlib import Path

from browsing import browser, find_browser

from liveavatar_nb.cli import record, write_json

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / "play"))
import serve  # noqa: E402


def spent():
    "Seconds of processor time of the browser's page processes."
    import psutil
    total = 0.
    for p in psutil.Process().children(recursive=True):
        try:
            if "--type=renderer" in " ".join(p.cmdline()):
                total += sum(p.cpu_times()[:2])
        except psutil.Error:
            pass
    return total


def measure(preset, plain, seconds):
    "One visit: load, start, and then blocks as fast as they can be made."
    s = serve.server(root / "play" / "dist", 0, plain)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    try:
        with browser() as b:
            page = b.new_page()
            asked = set()
            page.on("request", lambda r: asked.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
            page.goto(f"http://127.0.0.1:{s.server_address[1]}/")
            page.select_option("#preset", preset)
            begin = time.time()
            page.click("#start")
            page.wait_for_function("__play.running || __play.problems.length", timeout=300_000)
            ready = time.time() - begin
            page.click("#stop")
            state = page.evaluate("({...__play, ask: 0, ms: 0})")
            cpu, wall, blocks = spent(), time.time(), 0
            while time.time() - wall < seconds:
                page.evaluate("async () => { for (let i = 0; i < 4; i++) await __play.ask('block', {samples: new Float32Array(7680)}); }")
                blocks += 4
            cpu, wall = spent() - cpu, time.time() - wall
            hosts = asked - {f"127.0.0.1:{s.server_address[1]}"}
            return dict(asked_for=preset, preset=state["preset"], isolated=state["isolated"], threads=state["threads"], megabytes=round(state["bytes"] / 1e6, 2), ready_s=round(ready, 1),
                        fps_wall=round(12 * blocks / wall, 1), fps_core=round(12 * blocks / cpu, 1), blocks=blocks, other_hosts=sorted(hosts), problems=state["problems"])
    finally:
        s.shutdown()


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--json", default="-")
    args.add_argument("--seconds", type=float, default=15)
    a = args.parse_args()
    if find_browser() is None or not (root / "play" / "dist" / "index.html").exists():
        sys.exit("a Chromium and play/dist are needed: make play")
    load = os.getloadavg()[0]
    visits = [measure(preset, plain, a.seconds) for preset, plain in (("auto", False), ("pico", False), ("nano", False), ("pico", True))]
    whole = record(dict(load_before=round(load, 1), load_after=round(os.getloadavg()[0], 1), browser="headless Chromium, WebAssembly with SIMD", visits=visits), sys.argv[1:])
    write_json(a.json, whole | dict(command="python tests/measure_play.py " + " ".join(sys.argv[1:])))


if __name__ == "__main__":
    main()
