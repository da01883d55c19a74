"""The page without Python, in a real browser: the same film as Python's player, the switches, pictures that are refused, and life without threads."""
import base64
import math
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import browsing

LONG = 240_000     # ms: ends a hang, no more
root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / "play"))
if not (root / "play").is_dir():
    pytest.skip("no sources here", allow_module_level=True)
if browsing.find_browser() is None:
    pytest.skip(browsing.HOW, allow_module_level=True)
if not shutil.which("npm"):
    pytest.skip("npm isn't installed (Node.js): the page can't be built", allow_module_level=True)

import build  # noqa: E402
import serve  # noqa: E402
from liveavatar_nb.data.audio import load_audio  # noqa: E402
from liveavatar_nb.serve.export import OnnxStream  # noqa: E402


@pytest.fixture(scope="module")
def dist(exported_nano, tmp_path_factory):
    out = tmp_path_factory.mktemp("play") / "dist"
    try:
        build.build(out, presets=("nano",), given=exported_nano[0].parent)
    except build.Offline as e:
        pytest.skip(str(e))
    return out


@pytest.fixture(scope="module")
def chrome():
    with browsing.browser() as b:
        yield b


def host(folder, plain=False):
    s = serve.server(folder, 0, plain)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    return s, f"http://127.0.0.1:{s.server_address[1]}/"


@pytest.fixture(scope="module")
def page(chrome, dist):
    s, address = host(dist)
    page = chrome.new_page(viewport=dict(width=1100, height=800))
    page.asked, page.wrong = [], []
    page.on("request", lambda r: page.asked.append(r.url))
    page.on("pageerror", lambda e: page.wrong.append(str(e)))
    begin(page, address)
    yield page
    s.shutdown()


def begin(page, address):
    page.goto(address)
    page.select_option("#preset", "nano")
    page.click("#start")
    page.wait_for_function("window.__play.running || window.__play.problems.length", timeout=LONG)


PACKED = "(bytes) => { let s = ''; for (let i = 0; i < bytes.length; i += 32768) s += String.fromCharCode(...bytes.subarray(i, i + 32768)); return btoa(s); }"


def pixels(page, expression, *given, shape=(-1, 128, 128)):
    "Pictures out of the page's RGBA bytes; as a list of numbers they would take seconds."
    text = page.evaluate(f"async (g) => ({PACKED})({expression})", *given)
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(*shape, 4)[..., :3]


def noise(n, seed, block, step):
    "play/stream.js, word for word: mulberry32 and Box-Muller."
    m = 0xFFFFFFFF
    a = (seed * 0x9E3779B1 ^ (block + 1) * 0x85EBCA77 ^ (step + 1) * 0xC2B2AE3D) & m

    def uniform():
        nonlocal a
        a = (a + 0x6D2B79F5) & m
        t = (a ^ a >> 15) * (a | 1) & m
        t = (t + ((t ^ t >> 7) * (t | 61) & m) & m) ^ t
        return ((t ^ t >> 14) & m) / 2 ** 32
    out = []
    for _ in range(0, n, 2):
        r, w = math.sqrt(-2 * math.log(1 - uniform())), 2 * math.pi * uniform()
        out += [r * math.cos(w), r * math.sin(w)]
    return np.array(out[:n], np.float32)


def test_it_runs_threads_and_asks_nobody_else(page):
    state = page.evaluate("({...__play, ask: 0})")
    assert state["isolated"] and state["threads"] >= 2 or not page.evaluate("navigator.hardwareConcurrency > 1")
    assert state["bytes"] <= 25e6 and {u.split("/")[2] for u in page.asked if u.startswith("http")} == {page.url.split("/")[2]}
    assert page.wrong == [] and state["problems"] == []


def test_the_same_film_as_in_python(page, exported_nano):
    "Four blocks, the last two of one latent frame, history and sink changed on the way: bytes equal to within one level."
    voice = load_audio(root / "data/samples/hello.wav")
    rgb = np.asarray(__import__("PIL.Image").Image.open(root / "data/samples/robo.png").convert("RGB").resize((128, 128)))
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    plan = [(7680, {}), (7680, {}), (2560, dict(policy="clean")), (2560, dict(rolling=False, refresh_at=1))]
    ours = OnnxStream(exported_nano[0], 1, lambda shape, block, step: noise(math.prod(shape), 7, block, step).reshape(shape)).start(rgb, "happy")
    page.evaluate("""(p) => { __play.running = false; return __play.ask('start', {rgba: new Uint8ClampedArray(p), text: 'happy', seed: 7}); }""", rgba.ravel().tolist())
    at, worst = 0, 0
    for n, settings in plan:
        if settings:
            page.evaluate("(s) => __play.ask('change', {settings: s})", settings)
            if settings.get("policy") == "clean":
                ours.windows = ours.windows[-1:]
            ours.config.update(settings)
            if "refresh_at" in settings and ours.number > settings["refresh_at"]:
                ours.set_sink(ours.first)
        sound = voice[at:at + n]
        at += n
        mine = np.clip(np.round((ours.block(sound) + 1) * 127.5), 0, 255)
        theirs = pixels(page, "(await __play.ask('block', {samples: Float32Array.from(g)})).rgba", sound.tolist())
        worst = max(worst, np.abs(theirs - mine).max())
    page.evaluate("__play.ask('change', {settings: {policy: 'timestep', rolling: true, refresh_at: null}})")
    assert worst <= 1 and mine.std() > 10


def test_it_talks_and_can_be_switched_while_it_does(page):
    if page.is_enabled("#stop"):
        page.click("#stop")
    page.click("#start")
    page.wait_for_function("__play.running && __play.shown > 0", timeout=LONG)
    page.click("#say")
    look = "document.getElementById('face').getContext('2d').getImageData(0, 0, 128, 128).data"
    pictures = []
    for choose in (("#policy", "clean"), ("#policy", "fixed"), ("#sink", "full"), ("#sink", "plain"), ("#frames", "1"), ("#policy", "timestep"), ("#text", "sad")):
        before = page.evaluate("__play.blocks")
        page.select_option(*choose)
        page.wait_for_function(f"__play.blocks > {before} + 1", timeout=LONG)
        pictures.append(pixels(page, look)[0].astype(int))
    assert page.evaluate("__play.problems") == [] and page.wrong == []
    assert all(np.abs(a - b).max() > 10 for a, b in zip(pictures, pictures[1:])) and min(p.std() for p in pictures) > 10


def test_a_face_by_keyboard_and_a_picture_by_its_square(page, tmp_path):
    from PIL import Image
    page.focus("#faces button[aria-checked=true]")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#faces button:focus", "data-name") == "robo"
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "red.png")
    page.set_input_files("#picture", tmp_path / "red.png")
    page.wait_for_selector("#crop canvas")
    assert "drawn faces" in page.inner_text("#crop")
    page.keyboard.press("ArrowLeft"); page.keyboard.press("-")
    page.click("text=Use this square")
    page.wait_for_function("document.getElementById('note').textContent.includes('is the portrait now')")
    before = page.evaluate("__play.shown")
    page.wait_for_function(f"__play.shown > {before} + 14", timeout=LONG)
    pixel = page.evaluate("Array.from(document.getElementById('face').getContext('2d').getImageData(64, 64, 1, 1).data)")
    assert pixel[0] > 110 > max(pixel[1:3])


@pytest.mark.parametrize("name, data, says", [
    ("fake.png", b"not a picture", "not a picture"),
    ("big.png", b"\x89PNG" + bytes(20_000_001), "at most 20 MB"),
])
def test_what_is_no_picture_is_refused_in_one_line(page, tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    page.set_input_files("#picture", tmp_path / name)
    page.wait_for_function(f"document.getElementById('note').textContent.includes({says!r})")
    assert not page.locator("#crop canvas").count()


def test_nothing_is_cut_off_at_420_pixels(page):
    page.set_viewport_size(dict(width=420, height=900))
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.set_viewport_size(dict(width=1100, height=800))


def test_without_the_headers_it_runs_on_one_thread(chrome, dist):
    s, address = host(dist, plain=True)
    page = chrome.new_page()
    begin(page, address)
    assert page.evaluate("[__play.isolated, __play.threads, __play.running]") == [False, 1, True]
    assert "does not isolate" in page.inner_text("#threads")
    page.close()
    s.shutdown()


def test_a_page_that_is_not_complete_says_so(chrome, dist, tmp_path):
    shutil.copytree(dist, tmp_path / "dist", ignore=shutil.ignore_patterns("*.weights"))
    s, address = host(tmp_path / "dist")
    page = chrome.new_page()
    begin(page, address)
    assert "make play" in page.inner_text("#note") and page.is_enabled("#start")
    page.close()
    s.shutdown()


def test_without_the_registry_the_build_says_so_in_one_line(monkeypatch, tmp_path):
    answer = lambda says: lambda *a, **k: subprocess.CompletedProcess(a, 1, stderr=f"npm error code {says}\nnpm error more")
    for says, kind in (("EAI_AGAIN", build.Offline), ("EUSAGE", SystemExit)):
        monkeypatch.setattr(subprocess, "run", answer(says))
        with pytest.raises(SystemExit, match=says) as e:
            build.runtime(tmp_path / "ort")
        assert type(e.value) is kind and "\n" not in str(e.value) and not (tmp_path / "ort").exists()
