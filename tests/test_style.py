"""Lengths and imports: nothing new over the limits, and the list of old sins only gets shorter (tools/style.py)."""
import ast
import json
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
if not (root / "tools" / "style.py").exists():
    pytest.skip("no sources here", allow_module_level=True)
sys.path.insert(0, str(root / "tools"))
import style  # noqa: E402


@pytest.fixture(scope="module")
def over():
    return style.measure()


@pytest.fixture(scope="module")
def allowed():
    return json.loads(style.kept.read_text())


def test_nothing_new_is_too_long_or_upstairs(over, allowed):
    bad = list(style.news(over, allowed))
    assert not bad, "over the limits of CONTRIBUTING.md:\n" + "\n".join(bad)


def test_the_list_holds_no_mended_sins(over, allowed):
    gone = [f"{kind}: {place}" for kind, places in allowed.items() for place in places if place not in over[kind]]
    assert not gone, "mended, well done; run `python tools/style.py --shrink` and commit:\n" + "\n".join(gone)


def test_the_ruler_itself():
    known = {"data.world", "stream.sink", "eval.genbench"}
    tree = ast.parse("from ..eval.genbench import run\ndef f():\n    from liveavatar_nb.data.world import draw\nimport liveavatar_nb.data.world\n")
    assert sorted(set(style.imports("stream.sink", tree, known))) == ["data.world", "eval.genbench"]
    assert sorted(style.imports("data.speech", ast.parse("from .world import x\nfrom . import world"), known)) == ["data.world"] * 2
    assert style.circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [("a", "b", "c")]
    assert style.circles({"a": ["b"], "b": []}) == []
    tree = ast.parse("class A:\n    def f(self):\n        def g():\n            pass\n        return g\n")
    assert list(style.functions(tree)) == [("A.f", 4)]
    assert list(style.news(dict(line={"a": 3, "b": 1}), dict(line={"a": 2, "b": 1}))) == ["line: a: 3 (was 2)"]
    assert style.mended(dict(line={"a": 3}), dict(line={"a": 5, "b": 1})) == dict(line={"a": 3})
