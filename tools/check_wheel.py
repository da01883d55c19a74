"""Build sdist and wheel, install the wheel into an empty environment, import everything there.

The new environment borrows the third-party packages of this one (a .pth file), so nothing is downloaded twice;
that the package itself comes from the wheel, and that every import is a declared requirement, is checked."""
import ast
import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parents[1]
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
package = cfg["lib_path"]

PROBE = """
import importlib, pkgutil, sys
import {package}
from pathlib import Path
home = Path({package}.__file__).parent
assert Path(sys.prefix) in home.parents, f"imported from {{home}}, not from the wheel"
names = [m.name for m in pkgutil.walk_packages([str(home)], "{package}.")]
for name in names: importlib.import_module(name)
weights = sorted(p.name for p in (home / "weights").glob("*")) if (home / "weights").exists() else []
samples = sorted(str(p.relative_to(home / "_samples")) for p in (home / "_samples").rglob("*") if p.is_file())
print(len(names), "modules;", "weights:", *weights, ";", "samples:", *samples)
missing = set({weights}) - set(weights) | set({samples}) - set(samples)
assert not missing, f"not in the wheel: {{sorted(missing)}}"
"""


def run(*command, **kwargs):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(key):
    return {normal(re.match(r"[\w.\-]+", r)[0]) for r in cfg[f"{key}requirements"].split()}


def undeclared():
    "Third-party imports that settings.ini doesn't name. Imports at module level must be base requirements."
    base = declared("")
    anywhere = base | set().union(*(declared(f"{e}_") for e in (k.removesuffix("_requirements") for k in cfg if k.endswith("_requirements"))))
    owners = metadata.packages_distributions()
    for f in sorted((root / package).rglob("*.py")):
        tree = ast.parse(f.read_text(encoding="utf-8"))
        late = {n for d in ast.walk(tree) if isinstance(d, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try)) for n in ast.walk(d)}
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {package, ""}:
                dists = {normal(d) for d in owners.get(top, [top])}
                if not dists & (anywhere if node in late else base):
                    yield f"{f.relative_to(root)}:{node.lineno} imports {top}"


missing = list(undeclared())
if missing:
    sys.exit("not in settings.ini's requirements:\n  " + "\n  ".join(missing))
with tempfile.TemporaryDirectory() as tmp:
    tmp = Path(tmp)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp / "dist", root)  # sdist, then the wheel out of it
    wheel = next((tmp / "dist").glob("*.whl"))
    venv.create(tmp / "env", with_pip=False)
    env_python = tmp / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", env_python, "install", "--disable-pip-version-check", "--no-deps", "--no-index", wheel)
    site = Path(run(env_python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    weights = sorted(p.name for p in (root / package / "weights").glob("*") if p.suffix in (".safetensors", ".json"))
    samples = sorted(str(p.relative_to(root / "data" / "samples")) for p in (root / "data" / "samples").rglob("*") if p.is_file())
    (tmp / "away").mkdir()
    probe = PROBE.format(package=package, weights=weights, samples=samples)
    print(run(env_python, "-c", probe, cwd=tmp / "away").strip())
    run(tmp / "env" / "bin" / "liveavatar-nb", "--help", cwd=tmp / "away")
    print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB: installs and imports in an empty environment")
shutil.rmtree(root / "build", ignore_errors=True)
