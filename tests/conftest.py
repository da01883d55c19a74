"""Shared set-up: one thread (tests run beside each other), the same random examples in each run."""
import atexit
import json
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "LIVEAVATAR_CONFIG" not in os.environ:        # keys of the tests, not the user's
    os.environ["LIVEAVATAR_CONFIG"] = tempfile.mkdtemp(prefix="liveavatar-test-")
    atexit.register(shutil.rmtree, os.environ["LIVEAVATAR_CONFIG"], ignore_errors=True)
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


def pytest_collection_modifyitems(items):
    "Tests that start browsers or two launchers take minutes and have not yet been run whole on a quiet machine since their rewriting: LIVEAVATAR_SLOW=1 runs them."
    if os.environ.get("LIVEAVATAR_SLOW"):
        return
    for item in items:
        if item.path.stem in ("test_demo", "test_play", "test_tpp_nodes"):
            item.add_marker(pytest.mark.skip(reason="not yet run whole on a quiet machine since it was rewritten: LIVEAVATAR_SLOW=1"))
