"""README.md (and its pictures in assets/) from nbs/index.ipynb. `--check` only compares, for CI."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
directives = re.compile(r"(?:#\|[^\n]*\n?)*")


def build():
    "All files of the README: {path: bytes}."
    nb = nbformat.read(root / "nbs" / "index.ipynb", as_version=4)
    nb.metadata.language_info = {"name": "python"}  # for ```python fences
    cells = []
    for cell in nb.cells:
        head = directives.match(cell.source).group()
        flags = set(re.findall(r"#\|\s*(\w+)(?:: *(\w+))?", head))
        names = {name for name, _ in flags}
        if names & {"hide", "default_exp", "export", "exporti"}:
            continue
        cell.source = cell.source[len(head):]
        if ("echo", "false") in flags:
            cell.metadata.tags = ["no-source"]
        if cell.cell_type == "markdown":  # the notebook lies in nbs/, the README above it
            cell.source = re.sub(r"\]\((?!https?:|#|nbs/)([\w.\-]+\.ipynb)", r"](nbs/\1", cell.source)
            cell.source = cell.source.replace("](../", "](")
        cells.append(cell)
    nb.cells = cells
    exporter = MarkdownExporter(preprocessors=["nbconvert.preprocessors.TagRemovePreprocessor"])
    exporter._preprocessors[-1].remove_input_tags = {"no-source"}
    exporter._preprocessors[-1].enabled = True
    body, resources = exporter.from_notebook_node(nb, {"unique_key": "readme", "output_files_dir": "assets"})
    body = re.sub(r"!\[[^\]]*\]\((?=assets/)", "![the journey of the data](", body)
    text = "<!-- built from nbs/index.ipynb by tools/mkreadme.py: edit the notebook -->\n" + body.strip() + "\n"
    files = {root / name: data for name, data in resources.get("outputs", {}).items()}
    return {root / "README.md": text.encode(), **files}


if __name__ == "__main__":
    files = build()
    if "--check" in sys.argv:
        stale = [str(f.relative_to(root)) for f, data in files.items() if not f.exists() or f.read_bytes() != data]
        if stale:
            sys.exit(f"not built from the newest nbs/index.ipynb: {', '.join(stale)}: run `make readme` and commit")
        print("README.md is up to date")
    else:
        for f, data in files.items():
            f.parent.mkdir(exist_ok=True)
            f.write_bytes(data)
            print(f"wrote {f.relative_to(root)}")
