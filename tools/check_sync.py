"""Are the notebooks clean and the package in step with them? Exports and cleans; fails when that changed anything."""
import hashlib
import re
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin_dir = Path(sys.executable).parent


def tree():
    "Every notebook and module with a hash of its content."
    files = [*root.glob("nbs/*.ipynb"), *root.glob("liveavatar_nb/**/*.py")]
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def orphans():
    "Modules that no notebook exports any more (a renamed notebook leaves its old module behind)."
    for f in sorted(root.glob("liveavatar_nb/**/*.py")):
        if f.name == "_modidx.py" or f.stat().st_size == 0:
            continue
        source = re.search(r"File to edit: (\S+\.ipynb)", f.read_text(encoding="utf-8"))
        if not source or not (f.parent / source[1]).exists():
            yield str(f.relative_to(root))


before = tree()
for command in ("nbdev_export", "nbdev_clean"):
    subprocess.run([bin_dir / command], cwd=root, check=True)
after = tree()
changed = sorted(f for f in before | after if before.get(f) != after.get(f))
left = list(orphans())
if changed:
    print("notebooks and package were out of step, or a notebook was not clean; now they are, so look and commit:", *changed, sep="\n  ")
if left:
    print("no notebook exports these modules; delete them:", *left, sep="\n  ")
if changed or left:
    sys.exit(1)
if (root / ".git").exists():  # in a clone: what is tested is what is committed
    dirty = subprocess.run(["git", "status", "--porcelain", "--", "nbs", "liveavatar_nb"], cwd=root, capture_output=True, text=True).stdout
    if dirty:
        print("not committed yet:", dirty.rstrip(), sep="\n")
print(f"{len(list(root.glob('nbs/*.ipynb')))} notebooks are clean and in step with {len(after)} files")
