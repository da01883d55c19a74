"""Shared set-up: one thread (tests run beside each other), the same random examples in each run."""
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("repo", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("repo")


@pytest.fixture(scope="session")
def exported_nano(tmp_path_factory):
    "The shipped nano, exported once through the command line: (folder, record)."
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason="exporting is the extra `export`")
    from liveavatar_nb.cli import main
    folder = tmp_path_factory.mktemp("export")
    assert main(["export", "onnx", "--preset", "nano", "--out", str(folder / "nano"), "--check", "1", "--json", str(folder / "nano.json")]) == 0
    return folder / "nano", json.loads((folder / "nano.json").read_text())
