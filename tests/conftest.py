"""Shared set-up: one thread (tests run beside each other), the same random examples in each run."""
import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

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


@pytest.fixture
def folder(good, tmp_path):
    "A copy of the module's `good` folder in the official layout, to be broken."
    return Path(shutil.copytree(good, tmp_path / "ckpt"))


@pytest.fixture(scope="session")
def pipeline_config():
    "make(folder, seconds, **settings): a tiny run of 7 blocks with its voice and face in a folder."
    def make(folder, seconds, **settings):
        import numpy as np
        from PIL import Image
        from liveavatar_nb.data.audio import save_wav
        from liveavatar_nb.stream.settings import TPPConfig
        t = np.arange(16000 * seconds) / 16000
        save_wav(folder / "voice.wav", .3 * np.sin(1000 * t) * (np.sin(9 * t) > 0))
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "face.png")
        both = dict(preset="tiny", n_blocks=7, refresh_at=4, checkpoint_every=2, record=True)
        return TPPConfig(str(folder / "voice.wav"), str(folder / "face.png"), "calm", str(folder), **both | settings)
    return make


@pytest.fixture
def refusal(tmp_path, capsys):
    "refusal(main, config): the one line with which a command line refuses these settings, with exit code 2."
    def ask(main, config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(vars(config)))
        assert main(["--config", str(path)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]
    return ask
