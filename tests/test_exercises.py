"""Each exercise's check fails with the stub and passes with the hidden solution. (The layout of the cells: CONTRIBUTING.md.)

A chapter's exercise is run without the rest of the chapter: its imports, everything its module has, and cells marked `#| setup` come first."""
import ast
import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
nbs = root / "nbs"
if not (nbs / "_exercise.py").exists():
    pytest.skip("no notebooks here", allow_module_level=True)
sys.path.insert(0, str(nbs))
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.S)
MARK = re.compile(r"^#\| *(exercise|check|setup)\b.*$", re.M)


def cells(path):
    return [(c["cell_type"], "".join(c["source"])) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def exercises(path):
    "[(name, stub, check, solution)] of a notebook; a part that is missing is None."
    found, todo = [], None
    for kind, source in cells(path):
        mark = MARK.search(source) if kind == "code" else None
        if mark and mark[1] == "exercise": todo = source
        elif mark and mark[1] == "check":
            name = re.search(r"""attempt\(["'](.+?)["']\)""", source)
            found.append([name[1] if name else path.stem, todo, source, None]); todo = None
        elif found and found[-1][3] is None and kind == "markdown" and (answer := SOLUTION.search(source)):
            found[-1][3] = answer[1]
    return found


def only_imports(source):
    "Is this a cell of imports (and of nothing that takes time)?"
    try: body = ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M)).body
    except SyntaxError: return False
    return bool(body) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


def start(path):
    "The names that a reader has on reaching the exercise."
    import matplotlib
    matplotlib.use("Agg")
    text, space = cells(path), {"__name__": "exercise"}
    module = next((m[1] for k, s in text if k == "code" and (m := re.search(r"^#\| *default_exp +(\S+)", s, re.M))), None)
    if module: space.update({k: v for k, v in vars(import_module(f"liveavatar_nb.{module}")).items() if not k.startswith("__")})
    for kind, source in text:
        mark = MARK.search(source) if kind == "code" else None
        if kind == "code" and (only_imports(source) or mark and mark[1] == "setup"): exec(compile(source, path.name, "exec"), space)
    return space


ALL = [(path, e) for path in sorted(nbs.glob("[0-9]*.ipynb")) for e in exercises(path)]


@pytest.mark.parametrize("path,exercise", ALL, ids=[f"{p.stem}-{e[0]}" for p, e in ALL])
def test_stub_fails_and_solution_passes(path, exercise, monkeypatch):
    name, stub, check, solution = exercise
    assert stub and solution, f"{path.name}, exercise {name}: wants a `#| exercise` cell before its check and a ```python block in <details> after it"
    monkeypatch.setenv("EXERCISES_STRICT", "1")
    monkeypatch.chdir(nbs)
    space = start(path)
    with pytest.raises(Exception):
        exec(stub, space); exec(check, space)
    exec(solution, space)
    exec(check, space)


def test_names_are_one_of_a_kind():
    names = [e[0] for _, e in ALL]
    assert names and len(names) == len(set(names))


def test_an_attempt_never_stops_the_notebook(monkeypatch, capsys):
    from _exercise import attempt
    monkeypatch.delenv("EXERCISES_STRICT", raising=False)
    with attempt("a"): raise NotImplementedError
    with attempt("b"): assert 1 == 2, "one is not two"
    with attempt("c"): pass
    said = capsys.readouterr().out.splitlines()
    assert "your turn" in said[0] and "one is not two" in said[1] and said[2] == "Exercise c: right"
