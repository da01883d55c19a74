"""Clips: a pure function of the seed, with nothing shared between the splits."""
import os
import subprocess
import sys

import numpy as np
import pytest
from liveavatar_nb.data.audio import audio_features, load_audio
from liveavatar_nb.data.clips import ClipDataset, collate, emphasis, make_clip, make_samples, roughen
from liveavatar_nb.data.speech import visemes


def test_shapes_and_truth():
    c = make_clip(2, "heldout", 36, 48)
    assert c.frames.shape == (37, 48, 48, 3) and c.frames.dtype == np.uint8 and c.samples.shape == (36 * 640,)
    assert c.audio.shape == (36, 80) and c.motion.shape == (36, 15) and c.motion.dtype == np.float32
    np.testing.assert_array_equal(c.motion[:, :5], visemes(c.phonemes, 36))
    np.testing.assert_array_equal(c.audio, audio_features(c.samples, 36))
    assert c.voice.split == "heldout" and c.frames[1:].std(0).max() > 0


def test_a_fresh_process_makes_the_same_clip():
    code = ("import hashlib; from liveavatar_nb.data.clips import make_clip; c = make_clip(5, n_frames=12, size=32); "
            "print(hashlib.md5(c.frames.tobytes() + c.samples.tobytes() + c.motion.tobytes() + c.caption.encode()).hexdigest())")
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": h}).stdout
            for h in ("1", "2")]
    assert runs[0] == runs[1] and len(runs[0].strip()) == 32


def test_longer_clip_same_start():
    "The voice and the motion of a clip do not depend on its length, apart from a long silence at the start."
    short, long = make_clip(8, n_frames=24, size=32), make_clip(8, n_frames=48, size=32)
    assert short.identity.attributes.tolist() == long.identity.attributes.tolist() and short.caption == long.caption and short.voice == long.voice


def test_rough_sound_keeps_the_picture():
    clean, rough = make_clip(4, n_frames=24, size=32), make_clip(4, n_frames=24, size=32, rough=True)
    np.testing.assert_array_equal(clean.frames, rough.frames)
    assert not np.array_equal(clean.samples, rough.samples) and np.abs(rough.samples).max() <= 1
    assert roughen(np.zeros(10, np.float32), np.random.default_rng(0)).shape == (10,)


def test_overrides():
    face = make_clip(1, n_frames=1, size=32).identity
    c = make_clip(7, n_frames=8, size=32, identity=face, mood="angry", manner="still")
    assert c.identity is face and c.mood == "angry" and c.manner == "still"


@pytest.mark.parametrize("bad", [dict(seed=-1), dict(seed=0, n_frames=0), dict(seed=0, split="x"), dict(seed=0, mood="x"), dict(seed=0, manner="x")])
def test_errors(bad):
    with pytest.raises(ValueError) as e:
        make_clip(**bad)
    assert "\n" not in str(e.value)


def test_emphasis_of_odd_lengths():
    assert emphasis(np.ones(10_000, np.float32), 3).shape == (3,) and emphasis(np.ones(3, np.float32), 3)[2] < 0.1


def test_data_set():
    data = ClipDataset("heldout", 4, 32, 5, start=100)
    assert len(data) == 5 and [c.seed for c in data] == [100, 101, 102, 103, 104]
    batch = collate([data[0], data[1]])
    assert batch["frames"].shape == (2, 5, 32, 32, 3) and batch["audio"].shape == (2, 4, 80) and batch["seed"] == [100, 101]


def test_samples(tmp_path):
    names = make_samples(tmp_path)
    assert sorted(os.listdir(tmp_path)) == names and sum(p.stat().st_size for p in tmp_path.iterdir()) < 1_500_000
    for name, (low, high) in dict(hello=(4, 9), nihao=(4, 9), long=(15, 26)).items():
        assert low < len(load_audio(tmp_path / f"{name}.wav")) / 16000 < high
    notes = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in notes and all(name in notes for name in names if name != "README.md")
