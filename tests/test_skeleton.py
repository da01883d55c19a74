"""The house itself: links lead somewhere, chapters look like chapters, nothing private slipped in."""
import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
notebooks = sorted((root / "nbs").glob("*.ipynb"))
if not notebooks:
    pytest.skip("no notebooks here", allow_module_level=True)
named = pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)


def cells(path, kind=None):
    return [dict(c, source="".join(c["source"])) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if kind in (None, c["cell_type"])]


@named
def test_links_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for link in re.findall(r"\]\(([\w.\-/]+\.(?:ipynb|md|py|png))\)", cell["source"]):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_readme_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (root / "README.md").read_text(encoding="utf-8")):
        assert (root / link).exists(), link


@named
def test_chapter_has_title_promise_and_outputs(path):
    text = [c["source"] for c in cells(path, "markdown")]
    assert re.match(r"# .+\n+> .+", text[0]), "H1 and a one-line promise"
    code = [c for c in cells(path, "code") if c["source"].strip()]
    assert path.stem == "index" or any(c["outputs"] for c in code), "execute it before committing"
    errors = [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
    assert not errors


@pytest.mark.parametrize("path", [p for p in notebooks if re.match(r"(3[0-57]|4[01]|5[0-3])[a-z]?_", p.stem) and not re.match(r"3[34]", p.stem)], ids=lambda p: p.stem)
def test_opening_and_exercises(path):
    "What you will do, why, what you need, where you stand; and two exercises that check themselves."
    opening = cells(path, "markdown")[0]["source"]
    for part in ("You will", "**Without it**", "Needs:", "02_method.ipynb#glossary", "Before:", "Next:"):
        assert part in opening, f"the opening lacks {part!r}"
    assert sum("#| exercise" in c["source"] for c in cells(path, "code")) >= 2


@named
def test_nothing_private(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.])/(?:root|home|tmp|work|Users)/[\w.\-]+", text)
    assert not found, found[:3]


def test_settings_and_files_agree():
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    cfg = parser["DEFAULT"]
    assert f'__version__ = "{cfg["version"]}"' in (root / "liveavatar_nb" / "__init__.py").read_text(encoding="utf-8")
    assert "Apache License" in (root / "LICENSE").read_text() and cfg["license"] == "apache2"
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in (root / "constraints.txt").read_text().split()}
    wanted = {re.match(r"[\w.\-]+", r)[0].lower().replace("_", "-") for r in (cfg["requirements"] + " " + cfg["dev_requirements"]).split()}
    assert wanted <= pinned, f"not pinned in constraints.txt: {sorted(wanted - pinned)}"


def test_weights_are_small_and_have_cards():
    files = sorted((root / "liveavatar_nb" / "weights").glob("*.safetensors"))
    sizes = [f.stat().st_size for f in files]
    assert files and max(sizes) < 20e6 and sum(sizes) <= 40 * 2**20, dict(zip([f.name for f in files], sizes))
    for f in files:
        assert {"what", "device"} <= set(json.loads(f.with_suffix(".json").read_text())), f"{f.name} needs its card"
