"""The exported graphs are the same model: the shipped `nano`, out through the command line, streams as PyTorch does (chapter 72b shows it for `pico`)."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason="exporting is the extra `export`")

from liveavatar_nb.cli import main  # noqa: E402
from liveavatar_nb.data.audio import load_audio  # noqa: E402
from liveavatar_nb.serve import export  # noqa: E402
from liveavatar_nb.serve.graphs import ExportError  # noqa: E402
from liveavatar_nb.stream.avatar import LiveAvatar  # noqa: E402


def test_twenty_blocks_of_nano(exported_nano):
    avatar, voice = LiveAvatar.from_pretrained("nano"), np.resize(load_audio("data/samples/hello.wav"), 20 * 7680)
    gaps = export.differences(avatar, exported_nano[0], 20, voice, "a cat, happy")
    assert len(gaps) == 20 and max(gaps) < 1e-3
    assert max(export.differences(avatar, exported_nano[0], 6, voice[5 * 7680:], block_frames=1)) < 1e-3


def test_record_and_manifest_say_what_is_there(exported_nano):
    folder, record = exported_nano
    model = json.loads((folder / "model.json").read_text())
    assert record["result"]["largest_difference"] < 1e-3 and record["result"]["weights"] == model["weights"] == "nano_student"
    assert set(model["files"]) == {p.name for p in folder.iterdir()} - {"model.json"}
    assert all((folder / name).stat().st_size == f["bytes"] for name, f in model["files"].items())
    assert record["result"]["bytes"] == sum(p.stat().st_size for p in folder.iterdir()) < 16e6
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []


def test_an_export_that_differs_is_not_handed_over(exported_nano, tmp_path, monkeypatch):
    "Also: what fails on the way leaves nothing behind, and the older export stays."
    (tmp_path / "x").mkdir()
    for p in exported_nano[0].iterdir():
        (tmp_path / "x" / p.name).write_bytes(p.read_bytes())
    monkeypatch.setattr(export, "parts_of", lambda avatar: {})
    monkeypatch.setattr(export, "differences", lambda *a, **k: [.5])
    before = {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()}
    with pytest.raises(ExportError, match="differ from PyTorch"):
        export.export_onnx(tmp_path / "x", "nano")
    assert {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()} == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("argv, says", [
    (["export", "onnx", "--preset", "wan-s2v-14b"], "weights"),
    (["export", "tflite"], "use one of onnx"),
    (["export", "onnx", "--bits", "4"], "8, 16, 32 or auto"),
])
def test_one_line_for_what_cannot_be(argv, says, tmp_path, capsys):
    assert main([*argv, "--out", str(tmp_path / "y")]) in (1, 2)
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_other_networks_are_refused_by_name():
    network = SimpleNamespace(config=SimpleNamespace(framepack=True, text_vocab=0, reference=False))
    with pytest.raises(ExportError, match="wan.*can't be exported"):
        export.parts_of(SimpleNamespace(preset=SimpleNamespace(name="wan-s2v-14b"), dit=network, vae=None))
