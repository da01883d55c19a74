"""The demo in a real browser: JupyterLab, a click on Start, film with sound; closing the tab ends it. Limits are generous: CI machines are slow and shared."""
import time

import pytest

pytest.importorskip("playwright", reason="pip install playwright")
pytest.importorskip("anywidget")
from browsing import HOW, browser, find_browser, kernels, loaded, notebook, open_lab, server, stats, status, wait  # noqa: E402

pytestmark = pytest.mark.skipif(find_browser() is None, reason=HOW)


def test_demo_in_jupyterlab(tmp_path):
    notebook(tmp_path / "demo.ipynb", "from liveavatar_nb.demo.app import Demo\ndemo = Demo()\ndemo")
    with server("lab", tmp_path) as address, browser() as b:
        page, errors = b.new_page(viewport=dict(width=1280, height=800)), []
        page.on("pageerror", lambda e: errors.append(str(e)))
        open_lab(page, address, "demo.ipynb")
        loaded(page)
        page.get_by_role("button", name="2", exact=True).click()
        page.click(".lav-start")
        wait(lambda: stats(page)["drawn"] > 12, 60, what="first frames")
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
        assert not errors and "Traceback" not in page.content()
        assert len(kernels(address)) == 1
