"Metrics and the exam: properties that hold for any input, and clear errors. The chapters 50 and 51 test the figures."
import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from liveavatar_nb.data.clips import make_clip
from liveavatar_nb.data.world import MOTION_CHANNELS
from liveavatar_nb.eval import genbench, metrics

tracks = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=(60, 15)).cumsum(0))
few = settings(max_examples=15, deadline=None)


@few
@given(tracks, st.integers(-6, 6))
def test_sync_finds_any_delay(track, delay):
    track[:, 0] = np.random.default_rng(int(abs(track[0, 0]) * 1e6) % 1000).normal(size=60)   # no likeness to its own past
    seen = np.roll(track, delay, 0)
    result = metrics.sync(seen, track)
    assert result["lag"] == delay and result["best_correlation"] > .99
    assert result["curve"].shape == (13,) and np.abs(result["curve"]).max() <= 1 + 1e-9


@few
@given(tracks, st.floats(.1, 10), st.floats(-5, 5))
def test_correlation_ignores_scale_and_offset_and_constants(track, scale, offset):
    a, b = track[:, 0], track[:, 1]
    assert metrics.correlation(a, scale * a + offset) == pytest.approx(1)
    assert metrics.correlation(a, -a) == pytest.approx(-1)
    assert metrics.correlation(a, b) == pytest.approx(metrics.correlation(b, a))
    assert metrics.correlation(a, np.full(60, offset)) == 0


@few
@given(tracks, tracks)
def test_frechet_is_a_squared_distance(a, b):
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6 * (1 + a.var()))
    there, back = metrics.frechet(a, b), metrics.frechet(b, a)
    assert there == pytest.approx(back, rel=1e-3, abs=1e-3) and there >= 0
    assert metrics.frechet(a, a + 1) == pytest.approx(15, rel=1e-3, abs=1e-3)


@few
@given(tracks, st.floats(.1, 3))
def test_variance_ratio_is_the_square_of_the_scale(track, scale):
    ratio = metrics.variance_ratio([scale * track], [track])
    assert set(ratio) == {"mouth", "head", "expression", "motion"}
    assert all(v == pytest.approx(scale**2) for v in ratio.values())


@few
@given(st.integers(0, 255), st.integers(0, 255))
def test_flat_pictures_have_no_slope_and_no_flicker(a, b):
    one, two = np.full((4, 64, 64, 3), a, np.uint8), np.full((4, 64, 64, 3), b, np.uint8)
    assert metrics.sharpness(one) == 0 and metrics.flicker(one) == 0
    assert metrics.colour_difference(one, one) == 0
    assert (metrics.colour_difference(one, two) > 0) == (a != b)
    assert metrics.flicker(np.concatenate([one[:1], two[:1]])) == abs(a - b)


def test_flicker_looks_at_the_corners_only():
    frames = np.zeros((6, 64, 64, 3), np.uint8)
    frames[::2, 20:, 20:44] = 255                 # a wild face
    assert metrics.flicker(frames) == 0
    frames[::2, 0, 0] = 255
    assert metrics.flicker(frames) > 0


def test_training_batches_are_pure_and_held_out_faces_differ():
    one, again = metrics.probe_batch(3, 1, 8), metrics.probe_batch(3, 1, 8)
    assert all(np.array_equal(a, b) for a, b in zip(one, again))
    other = metrics.probe_batch(3, 1, 8, "heldout")
    assert not np.array_equal(one[3], other[3])
    assert one[0].shape == (8, 64, 64, 3) and one[1].shape == (8, len(MOTION_CHANNELS)) and one[3].dtype == np.float32


def test_read_clip_wants_square_frames():
    with pytest.raises(ValueError, match="H = W"): metrics.read_clip(metrics.Probe().eval(), np.zeros((2, 64, 96, 3), np.uint8))
    with pytest.raises(ValueError, match="H = W"): metrics.read_clip(metrics.Probe().eval(), np.zeros((64, 64, 3), np.uint8))


def test_reading_does_not_depend_on_batch_or_size():
    probe, frames = metrics.Probe().eval(), np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    a, b = metrics.read_clip(probe, frames), metrics.read_clip(probe, frames, batch=2)
    assert np.abs(a.motion - b.motion).max() < 1e-4 and np.linalg.norm(a.identity) == pytest.approx(1, abs=1e-5)
    large = frames.repeat(2, 1).repeat(2, 2)
    assert np.abs(metrics.read_clip(probe, large).motion - a.motion).max() < 1e-4


@pytest.mark.parametrize("options, message", [(dict(set="medium"), "unknown set"), (dict(clips=0), "from 1 to 100"), (dict(clips=101), "from 1 to 100"),
                                              (dict(set="long", clips=16), "from 1 to 15"), (dict(preset="huge"), "unknown preset"),
                                              (dict(models="nowhere"), "no weights"), (dict(models="truth,VAE:4"), "no weights|steps=4")])
def test_bench_errors_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as e: genbench.bench_genbench(**options, progress=False)
    assert "\n" not in str(e.value)


@dataclass
class _Part: frames: np.ndarray


class _Echo:
    "Stands in for a LiveAvatar: gives back frames whose brightness counts blocks."
    class preset: frames_per_block = 12
    def stream(self, portrait, prompt, seed, **settings):
        self.asked, self.pushed = (portrait.shape, prompt, seed, settings), []
        return self
    def push(self, samples):
        self.pushed.append(len(samples))
        if len(samples) == 7680: yield _Part(np.full((12, 64, 64, 3), len(self.pushed), np.uint8))
    def flush(self):
        if self.pushed[-1] < 7680: yield _Part(np.full((self.pushed[-1] // 640, 64, 64, 3), 99, np.uint8))


def test_generate_clip_gives_portrait_caption_and_all_sound_and_nothing_else():
    clip, avatar = make_clip(1001, "heldout", 30, 64), _Echo()
    frames, took = genbench.generate_clip(avatar, clip, seed=4, steps=3)
    assert avatar.asked == ((64, 64, 3), clip.caption, 4, dict(steps=3))
    assert avatar.pushed == [7680, 7680, 6 * 640]
    assert frames.shape == (30, 64, 64, 3) and frames[::12, 0, 0, 0].tolist() == [1, 2, 99] and len(took) == 3


def test_row_of_one_silent_clip_is_finite():
    rng = np.random.default_rng(0)
    still = np.zeros((24, 15), np.float32)
    marks = genbench.Marks(dict.fromkeys(genbench.NUMBERS, 1.), still, still, still, *rng.normal(size=(2, 8, 4)), np.zeros(2), np.full(2, 30.))
    row = genbench.row("quiet", [marks])
    assert row["correlation"] == 0 and row["clips"] == 1 and json.loads(json.dumps(row)) == row
    assert all(np.isfinite(v) for v in row.values() if not isinstance(v, str))
