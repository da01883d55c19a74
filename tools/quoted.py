"""Figures in prose come from records. `0.83<!--results/genbench_nano.json:summary.sync-->` quotes a number and says where it is from;
the comment is seen by no reader of the rendered page.

    python tools/quoted.py          # which quoted figures differ from their records? which paragraphs beside a record quote none?
    python tools/quoted.py --fix    # write the records' values, with as many digits as are shown

A path walks through keys and list positions (`rows.0.sync`); a list of records can be searched (`rows.name=full.sync`);
`*100`, `/1000` or `%` behind it scales (`%` is `*100`), `abs` takes the sign off, `len` counts. Several steps: `rows.name=full.sync|%`."""
import argparse
import json
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
QUOTE = re.compile(r"(?P<number>[−-]?\d[\d,]*(?:\.\d+)?)(?P<after>(?:\*{2})?\s?[^\s<\d]{0,4})<!--(?P<file>results/[\w.\-]+\.json):(?P<path>[^\s>|]+?)(?P<ops>(?:\|[^\s>|]+)*)-->")


def pages():
    "Every page of prose as (name, text, write): notebooks' markdown cells one by one, and the markdown files."
    for path in sorted((root / "nbs").glob("[0-9i]*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        for i, cell in enumerate(nb["cells"]):
            if cell["cell_type"] != "markdown": continue
            def write(text, nb=nb, cell=cell, path=path):
                cell["source"] = text.splitlines(True)
                path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            yield f"{path.name}[{i}]", "".join(cell["source"]), write
    for path in [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]:
        if path.name == "README.md" and (root / "nbs/index.ipynb").exists(): continue   # built from the index
        if path.name == "CONTRIBUTING.md": continue                                     # shows the notation
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"), lambda text, path=path: path.write_text(text, encoding="utf-8")


def look(file, path, ops=""):
    "The number at a place of a record."
    if not (root / file).exists(): raise LookupError(f"{file} is not there")
    value = json.loads((root / file).read_text(encoding="utf-8"))
    for key in path.split("."):
        key = key.replace("~", ".").replace("+", " ")   # a dot in a key is written ~, a blank +
        if isinstance(value, list) and "=" in key:
            name, wanted = key.split("=")
            value = next((v for v in value if str(v.get(name)) == wanted), None)
        elif isinstance(value, list): value = value[int(key)]
        elif isinstance(value, dict) and key in value: value = value[key]
        else: raise LookupError(f"{file} has no {path} (stopped at {key})")
        if value is None: raise LookupError(f"{file}: {path} finds nothing at {key}")
    for op in filter(None, ops.split("|")):
        if op == "%": value = value * 100
        elif op == "abs": value = abs(value)
        elif op == "len": value = len(value)
        elif op == "inv": value = 1 / value
        elif op[0] in "*/" and float(op[1:]): value = value * float(op[1:]) if op[0] == "*" else value / float(op[1:])
        else: raise LookupError(f"unknown scaling {op}")
    if isinstance(value, bool) or not isinstance(value, (int, float)): raise LookupError(f"{file}: {path} is {type(value).__name__}, not a number")
    return value


def shown(value, like):
    "A value written like the quoted number: as many digits, the same minus sign, commas where it has them."
    digits = len(like.split(".")[1]) if "." in like else 0
    text = f"{value:{',' if ',' in like else ''}.{digits}f}"
    if float(text.replace(",", "")) == 0: text = text.lstrip("-")
    return text.replace("-", "−" if "−" in like or "-" not in like else "-")


def wrong(text):
    "[(match, what it should say or an error)] of the quoted numbers that differ."
    for m in QUOTE.finditer(text):
        try: right = shown(look(m["file"], m["path"], m["ops"]), m["number"])
        except (LookupError, ValueError, IndexError) as error: yield m, error; continue
        if right != m["number"]: yield m, right


def bare(text):
    "Does this text link to a record and give figures with decimals without quoting one properly?"
    linked = re.search(r"\]\((?:\.\./)?results/[\w.\-]+\.json\)", text)
    plain = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|<!--.*?-->|\barXiv\S* \S+|\d{4}\.\d{5}", "", text, flags=re.S)
    return bool(linked and not QUOTE.search(text) and re.search(r"\d\.\d", plain))


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--fix", action="store_true")
    fix, bad, count = args.parse_args().fix, 0, 0
    for name, text, write in pages():
        new, count = text, count + len(QUOTE.findall(text))
        for m, right in reversed(list(wrong(text))):
            bad += not fix or isinstance(right, Exception)
            print(f"{name}: {m['number']} at {m['file']}:{m['path']}: {'' if isinstance(right, Exception) else 'the record says '}{right}")
            if fix and not isinstance(right, Exception): new = new[:m.start()] + right + new[m.end("number"):]
        if new != text: write(new)
        if bare(text): print(f"{name}: figures beside a record, none of them tied to it")
    print(f"{count} figures tied to records, {bad} wrong")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
