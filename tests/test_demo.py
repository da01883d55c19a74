"""The demo in a real browser. Limits are generous: CI machines are slow and shared; tests/measure_demo.py records the figures."""
import time

import pytest

pytest.importorskip("playwright", reason="pip install playwright")
pytest.importorskip("anywidget")
from browsing import CELLS, HOW, browser, find_browser, kernel_process, kernels, notebook, open_demo, open_page, served, server, start, stats, wait  # noqa: E402

from liveavatar_nb.data.portrait import sample_path  # noqa: E402

pytestmark = pytest.mark.skipif(find_browser() is None, reason=HOW)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    for name in ("demo.ipynb", "second.ipynb"):
        notebook(folder / name, *CELLS)
    (folder / "letter.png").write_text("this is not a picture")
    with server(folder) as address:
        yield address, folder


def well(page):
    return not page.problems and "Traceback" not in page.content()


def test_jupyterlab(lab):
    address, folder = lab
    with browser() as b:
        page = open_demo(b, address)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Upload").first.click()
        chooser.value.set_files(folder / "letter.png")
        wait(lambda: "can't be used as a portrait" in page.inner_text(".lav-demo"), 30, what="a friendly message")
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
        first = open_demo(b, address)
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
        page = open_demo(b, address)
        page.get_by_role("button", name="Speak").click()
        wait(lambda: len(stats(page)["latencies"]) > 25, 90, what="the answer to the microphone")
        assert stats(page)["mic"] > 0 and .4 < sorted(stats(page)["latencies"])[10] / 1000 < 20
        page.click(".lav-stop")
        wait(lambda: stats(page)["state"] == "idle", 20, what="stop")
        assert well(page)


def test_page_of_its_own(tmp_path):
    with served(tmp_path) as address, browser() as b:
        page = open_page(b, address)
        start(page)
        assert well(page) and "import" not in page.inner_text("body")
