"""The rendered book leaves no chapter out, and its links lead to pages of the book. (`make book` itself takes longer and is not run here;
if somebody ran it, some of its pages are opened in a browser.)"""
import base64
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
if not (root / "tools" / "mkbook.py").exists():
    pytest.skip("no sources here", allow_module_level=True)
sys.path.insert(0, str(root / "tools"))
import checkbook  # noqa: E402
import mkbook  # noqa: E402


def chapters(nbs):
    return sorted(p.stem for p in nbs.glob("*.ipynb") if p.stem != "index" and not p.stem.startswith(("_", ".")))


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "src"
    mkbook.stage(folder)
    return folder


def test_every_chapter_is_in_the_contents_once(staged):
    toc = json.loads((staged / "_toc.yml").read_text())
    assert sorted(c["file"] for part in toc["parts"] for c in part["chapters"]) == [mkbook.page(s) for s in chapters(root / "nbs")]


def test_order_is_that_of_the_index():
    parts = dict(mkbook.contents())
    assert list(parts) == [None, "data", "model", "train", "stream", "eval", "wan", "serve", "demo"]
    assert parts[None] == ["01_tour", "02_method"]
    flat = [s for row in parts.values() for s in row]
    assert flat == sorted(flat)


def test_a_new_chapter_is_not_forgotten(tmp_path):
    for p in (root / "nbs").glob("*.ipynb"):
        shutil.copy(p, tmp_path)
    shutil.copy(tmp_path / "01_tour.ipynb", tmp_path / "29_model.new.ipynb")
    assert dict(mkbook.contents(tmp_path))["model"][-1] == "29_model.new"


def test_links_and_hints(staged):
    for path in staged.glob("*.ipynb"):
        text = "\n".join(c["source"] for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
        assert "Run this chapter" in text or path.stem == "index"
        for link in re.findall(r"\]\(([\w.\-/]+\.(?:ipynb|md|py|json))\)", text):
            assert (staged / link).exists(), f"{path.name} links to {link}"


def test_pictures_come_along(staged):
    pictures = [link for path in staged.glob("*.ipynb") for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown"
                for link in mkbook.PICTURE.findall(c["source"])]
    assert pictures
    for _, link in pictures:
        assert (staged / link).stat().st_size > 1000


def test_titles_begin_with_their_numbers():
    for stem in chapters(root / "nbs"):
        text = "\n".join("".join(c["source"]) for c in json.loads((root / "nbs" / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
        assert re.search(r"^# (\S+) ", text, re.M)[1] == stem.split("_")[0], f"{stem}: the sidebar shows this title"


def test_formulas_are_typeset_without_a_network(staged):
    assert "sphinx-mathjax-offline" in json.loads((staged / "_config.yml").read_text())["sphinx"]["extra_extensions"]
    assert re.search("^sphinx-mathjax-offline==", (root / "constraints-book.txt").read_text(), re.M)


def shown(path):
    "The HTML of a chapter's outputs."
    return "\n".join("".join(o.get("data", {}).get("text/html", "")) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", []))


def test_the_tour_shows_a_film_with_sound(staged):
    film = base64.b64decode(re.search(r'data:video/mp4;base64,([^"]+)', shown(staged / "01_tour.ipynb"))[1])
    assert b"vide" in film and b"soun" in film and len(film) > 100_000       # the tracks' handlers


@pytest.mark.parametrize("play", [False, True])
def test_where_the_demo_stands_the_book_says_how_to_see_it(tmp_path, play):
    (nbs := tmp_path / "nbs").mkdir()
    for name in ("91_demo", "index"):
        shutil.copy(root / "nbs" / f"{name}.ipynb", nbs)
    for pictures in ("assets", "docs/screenshots"):
        shutil.copytree(root / pictures, tmp_path / pictures)
    mkbook.stage(tmp_path / "src", nbs, play)
    assert "VBox" not in (tmp_path / "src" / "91_demo.ipynb").read_text(encoding="utf-8")
    words = shown(tmp_path / "src" / "91_demo.ipynb")
    assert "liveavatar-nb demo" in words and ('<a href="play/index.html">' in words) == play


def test_a_script_stands_once():
    page = "<script>const A = 1</script>\n<p>x</p><script>const A = 1</script><script src='a.js'></script><script>let b</script>"
    assert mkbook.tidy(page) == "<script>const A = 1</script>\n<p>x</p><script src='a.js'></script><script>let b</script>"


GOOD = """<html><body><article><h1 id="top">A</h1><a href="b.html#x">b</a> <a href="https://example.org/">out</a>
<span class="math">s</span><script>document.querySelector(".math").appendChild(document.createElement("mjx-container"))</script></article></body></html>"""
SEARCH = """<html><body><div id="search-results"><ul><li><a href="a.html">A</a></li></ul></div></body></html>"""


def test_links_and_anchors_are_followed(tmp_path):
    (tmp_path / "a.html").write_text(GOOD); (tmp_path / "b.html").write_text("<p id='x'></p><a href='a.html#nowhere'></a><img src='gone.png'>")
    assert checkbook.broken_links(tmp_path) == ["b.html: a.html#nowhere", "b.html: gone.png"]


def needs_a_browser():
    pytest.importorskip("playwright", reason="pip install playwright")
    from browsing import HOW, find_browser
    if find_browser() is None:
        pytest.skip(HOW)


def test_the_checker_sees_what_is_wrong(tmp_path):
    needs_a_browser()
    good = GOOD.replace(' <a href="https://example.org/">out</a>', "").replace("b.html#x", "#top")
    (tmp_path / "a.html").write_text(good); (tmp_path / "index.html").write_text(good); (tmp_path / "search.html").write_text(SEARCH)
    assert list(checkbook.faults(checkbook.check(tmp_path))) == []
    (tmp_path / "c.html").write_text("""<html><head><link rel="stylesheet" href="https://example.org/x.css"></head><body><article><table style="width: 900px"><tr><td>wide</td></tr></table>
        <script>undefined_thing()</script></article></body></html>""")
    found = checkbook.check(tmp_path)
    assert len(found["foreign"]) == 2 and all("example.org" in line for line in found["foreign"])       # asked for by the browser, and found in the text
    assert len(found["wide"]) == 1 and "c.html: 4" in found["wide"][0] and len(found["errors"]) == 1
    assert found["pages"] == 4 and found["opened"] == 3 and found["formulas"] == 2 and found["search_hits"] == 1


def test_the_built_book():
    "Eight pages of _book, if there is one: links, formulas offline, nothing from other hosts, nothing wider than a phone, the search."
    needs_a_browser()
    if not (root / ".venv-book").exists() or not (root / "_book" / "index.html").exists():
        pytest.skip("no built book: make book")
    assert list(checkbook.faults(checkbook.check(root / "_book", pages=8))) == []
