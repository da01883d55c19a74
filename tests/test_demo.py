"""The demo in a real browser. Limits are generous: CI machines are slow and shared; tests/measure_demo.py records the figures."""
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="pip install playwright")
pytest.importorskip("anywidget")
from browsing import HOW, account, browser, cells, find_browser, kernel_process, kernels, notebook, open_demo, open_page, served, server, start, stats, status, wait  # noqa: E402

from liveavatar_nb.data.portrait import sample_path  # noqa: E402

pytestmark = pytest.mark.skipif(find_browser() is None, reason=HOW)


@pytest.fixture(scope="module")
def chrome():
    "One browser for all; its microphone says hello, over and over."
    with browser(sample_path("hello.wav")) as b:
        yield b


@pytest.fixture(scope="module")
def lab(chrome, tmp_path_factory):
    "The demo in JupyterLab: (page, the server's address)."
    folder = tmp_path_factory.mktemp("lab")
    notebook(folder / "demo.ipynb", *cells())
    with server(folder) as address:
        yield open_demo(chrome, address), address


@pytest.fixture(scope="module")
def own(chrome, tmp_path_factory):
    "The page of `liveavatar-nb demo`: (page, its address)."
    with served(tmp_path_factory.mktemp("own")) as address:
        yield open_page(chrome, address), address


def well(page):
    assert not page.problems, page.problems
    text = page.inner_text("body")
    assert "Traceback" not in text, text[text.index("Traceback"):][:1500]
    return True


def halt(page):
    page.click(".lav-stop")
    wait(lambda: stats(page)["state"] == "idle", 20, what="stop")


def test_jupyterlab(lab, tmp_path):
    page, address = lab
    (tmp_path / "letter.png").write_text("this is not a picture")
    page.locator(".lav-pick input[type=file]").first.set_input_files(tmp_path / "letter.png")
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
    halt(page)
    assert well(page) and len(kernels(address)) == 1


def test_microphone(lab):
    page, _ = lab
    page.get_by_role("button", name="Speak").click()
    wait(lambda: len(stats(page)["latencies"]) > 25, 90, what="the answer to the microphone", seen=lambda: account(page))
    assert stats(page)["mic"] > 0 and .4 < sorted(stats(page)["latencies"])[10] / 1000 < 20
    halt(page)
    assert well(page)


def test_page_of_its_own(own, tmp_path):
    "Keyboard, interruption, uploads, a narrow window, and the token."
    page, address = own
    assert page.hosts == {address.split("/")[2]}, "the page asks another computer"
    assert len(own_kernels()) == 1, "one visitor, one kernel"
    assert "lav-demo" not in urllib.request.urlopen(address.split("?")[0], timeout=20).read().decode(), "the page without its token"
    page.focus(".lav-start")
    page.keyboard.press("Enter")
    wait(lambda: stats(page)["drawn"] >= 13, 120, what="first frames")
    assert "lav-pause" in page.evaluate("document.activeElement.className"), "the keyboard's place is lost"
    assert well(page) and "import" not in page.inner_text("body")
    interrupts(page)
    asks(page)
    pressed = page.evaluate("[...document.querySelectorAll('.widget-toggle-buttons')].map(g => g.querySelectorAll('[aria-pressed=true]').length)")
    assert pressed == [1, 1, 1, 1] and page.evaluate("[...document.querySelectorAll('.jupyter-widget-Collapse-header')].every(h => h.tabIndex === 0)")
    drawers(page)
    uploads(page, tmp_path)
    page.set_viewport_size(dict(width=420, height=900))
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.set_viewport_size(dict(width=1280, height=800))
    halt(page)


CONTRAST = """(names) => {
  const parts = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.map((v) => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > .9) return light(c.slice(0, 3)); } return 1; };
  return names.map((name) => {
    const e = [...document.querySelectorAll('.lav-demo ' + name)].find((x) => x.getClientRects().length);
    const ink = light(parts(getComputedStyle(e).color).slice(0, 3)), paper = behind(e);
    return { name, paper, ratio: (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05) };
  });
}"""


def test_it_can_be_read_by_day_and_by_night(own):
    "Contrast of letters to what is behind them (WCAG: at least 4.5), with the visitor's system set to light and to dark."
    page, _ = own
    names = [".lav-title", ".lav-hint", ".lav-h", "textarea", "select", "input[type=text]", ".widget-label", ".lav-note", ".lav-value", ".lav-say", ".lav-pause", ".lav-pick .lav-button"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for found in page.evaluate(CONTRAST, names):
            assert found["ratio"] >= 4.5, (scheme, found)
            assert found["paper"] < .3 if scheme == "dark" else found["paper"] > .7 or found["name"] == ".lav-say", (scheme, found)
    page.emulate_media(color_scheme="light")


def test_two_at_once_and_a_closed_tab(lab, own):
    "Neither disturbs the other; the stream of the tab that is closed ends, and its kernel rests (measured against the other's work, since this machine may be busy)."
    (first, address), (second, _) = lab, own
    closed, other = kernel_process(address, kernels(address)[0]["id"]), own_kernels()[0]
    for page in (first, second):
        start(page)
    drawn = stats(first)["drawn"]
    wait(lambda: stats(first)["drawn"] > drawn + 12, 60, what="the first one going on")
    assert well(first) and well(second)
    first.close()

    def quiet():
        before, drawn = [p.cpu_times().user for p in (closed, other)], stats(second)["drawn"]
        wait(lambda: stats(second)["drawn"] > drawn + 25, 60, what="the second one going on")
        rest, work = (p.cpu_times().user - b for p, b in zip((closed, other), before))
        return work > .1 and rest < .2 * work
    wait(quiet, 60, what="the closed tab's stream ends")
    halt(second)


def test_a_program_that_stops_is_missed(own):
    "The watchdog: the kernel is stopped; the page says so."
    page, _ = own
    start(page)
    stopped = own_kernels()
    for p in stopped:
        p.suspend()
    try:
        wait(lambda: "does not answer" in status(page), 60, what="the watchdog")
    finally:
        for p in stopped:
            p.resume()


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


def asks(page):
    "A question, sent with Enter, is answered aloud; the line shows the words and a link to the chapter."
    page.get_by_role("tab", name="Ask").click()
    page.fill(".lav-question input", "What is the sink?")
    page.press(".lav-question input", "Enter")
    wait(lambda: "answer-2" in stats(page)["marks"], 90, what="the second sentence of the answer", seen=lambda: account(page))
    link = page.locator("a[data-chapter]").first
    assert "one latent frame" in page.inner_text(".lav-demo") and link.get_attribute("href").endswith("/41_stream_sink.html")
    page.get_by_role("tab", name="Type").click()


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
    wait(lambda: "another face" in page.locator("select").first.evaluate("s => s.selectedOptions[0].text").replace("\xa0", " "), 20, what="the menu")


def own_kernels():
    "Kernels of the page of its own, not JupyterLab's."
    import psutil
    programs = psutil.Process().children(recursive=True)
    page = next(p for p in programs if "voila" in p.cmdline())
    return [p for p in page.children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]
