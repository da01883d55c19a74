"""What the demo feels like in a real browser: `python tests/measure_demo.py --json results/demo.json [--minutes 10] [--shots docs/screenshots]`.

JupyterLab and the page of `liveavatar-nb demo`, driven by Playwright in headless Chromium; times are the page's own."""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from browsing import browser, cells, find_browser, kernel_process, kernels, notebook, open_demo, open_page, served, server, start, stats, wait

from liveavatar_nb.cli import record, write_json
from liveavatar_nb.data.portrait import sample_path


def heap(page):
    "Megabytes that the page's scripts hold after a collection."
    cdp = page.context.new_cdp_session(page)
    cdp.send("HeapProfiler.collectGarbage")
    cdp.send("Performance.enable")
    used = next(m["value"] for m in cdp.send("Performance.getMetrics")["metrics"] if m["name"] == "JSHeapUsedSize")
    cdp.detach()
    return used / 2**20


def film(page):
    "The player's account of the film so far."
    s = stats(page)
    offsets = np.array(s["offsets"])
    return dict(frames=s["drawn"], fps_shown=round(s["average"], 2), dropped=s["dropped"], gaps_over_200_ms=s["gaps"], worst_gap_ms=round(s["worst"]),
                first_frame_s=round(s["ttff"], 3) if s["ttff"] else None,
                sound_ahead_ms=dict(median=round(float(np.median(offsets)), 1), p01=round(float(np.percentile(offsets, 1)), 1), p99=round(float(np.percentile(offsets, 99)), 1),
                                    within_80=round(float((abs(offsets) <= 80).mean()), 4)))


def asked(page, mark, act):
    "Seconds from an action to the first frame that carries its mark."
    before = {m for m in stats(page)["marks"] if m.startswith(mark)}
    start = page.evaluate("performance.now()")
    act()
    name = wait(lambda: next((m for m in stats(page)["marks"] if m.startswith(mark) and m not in before), None), 30, .02, what=mark)
    return round((stats(page)["marks"][name] - start) / 1000, 3)


def stream(b, address, seconds, shots):
    "Start, talk, change the mood."
    page = open_demo(b, address)
    shot(page, shots, "demo_ready")
    start(page)
    time.sleep(seconds)
    out = dict(idle=film(page))
    cuts = stats(page)["gaps"]
    out["sentence_s"] = [asked(page, "say-", lambda: page.get_by_role("button", name="Say it").click())]
    for mood in ("Happy", "Sad", "Angry"):
        out.setdefault("mood_s", []).append(asked(page, "mood-", lambda m=mood: page.get_by_role("button", name=m).click()))
        time.sleep(2)
    shot(page, shots, "demo_talking")
    out["sentence_s"].append(asked(page, "say-", lambda: page.get_by_role("button", name="Say it").click()))
    time.sleep(5)
    out |= dict(gaps_at_changes=stats(page)["gaps"] - cuts, talking=film(page), problems=page.problems)
    for k in range(3):
        page.locator(".lav-demo .jupyter-widget-Collapse-header").nth(k).click()
        time.sleep(2.5)
        shot(page, shots, f"demo_inside_{k + 1}")
    page.close()
    return out


def two(b, address):
    "Two demos at once; then one tab is closed."
    pages = [open_demo(b, address, name) for name in ("demo.ipynb", "second.ipynb")]
    for page in pages:
        start(page)
    time.sleep(15)
    out = dict(both=[film(p) for p in pages])
    used = {k["id"]: kernel_process(address, k["id"]) for k in kernels(address)}
    before = {k: p.memory_info().rss / 2**20 for k, p in used.items()}
    pages[0].close(run_before_unload=False)
    drawn = stats(pages[1])["drawn"]
    busy = {k: p.cpu_times().user for k, p in used.items()}
    time.sleep(8)
    spent = {k: p.cpu_times().user - busy[k] for k, p in used.items()}
    ended = min(spent, key=spent.get)
    out |= dict(after_closing=dict(other_goes_on_fps=round((stats(pages[1])["drawn"] - drawn) / 8, 2), closed_kernel_cpu_s_of_8=round(spent[ended], 2),
                                   closed_kernel_mb=[round(before[ended]), round(used[ended].memory_info().rss / 2**20)]))
    pages[1].close()
    return out


def long(b, address, minutes):
    "A long run: memory and sync, once a minute."
    page = open_demo(b, address)
    process, rows = kernel_process(address, kernels(address)[0]["id"]), []
    start(page)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        page.get_by_role("button", name="Say it").click()
        time.sleep(min(30, max(1, end - time.monotonic())))
        s = stats(page)
        rows.append(dict(minute=round(minutes - (end - time.monotonic()) / 60, 2), kernel_mb=round(process.memory_info().rss / 2**20, 1), page_mb=round(heap(page), 1),
                         sound_ahead_ms=round(float(np.median(s["offsets"][-250:])), 1), gaps=s["gaps"]))
    first = rows[min(1, len(rows) - 1)]
    out = dict(minutes=minutes, film=film(page), kernel_growth_mb=round(rows[-1]["kernel_mb"] - first["kernel_mb"], 1), page_growth_mb=round(rows[-1]["page_mb"] - first["page_mb"], 1), rows=rows)
    page.close()
    return out


def microphone(address, latent_frames=3):
    "Chromium's fake microphone plays a recording; the page measures from its sound to the picture, and where the time goes."
    with browser(sample_path("hello.wav")) as b:
        page = open_demo(b, address)
        if latent_frames == 1:
            page.evaluate("[...document.querySelectorAll('.widget-toggle-button')].find((b) => b.textContent.startsWith('1 (0.16')).click()")
        page.get_by_role("button", name="Speak").click()
        wait(lambda: len(stats(page)["latencies"]) > 25, 60, what="the first answers")
        budgets = []
        for _ in range(60):
            time.sleep(.25)
            budgets.append(stats(page)["budget"])
        s, lat = stats(page), np.array(stats(page)["latencies"]) / 1000
        out = dict(sound_to_picture_s=dict(median=round(float(np.median(lat)), 3), p95=round(float(np.percentile(lat, 95)), 3), worst=round(float(lat.max()), 3)),
                   budget_ms={k: round(float(np.median([b[k] for b in budgets])), 1) for k in budgets[0]}, latent_frames=latent_frames,
                   shown_in_page="sound → picture" in page.inner_text("body"), film=film(page), problems=page.problems)
        assert s["mic"], "the page never opened the microphone"
        page.close()
    return out


def page_of_its_own(b, preset, shots):
    "`liveavatar-nb demo`: the page that Voilà serves."
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        with served(folder, preset) as address:
            page = open_page(b, address)
            ready = time.monotonic() - begin
            start(page)
            time.sleep(20)
            shot(page, shots, "demo_page")
            out = dict(ready_s=round(ready, 1), film=film(page), problems=page.problems)
            page.close()
    return out


def shot(page, folder, name):
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--json", help="write the record here")
    parser.add_argument("--minutes", type=float, default=10, help="length of the long run")
    parser.add_argument("--seconds", type=float, default=25, help="length of the short one")
    parser.add_argument("--only", nargs="*", default=["stream", "microphone", "microphone_1", "two", "page", "long"])
    parser.add_argument("--preset", default="pico", help="weights of the streams in JupyterLab and on the page")
    parser.add_argument("--shots", help="folder for screenshots")
    a = parser.parse_args()
    if find_browser() is None:
        sys.exit("no browser: install chromium, or: python -m playwright install chromium")
    out = {}
    for name in a.only:
        with tempfile.TemporaryDirectory() as folder:
            for file in ("demo.ipynb", "second.ipynb"):
                notebook(Path(folder) / file, *cells(a.preset))
            if name == "page":
                with browser() as b:
                    out[name] = page_of_its_own(b, a.preset, a.shots)
            else:
                with server(folder) as address:
                    if name.startswith("microphone"):
                        out[name] = microphone(address, 1 if name.endswith("_1") else 3)
                    else:
                        with browser() as b:
                            out[name] = dict(stream=lambda: stream(b, address, a.seconds, a.shots), two=lambda: two(b, address), long=lambda: long(b, address, a.minutes))[name]()
        print(name, json.dumps(out[name]), flush=True)
    if a.json:
        write_json(a.json, record(out, []) | dict(command="python tests/measure_demo.py " + " ".join(sys.argv[1:])))


if __name__ == "__main__":
    main()
