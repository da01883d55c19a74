"""Is the house in order? Lengths of lines, functions, modules, cells and chapters, and imports that run upstairs or in circles.

    python tools/style.py            # prints what is over the limits and not on the list
    python tools/style.py --shrink   # takes off the list what has been mended (never adds: that is done by hand, with a reason)

What was too long when the limits came is on the list in tests/style_exceptions.json with its size; it may get shorter, not longer."""
import argparse
import ast
import json
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
package, nbs, kept = root / "liveavatar_nb", root / "nbs", root / "tests" / "style_exceptions.json"
LIMITS = dict(line=140, function=40, module=300, cell=25, chapter=40)
ALSO_TRAIN = ("stream.sampler", "stream.sink")   # one roll-out serves training and streams: these two stand on the floor of training
FLOORS = ["data", "model", "train", "stream", "eval", "wan", "serve", "demo"]   # a module imports from its own floor and from floors before it


def modules():
    "Every module of the package: {dotted name below liveavatar_nb: path}."
    return {".".join(p.relative_to(package).with_suffix("").parts): p for p in sorted(package.rglob("*.py"))
            if p.name not in ("_modidx.py", "__init__.py")}


def functions(tree, prefix=""):
    "(qualified name, number of lines) of each function; its decorators and those inside it count."
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef): yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node.end_lineno - node.lineno + 1


def imports(name, tree, known):
    "Modules of this package that a module imports, at its top or inside a function."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = name.split(".")[:-node.level] if node.level else []
            parts = base + (node.module.split(".") if node.module else [])
            if not node.level:
                if parts[0] != "liveavatar_nb": continue
                parts = parts[1:]
            for target in [".".join(parts)] + [".".join(parts + [a.name]) for a in node.names]:
                if target in known and target != name: yield target
        elif isinstance(node, ast.Import):
            for a in node.names:
                if a.name.removeprefix("liveavatar_nb.") in known and a.name.startswith("liveavatar_nb."): yield a.name.removeprefix("liveavatar_nb.")


def floor(name):
    "The number of a module's floor; the command line and the benchmarks live under the roof."
    if name in ALSO_TRAIN: return FLOORS.index("train")
    return FLOORS.index(name.split(".")[0]) if name.split(".")[0] in FLOORS else len(FLOORS)


def circles(graph):
    "Groups of modules that import each other in a circle, as sorted lists."
    def reach(a):
        seen, todo = set(), [a]
        while todo: todo += [b for b in graph[todo.pop()] if b not in seen and not seen.add(b)]
        return seen
    far = {a: reach(a) for a in graph}
    return sorted({tuple(sorted(b for b in graph if a in far[b] and b in far[a])) for a in graph if a in far[a]})


def measure():
    "Everything over a limit: {kind: {place: size}}."
    over = dict(line={}, function={}, module={}, cell={}, chapter={}, upstairs={}, circle={})
    paths, graph = modules(), {}
    for name, path in paths.items():
        text = path.read_text(encoding="utf-8"); tree, lines = ast.parse(text), text.splitlines()
        long = sum(len(line) > LIMITS["line"] for line in lines)
        if long: over["line"][name] = long
        if len(lines) > LIMITS["module"]: over["module"][name] = len(lines)
        over["function"].update({f"{name}:{f}": n for f, n in functions(tree) if n > LIMITS["function"]})
        graph[name] = sorted(set(imports(name, tree, paths)))
        over["upstairs"].update({f"{name} > {b}": 1 for b in graph[name] if floor(b) > floor(name)})
    over["circle"] = {" > ".join(c): len(c) for c in circles(graph)}
    for path in sorted(nbs.glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        long = sum(c["cell_type"] == "code" and len("".join(c["source"]).splitlines()) > LIMITS["cell"] for c in cells)
        if long: over["cell"][path.stem] = long
        if len(cells) > LIMITS["chapter"]: over["chapter"][path.stem] = len(cells)
    return over


def news(over, allowed):
    "What is over a limit and not allowed, as lines to read."
    for kind, found in over.items():
        for place, size in found.items():
            was = allowed.get(kind, {}).get(place, 0)
            if size > was: yield f"{kind}: {place}: {size}" + (f" (was {was})" if was else "") + (f", limit {LIMITS[kind]}" if kind in ("function", "module", "chapter") else "")


def mended(over, allowed):
    "The list without what has been mended, and with smaller numbers where things got shorter."
    return {kind: {p: min(n, over[kind][p]) for p, n in places.items() if p in over[kind]} for kind, places in allowed.items()}


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--shrink", action="store_true")
    over, allowed = measure(), json.loads(kept.read_text()) if kept.exists() else {}
    if args.parse_args().shrink:
        kept.write_text(json.dumps(mended(over, allowed), indent=1) + "\n")
    bad = list(news(over, allowed))
    print(*bad, sep="\n")
    sys.exit(1 if bad else 0)
