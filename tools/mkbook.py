"""The chapters as a book of web pages, with the outputs they hold; nothing is run. `make book` calls this with the python of .venv-book.

    python tools/mkbook.py           # nbs/ -> _book/
    python tools/mkbook.py --check   # only print the table of contents
"""
import argparse
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([\w.\-/]+)(#[\w.\-]+)?\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([\w.\-/]+)\)")
PARTS = dict(zip("12345679", ("data", "model", "train", "stream", "eval", "wan", "serve", "demo")))
CSS = """.bd-article-container {max-width: 60rem}
div.cell div.cell_input {border-left-width: 3px}
div.cell_output video, div.cell_output img {max-width: 100%; height: auto}
div.cell_input pre {font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere}
div.cell_output pre {font-size: .8rem; overflow-x: auto}
.bd-article h2 {font-size: 1.7rem}
details {margin: .5rem 0; padding: .3rem .8rem; border: 1px solid var(--pst-color-border); border-radius: .3rem}
details > summary {cursor: pointer}
"""


def page(stem):
    "A chapter's name in the book: dots would be taken for file endings."
    return stem.replace(".", "_")


def contents(nbs=root / "nbs"):
    """The order and grouping of the table in index.ipynb: [(part, [stem, ...]), ...]. A chapter before the parts (the tour) has part None;
    one that the table forgot goes to the end of its part by its number, so that none is left out."""
    stems = sorted(p.stem for p in nbs.glob("*.ipynb") if not p.stem.startswith(("_", ".")) and p.stem != "index")
    text = "\n".join("".join(c["source"]) for c in json.loads((nbs / "index.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
    parts = {None: []}
    for name, row in re.findall(r"^\| (\w+) \| (.*\.ipynb\).*) \|$", text, re.M):
        parts[name] = [Path(link).stem for link, _ in LINK.findall(row) if Path(link).stem in stems]
    placed = {s for row in parts.values() for s in row}
    for s in stems:
        if s not in placed:
            parts.setdefault(PARTS.get(s[0]), []).append(s)
            if s[0] in PARTS:
                parts[PARTS[s[0]]].sort()
    order = [None, *PARTS.values()]
    return sorted(((name, row) for name, row in parts.items() if row), key=lambda p: order.index(p[0]) if p[0] in order else len(order))


def toc(parts):
    "The table of contents as jupyter-book reads it (JSON is YAML)."
    return dict(format="jb-book", root="index", parts=[dict(caption=name.capitalize() if name else "Start here", chapters=[dict(file=page(s)) for s in row]) for name, row in parts])


def relink(text, stems, url):
    "Chapter links lead to the book's pages, links to other files of the repository to its address, if it has one."
    def new(m):
        link, anchor = m[1], m[2] or ""
        target = Path(link)
        if target.suffix == ".ipynb" and target.stem in stems:
            return f"]({page(target.stem)}.ipynb{anchor})"
        here = next((p for p in (root / link, root / "nbs" / link) if p.exists()), None)
        return f"]({url}/blob/main/{here.resolve().relative_to(root)}{anchor})" if url and here else m[0]
    return LINK.sub(new, text)


def place_pictures(text, folder, nbs):
    "Pictures of the repository are copied into the book's `_static` and shown from there."
    def new(m):
        source = nbs / m[2]
        if not source.is_file():
            sys.exit(f"the picture {m[2]} is not there: mend the link")
        shutil.copy(source, folder / "_static" / source.name)
        return f"![{m[1]}](_static/{source.name})"
    return PICTURE.sub(new, text)


LIVE = "<p><em>Live when the chapter runs: a player with its controls appears here. To see it now: {}<code>liveavatar-nb demo</code> or <code>make lab</code>.</em></p>"


def chapter(nb, stem, stems, url, play=False):
    "A notebook as the book shows it: helper cells folded, a hint how to run it, no live widgets."
    nb["metadata"].pop("widgets", None)
    cells, first = [], next(i for i, c in enumerate(nb["cells"]) if c["cell_type"] == "markdown")
    for i, cell in enumerate(nb["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = relink(source, stems, url)
        else:
            flags = re.findall(r"^#\| ?(.+)$", source, re.M)
            tags = cell["metadata"].setdefault("tags", [])
            if not re.sub(r"^#.*$", "", source, flags=re.M).strip():
                continue
            if "hide" in flags:
                tags.append("hide-input")
            if "echo: false" in flags:
                tags.append("remove-input")
            source = re.sub(r"^#\| ?(?!export).*\n", "", source, flags=re.M)
            for o in cell["outputs"]:
                if any("widget-view" in k for k in o.get("data", {})):
                    o["data"] = {"text/html": LIVE.format('<a href="play/index.html">the page that needs no Python</a>, ' if play else "")}
        cells.append(dict(cell, source=source))
        if i == first and stem != "index":
            where = f", or read it [in the repository]({url}/blob/main/nbs/{stem}.ipynb)" if url else ""
            cells.append(dict(cell_type="markdown", id="run-hint", metadata={}, source=f":::{{admonition}} Run this chapter\n:class: tip dropdown\n\n`make lab` opens the book in JupyterLab: choose `nbs/{stem}.ipynb`, then Run > Run All Cells{where}.\n:::"))
    return dict(nb, cells=cells)


def stage(folder, nbs=root / "nbs", play=None):
    "Everything jupyter-book needs, in `folder`. `play`: is the page without Python part of the book? (None: if it is built.)"
    play = (root / "play" / "dist" / "index.html").exists() if play is None else play
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(root / "settings.ini", encoding="utf-8")
    settings, parts = settings["DEFAULT"], contents(nbs)
    url = settings.get("git_url", "")
    stems = {"index"} | {s for _, row in parts for s in row}
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "_static").mkdir(parents=True)
    (folder / "_static" / "book.css").write_text(CSS)
    for s in stems:
        nb = json.loads((nbs / f"{s}.ipynb").read_text(encoding="utf-8"))
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = place_pictures("".join(cell["source"]), folder, nbs)
        (folder / f"{page(s)}.ipynb").write_text(json.dumps(chapter(nb, s, stems, url, play)), encoding="utf-8")
    (folder / "_toc.yml").write_text(json.dumps(toc(parts), indent=1))
    config = dict(title=settings["title"], author=settings["author"], copyright="2026", execute=dict(execute_notebooks="off"), only_build_toc_files=True,
                  launch_buttons=dict(thebe=False, notebook_interface="jupyterlab"), html=dict(use_repository_button=False, home_page_in_navbar=True),
                  parse=dict(myst_enable_extensions=["colon_fence", "dollarmath", "html_image", "linkify", "substitution"], myst_url_schemes=["http", "https", "mailto"]),
                  sphinx=dict(extra_extensions=["sphinx-mathjax-offline"], config=dict(html_static_path=["_static"], html_css_files=["book.css"], nb_merge_streams=True, language="en",
                                          html_theme_options=dict(show_toc_level=2, use_download_button=True, use_fullscreen_button=False))))
    (folder / "_config.yml").write_text(json.dumps(config, indent=1))
    return parts


def tidy(page):
    "The text of an HTML page without inline scripts that stand in it twice (a second `const` of the same name is an error)."
    seen = set()
    return re.sub(r"<script>.*?</script>\n?", lambda m: "" if m[0].strip() in seen else seen.add(m[0].strip()) or m[0], page, flags=re.S)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--check", action="store_true")
    if args.parse_args().check:
        for name, row in contents():
            print(f"{name or '':8}{' '.join(row)}")
        return
    source, out = root / "build" / "book", root / "_book"
    parts = stage(source)
    done = subprocess.run([str(Path(sys.executable).parent / "jupyter-book"), "build", "-q", "--all", str(source)])
    html = source / "_build" / "html"
    missing = [s for _, row in parts for s in row if not (html / f"{page(s)}.html").exists()]
    if done.returncode or missing:
        sys.exit(f"the book could not be built; pages missing: {missing}")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(html, out)
    for path in out.glob("*.html"):
        path.write_text(tidy(path.read_text(encoding="utf-8")), encoding="utf-8")
    if (root / "play" / "dist" / "index.html").exists():
        shutil.copytree(root / "play" / "dist", out / "play")
    else:
        print("without the page that needs no Python: `make play` builds it (npm is needed), then `make book` takes it along")
    print(f"{sum(len(r) for _, r in parts)} chapters: open _book/index.html in a browser")


if __name__ == "__main__":
    main()
