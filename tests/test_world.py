"Faults and open-ended inputs of the drawn world: what notebook 10 does not show."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from liveavatar_nb.data.world import (ATTRIBUTES, MANNERS, MOODS, MOTION_CHANNELS, MOTION_HIGH, MOTION_LOW, N_ATTRIBUTES,
                                      Identity, background, chance, idle_motion, random_identity, render, render_portrait,
                                      rest_motion, split_seed)

quick = settings(max_examples=40, deadline=None)
unit = st.floats(0, 1, width=32)
motions = arrays(np.float32, st.tuples(st.integers(1, 3), st.just(len(MOTION_CHANNELS))), elements=unit).map(
    lambda u: MOTION_LOW + u * (MOTION_HIGH - MOTION_LOW))
identities = st.builds(Identity, st.integers(0, 3), arrays(np.float32, N_ATTRIBUTES, elements=unit))


@quick
@given(identities, motions, st.sampled_from((16, 33, 64)))
def test_any_face_in_any_motion_renders(who, motion, size):
    frames = render(who, motion, size)
    assert frames.dtype == np.uint8 and frames.shape == (len(motion), size, size, 3)
    assert frames.std() > 5                                           # a picture, not a flat colour
    assert np.array_equal(frames, render(who, motion, size))


@quick
@given(identities, motions)
def test_a_frame_does_not_depend_on_the_frames_around_it(who, motion):
    assert np.array_equal(render(who, motion, 32)[-1:], render(who, motion[-1:], 32))


@quick
@given(identities, arrays(np.float32, (1, 15), elements=st.floats(-1e6, 1e6, width=32)))
def test_motion_out_of_range_is_clipped(who, motion):
    assert np.array_equal(render(who, motion, 32), render(who, np.clip(motion, MOTION_LOW, MOTION_HIGH), 32))


@quick
@given(st.integers(0, 2**40), st.integers(0, 10**9), st.integers(1, 40), st.integers(0, 40),
       st.sampled_from(MOODS), st.sampled_from(MANNERS))
def test_idle_motion_streams(seed, start, n, more, mood, manner):
    long = idle_motion(n + more, seed, mood, manner, start=start)
    piece = idle_motion(n, seed, mood, manner, start=start + more)
    assert piece.shape == (n, 15) and piece.dtype == np.float32
    assert np.abs(long[more:] - piece).max() <= 1e-6
    assert (piece >= MOTION_LOW).all() and (piece <= MOTION_HIGH).all()
    assert not piece[:, :5].any()


@quick
@given(st.integers(0, 2**62), st.integers(0, 1000), st.integers(-2**60, 2**60))
def test_chance_is_a_function(seed, stream, k):
    u = chance(seed, stream, k)
    assert 0 <= u < 1 and u == chance(seed, stream, np.array([k, k + 1]))[0]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_splits_never_meet(i, j):
    assert split_seed("train", i) != split_seed("heldout", j)


@pytest.mark.parametrize("species", range(4))
def test_seeds_give_different_people(species):
    portraits = np.stack([render_portrait(random_identity(seed, species), 32) for seed in range(24)]).astype(int)
    gaps = np.abs(portraits[:, None] - portraits[None]).mean((2, 3, 4)) + 1e9 * np.eye(24)
    assert gaps.min() > 4


@pytest.mark.parametrize("species", range(4))
@pytest.mark.parametrize("channel", [c for c in MOTION_CHANNELS if c not in ("teeth", "tongue")])
def test_every_channel_moves_every_species(species, channel):
    motion, i = rest_motion(2), MOTION_CHANNELS.index(channel)
    motion[:, 0] = .3                                                 # mouth a little open, so that its shape shows
    motion[:, i] = MOTION_LOW[i], MOTION_HIGH[i]
    a, b = render(random_identity(16, species), motion, 64).astype(int)
    assert np.abs(a - b).max() > 25


@pytest.mark.parametrize("species", range(4))
@pytest.mark.parametrize("channel", ["teeth", "tongue"])
def test_teeth_and_tongue_show_in_an_open_mouth(species, channel):
    motion = rest_motion(2)
    motion[:, 0] = .6
    motion[1, MOTION_CHANNELS.index(channel)] = 1
    a, b = render(random_identity(16, species), motion, 64).astype(int)
    changed = np.abs(a - b).max(-1) > 25
    assert 6 < changed.sum() < 400 and not changed[:32].any()         # in the mouth, and nowhere else


def test_size_only_changes_the_sampling():
    who, motion = random_identity(3, 0), idle_motion(2, 1)
    small, large = render(who, motion, 64).astype(float), render(who, motion, 128).astype(float)
    # edges are 1.5 pixels wide at every size, so they are a little softer at 64: 1 to 2 levels of 255 on average
    assert np.abs(large.reshape(2, 64, 2, 64, 2, 3).mean((2, 4)) - small).mean() < 2.


@pytest.mark.parametrize("motion, words", [(np.zeros((3, 14)), "give \\(frames, 15\\)"), (np.zeros((2, 2, 15)), "give \\(frames, 15\\)"),
                                           (np.full((1, 15), np.nan), "NaN")])
def test_bad_motion_is_one_clear_line(motion, words):
    with pytest.raises(ValueError, match=words) as error: render(random_identity(0), motion)
    assert "\n" not in str(error.value)


def test_bad_identity_is_one_clear_line():
    with pytest.raises(ValueError, match="attributes"): render(Identity(0, np.zeros(3, np.float32)), rest_motion())


def test_background_has_no_edges():
    for seed in range(20):
        b = background(random_identity(seed), 64)
        assert np.abs(np.diff(b, axis=0)).max() < .03 and np.abs(np.diff(b, axis=1)).max() < .03


def test_attribute_names_are_unique():
    assert len(set(ATTRIBUTES)) == N_ATTRIBUTES >= 36
