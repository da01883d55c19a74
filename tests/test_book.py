"""The rendered book leaves no chapter out, and its links lead to pages of the book. (`make book` itself takes longer and is not run here.)"""
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
