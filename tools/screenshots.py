"""`make screenshots`: pictures of the demo and of the page without Python, by a real browser, into docs/screenshots.

    python tools/screenshots.py            # makes them, and writes down which weights they show
    python tools/screenshots.py --check    # says which weights changed since; exit code 1 then"""
import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

root = Path(__file__).resolve().parents[1]
shots, weights = root / "docs" / "screenshots", root / "liveavatar_nb" / "weights"
SHOWN = ("pico_student", "nano_student", "nano_vae")


def now():
    "{weights: checksum} of what the pictures would show."
    return {name: hashlib.sha256((weights / f"{name}.safetensors").read_bytes()).hexdigest()[:16] for name in SHOWN}


def older(made, current):
    "Names of the weights that are not those in the pictures."
    return [name for name, sum_ in current.items() if made.get("weights", {}).get(name) != sum_]


def talking(page, browsing):
    browsing.start(page)
    page.fill(".lav-text textarea", "Hello! I am a drawn face, and every picture of me is made while you watch.")
    page.click("button.lav-say")
    browsing.wait(lambda: any(m.startswith("say-") for m in browsing.stats(page)["marks"]), 120, what="the sentence")
    time.sleep(2.5)


def demo(browsing, folder, out, preset):
    "The page of `liveavatar-nb demo`, quiet, talking, and on a narrow screen."
    with browsing.served(folder, preset) as address, browsing.browser() as b:
        page = browsing.open_page(b, address)
        page.screenshot(path=out / "demo_page.png")
        page.locator("select").first.select_option(label="Robo (robot)")
        talking(page, browsing)
        page.screenshot(path=out / "demo_talking.png")
        page.set_viewport_size(dict(width=420, height=900))
        time.sleep(.5)
        page.screenshot(path=out / "demo_narrow.png")


def play(browsing, out):
    "The page without Python, if it is built."
    if not (root / "play" / "dist" / "index.html").exists():
        print("without the page in play/: it isn't built (make play)")
        return
    sys.path.insert(0, str(root / "play"))
    import serve
    s = serve.server(root / "play" / "dist")
    threading.Thread(target=s.serve_forever, daemon=True).start()
    with browsing.browser() as b:
        page = b.new_page(viewport=dict(width=1100, height=780))
        page.goto(f"http://127.0.0.1:{s.server_address[1]}/")
        page.select_option("#preset", "pico")
        page.focus("#faces button"), page.keyboard.press("ArrowRight")
        page.click("#say")
        page.wait_for_function("__play.running && __play.shown > 60", timeout=240_000)
        page.screenshot(path=out / "play.png")
    s.shutdown()


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--check", action="store_true")
    args.add_argument("--preset", default="pico")
    args = args.parse_args()
    record = shots / "made.json"
    if args.check:
        changed = older(json.loads(record.read_text()) if record.exists() else {}, now())
        print(f"docs/screenshots is older than {', '.join(changed)}: make screenshots" if changed else "docs/screenshots shows the weights of now")
        return int(bool(changed))
    sys.path.insert(0, str(root / "tests"))
    import browsing
    if browsing.find_browser() is None:
        sys.exit(browsing.HOW)
    with tempfile.TemporaryDirectory() as folder:
        demo(browsing, folder, shots, args.preset)
    play(browsing, shots)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    record.write_text(json.dumps(dict(command="make screenshots", commit=commit, date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), weights=now()), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
