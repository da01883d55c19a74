"""A real browser on a real JupyterLab or Voilà server, for tests/test_demo.py and for the recorded measurements."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SLOW = 4     # every limit below ends a hang, no more: a machine may be four times as slow as the slowest that was thought of
HOW = "no browser: install one (Debian: apt-get install chromium; anywhere: python -m playwright install chromium)"


def find_browser():
    "Path of an installed Chromium or Chrome; '' for Playwright's own; None if there is neither."
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    if os.path.exists(mac):
        return mac
    try:
        from playwright.sync_api import sync_playwright
        with sync_playwright() as p:
            return "" if os.path.exists(p.chromium.executable_path) else None
    except Exception:
        return None


@contextmanager
def browser(wav=None):
    "A headless browser; its microphone plays `wav` over and over."
    from playwright.sync_api import sync_playwright
    path = find_browser()
    flags = FLAGS + ([f"--use-file-for-fake-audio-capture={wav}"] if wav else [])
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path or None, args=flags, ignore_default_args=["--mute-audio", "--hide-scrollbars"])
        try:
            yield b
        finally:
            b.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running(command, folder, log, **env):
    "A server of ours, ended at the end, whatever happens."
    with open(Path(folder) / log, "wb") as out:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, env=dict(os.environ, OMP_NUM_THREADS="1", **env), stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def listening(process, port, log, seconds=120):
    "Wait until the server answers at its port."
    def there():
        if process.poll() is not None:
            raise RuntimeError(Path(log).read_text()[-3000:])
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            return False
    wait(there, seconds, .25, what="the server")


@contextmanager
def server(folder):
    "JupyterLab in `folder`; gives its address. Everything it writes lies in `folder`."
    folder, port = Path(folder), free_port()
    config = folder / ".config"
    settings = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", f"--ServerApp.root_dir={folder}",
               "--IdentityProvider.token=t", "--ServerApp.port_retries=0"]
    with running(command, folder, "lab.log", JUPYTER_CONFIG_DIR=str(config), JUPYTER_DATA_DIR=str(folder / ".data"), JUPYTER_RUNTIME_DIR=str(folder / ".runtime"), IPYTHONDIR=str(folder / ".ipython")) as process:
        listening(process, port, folder / "lab.log")
        address = f"http://127.0.0.1:{port}"
        try:
            yield address
        finally:
            end_kernels(address)


@contextmanager
def served(folder, preset="pico"):
    "The page of `liveavatar-nb demo`; gives its address, token included."
    port, log = free_port(), Path(folder) / "demo.log"
    with running([Path(sys.executable).parent / "liveavatar-nb", "demo", "--preset", preset, "--port", port, "--no-browser"], folder, "demo.log") as process:
        listening(process, port, log)
        yield wait(lambda: next((w for w in log.read_text().split() if w.startswith("http://127.0.0.1") and "token=" in w), None), 60, what="the address")
        process.terminate()
        process.wait(SLOW * 20)
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.1", port)), "the page outlives the command"


def call(address, path, method="GET"):
    request = urllib.request.Request(address + path, method=method, headers={"Authorization": "token t"})
    try:
        with urllib.request.urlopen(request, timeout=10) as r:
            return json.loads(r.read() or b"null")
    except OSError:
        return []


def kernels(address):
    return call(address, "/api/kernels") or []


def end_kernels(address):
    for k in kernels(address):
        call(address, f"/api/kernels/{k['id']}", "DELETE")


def kernel_process(address, name):
    "The process behind a kernel's id."
    import psutil
    return next(p for p in psutil.process_iter(["cmdline"]) if name in " ".join(p.info["cmdline"] or []))


def notebook(path, *cells):
    cell = lambda i, s: dict(cell_type="code", id=f"c{i}", metadata={}, execution_count=None, outputs=[], source=s)
    Path(path).write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(name="python3", display_name="Python 3", language="python")),
                                          cells=[cell(i, s) for i, s in enumerate(cells)])))


def open_lab(page, address, name, timeout=SLOW * 120):
    """Open a notebook that never ran in JupyterLab and run all its cells; returns when the player is there.
    On a busy machine JupyterLab calls a kernel idle before it takes orders, so the order is repeated while the first cell has neither star nor number
    (the star of an order that got lost goes away again).
    (One that ran before has the number already, and with its kernel alive even its old player: it would not be run again.)"""
    page.goto(f"{address}/lab/tree/{name}?reset&token=t", timeout=1000 * timeout)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=1000 * timeout)

    def there():
        if page.locator(".lav-start").count():
            return True
        if page.locator(".jp-InputArea-prompt").first.inner_text().strip() == "[ ]:":
            page.keyboard.press("Escape")
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
    wait(there, timeout / SLOW, 2, what="the player", seen=lambda: f"kernels {kernels(address)}; the page shows:\n{page.inner_text('body')[-1500:]}")


def stats(page):
    "The player's own numbers."
    return page.evaluate("""() => { const s = Object.values(window.__liveavatar || {}).at(-1); if (!s) return null;
      const { offsets, latencies, ...rest } = s; return { ...rest, offsets: offsets.slice(-3000), latencies: latencies.slice(-3000) }; }""")


def wait(condition, seconds=30, step=.1, what="condition", seen=lambda: ""):
    "Until `condition()` is true; its value. `seen()` is added to the complaint of one that never was."
    end = time.monotonic() + SLOW * seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(step)
    raise TimeoutError(f"{what}: not within {SLOW * seconds} s {seen()}".rstrip())


def account(page):
    "What the page says and what its player counts, in short: for complaints."
    s = stats(page) or {}
    return status(page), {k: v for k, v in s.items() if k not in ("offsets", "latencies")}


def status(page):
    return page.locator(".lav-note").first.text_content()


def loaded(page, seconds=120):
    "Weights warm: the page invites to start."
    wait(lambda: "Press Start" in (status(page) or ""), seconds, what="weights loaded")


def cells(preset="pico"):
    return (f"from liveavatar_nb.demo.app import Demo\ndemo = Demo('{preset}')\ndemo",)


def watched(browser):
    "A page of 1280 × 800 that remembers its scripts' errors."
    page = browser.new_page(viewport=dict(width=1280, height=800))
    page.set_default_timeout(SLOW * 30_000)
    page.problems, page.hosts = [], set()
    page.on("request", lambda r: page.hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
    page.on("pageerror", lambda e: page.problems.append(f"{e}\n{e.stack}") if "blob:" in (e.stack or "blob:") else None)     # our scripts; JupyterLab has troubles of its own
    return page


def open_demo(browser, address, name="demo.ipynb"):
    "A page with the demo in JupyterLab, ready to start."
    page = watched(browser)
    open_lab(page, address, name)
    loaded(page)
    return page


def open_page(browser, address):
    "A page with the demo as `liveavatar-nb demo` serves it, ready to start."
    page = watched(browser)

    def there():
        try:
            return page.goto(address, timeout=SLOW * 60_000)      # each try costs a kernel
        except Exception:
            return None
    wait(there, 120, 1, what="the page")
    page.wait_for_selector(".lav-start", timeout=SLOW * 120_000)
    loaded(page)
    return page


def start(page, frames=13):
    page.click(".lav-start")
    wait(lambda: stats(page)["drawn"] >= frames, 60, what="first frames")
