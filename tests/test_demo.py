"""The demo in a real browser. Limits are generous: CI machines are slow and shared; tests/measure_demo.py records the figures."""
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="pip install playwright")
pytest.importorskip("anywidget")
from browsing import (CELLS, HOW, browser, end_kernels, find_browser, kernel_process, kernels, notebook, open_demo, open_page, served,  # noqa: E402
                      server, start, stats, status, wait)

from liveavatar_nb.data.portrait import sample_path  # noqa: E402

pytestmark = pytest.mark.skipif(find_browser() is None, reason=HOW)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    for name in ("demo.ipynb", "first.ipynb", "second.ipynb", "microphone.ipynb"):     # one that ran before would not be run again
        notebook(folder / name, *CELLS)
    (folder / "letter.png").write_text("this is not a picture")
    with server(folder) as address:
        yield address, folder


@pytest.fixture(autouse=True)
def no_kernel_left(request):
    "Each test ends its kernels: they hold memory and, for some seconds, a stream."
    yield
    if "lab" in request.fixturenames:
        end_kernels(request.getfixturevalue("lab")[0])


def well(page):
    assert not page.problems, page.problems
    text = page.inner_text("body")
    assert "Traceback" not in text, text[text.index("Traceback"):][:1500]
    return True


def test_jupyterlab(lab):
    address, folder = lab
    with browser() as b:
        page = open_demo(b, address)
        files = page.locator(".lav-pick input[type=file]")
        files.first.set_input_files(folder / "letter.png")
        wait(lambda: "not a picture" in page.inner_text(".lav-demo"), 30, what="a friendly message")
        page.get_by_role("button", name="2", exact=True).click()
        start(page)
        page.get_by_role("button", name="Say it").click()
        wait(lambda: any(m.startswith("say-") for m in stats(page)["marks"]), 60, what="first spoken frame")
        page.get_by_role("button", name="Happy").click()
        wait(lambda: any(m.startswith("mood-") for m in stats(page)["marks"]), 60, what="change of mood")
        s = stats(page)
        offsets = sorted(s["offsets"])
        assert s["ttff"] is not None and abs(offsets[len(offsets) // 2]) < 150, s["ttff"]
        page.click(".lav-pause")
        time.sleep(1)
        drawn = stats(page)["drawn"]
        time.sleep(1)
        assert stats(page)["drawn"] <= drawn + 1
        page.click(".lav-pause")
        wait(lambda: stats(page)["drawn"] > drawn + 3, 60, what="going on after the pause")
        page.click(".lav-stop")
        wait(lambda: stats(page)["state"] == "idle", 20, what="stop")
        assert well(page) and len(kernels(address)) == 1


def test_two_at_once_and_a_closed_tab(lab):
    address, _ = lab
    with browser() as b:
        first = open_demo(b, address, "first.ipynb")
        start(first)
        process = kernel_process(address, kernels(address)[0]["id"])
        second = open_demo(b, address, "second.ipynb")
        start(second)
        drawn = stats(first)["drawn"]
        wait(lambda: stats(first)["drawn"] > drawn + 12, 60, what="the first one going on")
        assert len(kernels(address)) == 2 and well(first) and well(second)
        first.close()

        def quiet():
            before = process.cpu_times().user
            time.sleep(1)
            return process.cpu_times().user - before < .15
        wait(quiet, 60, what="the closed tab's stream ends")
        drawn = stats(second)["drawn"]
        wait(lambda: stats(second)["drawn"] > drawn + 12, 60, what="the second one going on")


def test_microphone(lab):
    address, _ = lab
    with browser(sample_path("hello.wav")) as b:
        page = open_demo(b, address, "microphone.ipynb")
        page.get_by_role("button", name="Speak").click()
        wait(lambda: len(stats(page)["latencies"]) > 25, 90, what="the answer to the microphone")
        assert stats(page)["mic"] > 0 and .4 < sorted(stats(page)["latencies"])[10] / 1000 < 20
        page.click(".lav-stop")
        wait(lambda: stats(page)["state"] == "idle", 20, what="stop")
        assert well(page)


def test_page_of_its_own(tmp_path):
    "Keyboard, interruption, uploads, a narrow window, the token, and a program that dies."
    with served(tmp_path) as address, browser() as b:
        page = open_page(b, address)
        assert page.hosts == {address.split("/")[2]}, "the page asks another computer"
        assert len(kernel_processes()) == 1, "one visitor, one kernel"
        assert "lav-demo" not in urllib.request.urlopen(address.split("?")[0], timeout=20).read().decode(), "the page without its token"
        page.focus(".lav-start")
        page.keyboard.press("Enter")
        wait(lambda: stats(page)["drawn"] >= 13, 120, what="first frames")
        assert "lav-pause" in page.evaluate("document.activeElement.className"), "the keyboard's place is lost"
        assert well(page) and "import" not in page.inner_text("body")
        interrupts(page)
        pressed = page.evaluate("[...document.querySelectorAll('.widget-toggle-buttons')].map(g => g.querySelectorAll('[aria-pressed=true]').length)")
        assert pressed == [1, 1, 1] and page.evaluate("[...document.querySelectorAll('.jupyter-widget-Collapse-header')].every(h => h.tabIndex === 0)")
        drawers(page)
        uploads(page, tmp_path)
        page.set_viewport_size(dict(width=420, height=900))
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        dies(page)


def interrupts(page):
    "A second sentence cuts the first: silence, and nothing of the old one after it."
    say = lambda text: (page.fill(".lav-text textarea", text), page.keyboard.press("Control+Enter"))
    say("This is a rather long sentence, so that there is something to interrupt, and it goes on and on for quite a while.")
    wait(lambda: "say-1" in stats(page)["marks"], 90, what="the first sentence")
    before = stats(page)["cuts"]          # the first sentence may have cut what was in store, too
    say("Stop.")
    wait(lambda: stats(page)["cuts"] == before + 1 and "say-2" in stats(page)["marks"], 90, what="the interruption")
    s = stats(page)
    assert s["silentAt"] - s["cutAt"] < 400 and s["budget"]["denoise"] > 0


def drawers(page):
    "They stand beside the face at 1280 pixels: an open one pushes nothing away. A lost connection leaves no broken link at each part."
    page.locator(".lav-demo .jupyter-widget-Collapse-header").first.press("Enter")
    wait(lambda: page.locator(".lav-right svg").count(), 30, what="the drawing")
    face, drawer = (page.locator(name).first.bounding_box() for name in (".lav-picture", ".lav-right"))
    assert drawer["x"] >= face["x"] + face["width"] and face["y"] + face["height"] <= 800 and drawer["x"] + drawer["width"] <= 1280
    assert page.evaluate("""() => { const e = document.querySelector('.lav-demo .widget-hbox'); e.classList.add('jupyter-widgets-disconnected');
      const shown = getComputedStyle(e, '::before').display; e.classList.remove('jupyter-widgets-disconnected'); return shown; }""") == "none"


def uploads(page, folder):
    "A photograph of 11 MB is shrunk and its square chosen; what is too large is refused before it is sent; later uploads still work."
    noise = np.random.default_rng(0).integers(0, 255, (2000, 2600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png", compress_level=0)
    assert (folder / "photo.png").stat().st_size > 11e6
    (folder / "huge.png").write_bytes(bytes(50_000_001))
    picture = page.locator(".lav-pick input[type=file]").first
    picture.set_input_files(folder / "huge.png")
    wait(lambda: "at most 50 MB" in page.inner_text(".lav-demo"), 60, what="too large")
    picture.set_input_files(folder / "photo.png")
    page.wait_for_selector(".crop canvas", timeout=90_000)
    assert "drawn faces" in page.inner_text(".crop")
    page.click("text=Use this square")
    wait(lambda: "photo.png is the portrait now" in page.inner_text(".lav-demo"), 60, what="the photograph as portrait")
    wait(lambda: "another face" in page.locator("select").first.evaluate("s => s.selectedOptions[0].text"), 20, what="the menu")


def kernel_processes():
    "Kernels below this process."
    import psutil
    return [p for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]


def dies(page):
    "The watchdog: the kernel is stopped; the page says so."
    stopped = kernel_processes()
    for p in stopped:
        p.suspend()
    wait(lambda: "does not answer" in status(page), 60, what="the watchdog")
    for p in stopped:
        p.resume()
