"""Each number in prose that names its record says what the record says (tools/quoted.py)."""
import json
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
if not (root / "tools" / "quoted.py").exists():
    pytest.skip("no sources here", allow_module_level=True)
sys.path.insert(0, str(root / "tools"))
import mkresults  # noqa: E402
import quoted  # noqa: E402

BARE = 5   # paragraphs that stand beside a record and tie no figure to it: may only become fewer


def test_quoted_numbers_equal_their_records():
    bad = [f"{name}: {m['number']} but {m['file']}:{m['path']} says {right}" for name, text, _ in quoted.pages() for m, right in quoted.wrong(text)]
    assert not bad, "run `python tools/quoted.py --fix`, then read the sentences again:\n" + "\n".join(bad)


def test_paragraphs_without_a_tie_get_fewer():
    bare = [name for name, text, _ in quoted.pages() if quoted.bare(text)]
    assert len(bare) <= BARE, "figures beside a link to a record, none tied to it:\n" + "\n".join(bare)


@pytest.fixture
def record(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/x.json").write_text(json.dumps({"a": [dict(name="p", v=.8251), dict(name="q", v=-1234.5)], "n": 3, "flag": True, "so many": {"0.5": 2}}))
    monkeypatch.setattr(quoted, "root", tmp_path)


@pytest.mark.parametrize("text,right", [
    ("0.83<!--results/x.json:a.name=p.v-->", None), ("0.825<!--results/x.json:a.0.v-->", None), ("82.5 %<!--results/x.json:a.0.v|%-->", None),
    ("−1,234<!--results/x.json:a.1.v-->", None), ("1.2<!--results/x.json:a.1.v|abs|/1000-->", None), ("2<!--results/x.json:a|len-->", None),
    ("0.84<!--results/x.json:a.0.v-->", "0.83"), ("3.1<!--results/x.json:n-->", "3.0"), ("1.2<!--results/x.json:a.1.v|/1000-->", "−1.2")])
def test_a_wrong_digit_is_found(record, text, right):
    assert quoted.QUOTE.search(text)
    assert [r for _, r in quoted.wrong(text)] == ([] if right is None else [right])


@pytest.mark.parametrize("place", ["a.0.w", "a.7.v", "a.name=z.v", "flag", "a"])
def test_a_place_that_holds_no_number_is_an_error(record, place):
    (_, error), = quoted.wrong(f"1<!--results/x.json:{place}-->")
    assert isinstance(error, Exception)


def test_bare_figures_are_seen():
    assert quoted.bare("0.83 ([record](../results/x.json))") and not quoted.bare("0.83<!--results/x.json:a--> ([record](../results/x.json))")
    assert not quoted.bare("three ([record](../results/x.json))")


def test_the_page_of_results_is_built_from_the_records():
    assert mkresults.page.read_text(encoding="utf-8") == mkresults.build(), "run `make readme` and commit docs/results.md"


def test_the_moving_picture_is_not_older_than_the_weights():
    import mkpicture
    made = json.loads(mkpicture.note.read_text())
    assert mkpicture.picture.stat().st_size > 50_000
    assert made["weights"] == mkpicture.hashes(made["preset"]), "new weights: run `python tools/mkpicture.py` and commit"
