"""Is the built book whole? Reads every page of _book/, opens all of them or a sample in a browser that can reach nothing else, and measures.

    python tools/checkbook.py                            # after `make book`; needs a Chromium or Chrome (make test has the same need)
    python tools/checkbook.py --json results/book.json   # and record it
    python tools/checkbook.py --pages 8 --shots shots    # a sample only; pictures of five pages at 420 pixels

In every page: links, anchors and pictures that lead nowhere, and what is loaded from other hosts. In the pages that are opened: requests to other
hosts, formulas that were not typeset, sideways scrolling on a phone (420 pixels wide), errors of scripts; and whether the search finds a word."""
import argparse
import re
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root), str(root / "tests")]
PHONE = dict(width=420, height=860)
SHOWN = ("index", "02_method", "20b_model_schedule", "40_stream_sampler", "51_eval_genbench")   # pages whose pictures are worth a look


class Page(HTMLParser):
    "Links, sources and anchors of an HTML page."
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        link = attrs.get("href") if tag in ("a", "link") else attrs.get("src") if tag in ("img", "script", "video", "source", "audio", "iframe") else None
        if link:
            self.links.append(link)
            if tag != "a" and attrs.get("rel") not in ("canonical", "next", "prev", "search", "index", "author"):
                self.loads.append(link)


def read_pages(book):
    "{path: Page} of every page of the book (not of the pages that come along as they are)."
    return {p: Page(p.read_text(encoding="utf-8")) for p in sorted(book.rglob("*.html")) if not {"_static", "play"} & set(p.relative_to(book).parts)}


def loaded_from_elsewhere(book, pages=None):
    "Scripts, styles and pictures that a page, or a style sheet of the book, asks of another host."
    found = [f"{path.relative_to(book)}: {link[:120]}" for path, page in (pages or read_pages(book)).items() for link in page.loads if urlsplit(link).netloc]
    for css in sorted(book.rglob("*.css")):
        for link in re.findall(r"""url\(\s*["']?((?:https?:)?//[^)"']+)|@import\s+["']((?:https?:)?//[^"']+)""", css.read_text(encoding="utf-8", errors="replace")):
            found.append(f"{css.relative_to(book)}: {''.join(link)[:120]}")
    return found


def broken_links(book, pages=None):
    "Links of every page to files or anchors of the book that are not there: ['page: link', ...]."
    pages, bad = pages or read_pages(book), []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc or link.startswith(("data:", "javascript:")):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            there = target in pages or target.is_file() or (target.is_dir() and (target / "index.html").is_file())
            anchor = unquote(url.fragment)
            if not there or (anchor and target in pages and anchor not in pages[target].ids):
                bad.append(f"{path.relative_to(book)}: {link}")
    return bad


class Quiet(SimpleHTTPRequestHandler):
    "A file server that says nothing."
    def log_message(self, *args):
        pass


def serve(book):
    "(server, its address): the book on a port of this machine."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(book)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


WIDE = """() => {
    const page = document.documentElement, found = [];
    if (page.scrollWidth > page.clientWidth + 1)
        for (const e of document.querySelectorAll("article *")) {
            const box = e.getBoundingClientRect();
            if (box.width && box.right > page.clientWidth + 1) { found.push(e.tagName + "." + e.className); if (found.length > 2) break; }
        }
    return [page.scrollWidth - page.clientWidth, found];
}"""
FORMULAS = "() => [document.querySelectorAll('span.math, div.math').length, document.querySelectorAll('mjx-container').length]"


def look(browser, address, names, shots=None):
    "Each page at phone size, with the network closed: what is wrong with it."
    out = dict(foreign=[], formulas=0, raw_formulas=[], wide=[], errors=[], missing=[])
    page = browser.new_context(viewport=PHONE, device_scale_factor=2 if shots else 1).new_page()

    page.set_default_timeout(180_000)      # a busy machine takes its time

    def gate(route):
        out["foreign"].append(f"{page.url.rsplit('/', 1)[-1]}: {route.request.url[:120]}")
        route.abort()

    page.route(re.compile(f"^(?!{re.escape(address)}|data:|blob:)"), gate)
    page.on("pageerror", lambda e: out["errors"].append(f"{page.url.rsplit('/', 1)[-1]}: {str(e)[:120]}"))
    page.on("response", lambda r: r.status >= 400 and out["missing"].append(r.url[len(address):]))
    for name in names:
        page.goto(address + name, wait_until="load")
        wanted, _ = page.evaluate(FORMULAS)
        if wanted:
            try:
                page.wait_for_function("() => document.querySelectorAll('mjx-container').length >= document.querySelectorAll('span.math, div.math').length")
            except Exception:
                out["raw_formulas"].append(name)
        out["formulas"] += page.evaluate(FORMULAS)[1]
        over, what = page.evaluate(WIDE)
        if over > 1:
            out["wide"].append(f"{name}: {over} px, {', '.join(what)}")
        if shots and name.removesuffix(".html") in SHOWN:
            page.screenshot(path=str(Path(shots) / f"{name.removesuffix('.html')}.png"), full_page=False)
    page.goto(address + "search.html?q=sink")
    page.wait_for_selector("#search-results li a")
    out["search_hits"] = page.locator("#search-results li").count()
    return out


def check(book, pages=None, shots=None):
    "Everything about a built book, as a dictionary; `pages`: only so many, spread evenly."
    from browsing import browser
    names = sorted(p.name for p in book.glob("*.html") if p.name not in ("search.html", "genindex.html"))
    names = names[::max(1, len(names) // pages)] if pages else names
    server, address = serve(book)
    try:
        with browser() as b:
            seen = look(b, address, names, shots)
    finally:
        server.shutdown()
    every = read_pages(book)
    seen["foreign"] += loaded_from_elsewhere(book, every)
    return dict(pages=len(every), opened=len(names), broken_links=broken_links(book, every), **seen)


def faults(found):
    "What must be mended, one line each."
    if not found["search_hits"]:
        yield "search: finds nothing"
    for kind in ("broken_links", "foreign", "raw_formulas", "wide", "errors", "missing"):
        yield from (f"{kind}: {line}" for line in found[kind])


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--book", type=Path, default=root / "_book")
    args.add_argument("--pages", type=int, help="look at so many pages only")
    args.add_argument("--shots", type=Path, help="folder for pictures of five pages")
    args.add_argument("--json", type=Path, help="write the record here")
    args = args.parse_args()
    if not (args.book / "index.html").exists():
        sys.exit(f"no book in {args.book.name}: say `make book` first")
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    found = check(args.book, args.pages, args.shots)
    bad = list(faults(found))
    print(*bad, sep="\n")
    counts = {k: len(v) if isinstance(v, list) else v for k, v in found.items()}
    print(", ".join(f"{k.replace('_', ' ')}: {v}" for k, v in counts.items()))
    if args.json:
        from liveavatar_nb.cli import record, write_json
        write_json(args.json, dict(record(counts, []), command=f"python tools/checkbook.py{f' --pages {args.pages}' if args.pages else ''} --json results/{args.json.name}"))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
