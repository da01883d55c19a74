"""A session: interruption, going back, blocks of one, queues, stalls, and many threads at once. A fake clock, the small preset with fresh weights."""
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from liveavatar_nb.serve.ends import FakeClock, Screen, Sounds
from liveavatar_nb.serve.session import Mark, Session, drive, offline
from liveavatar_nb.serve.watching import count_blinks
from liveavatar_nb.stream.avatar import untrained

rng = np.random.default_rng(0)
VOICE = (.1 * rng.standard_normal(64_000)).astype(np.float32)
FACE = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def avatar():
    torch.set_num_threads(1)
    return untrained("pico", levels=(1., .5, 0.), policy="timestep", window_frames=6)


def session(avatar, **options):
    return Session(avatar, FACE, clock=FakeClock(), **options)


@pytest.mark.parametrize("block_frames", [1, 3])
def test_any_pieces_equal_offline(avatar, block_frames):
    s = session(avatar, block_frames=block_frames, seed=2, mark=False)
    s.say(VOICE[:1], more=True)
    for a, b in ((1, 5000), (5000, 5001), (5001, 23_040)): s.feed(VOICE[a:b])
    s.end()
    _, made = drive(s, 1.6)
    got = np.concatenate([t.frames for t in made])[:36].astype(int)
    want = offline(avatar, FACE, "a person, calm, still", VOICE[:23_040], seed=2, block_frames=block_frames)
    assert want.shape[0] == 36 and np.abs(got - want).max() <= 1
    assert np.array_equal(np.concatenate([t.samples for t in made])[:23_040], VOICE[:23_040])


@settings(max_examples=6)
@given(st.floats(.1, 2.2), st.booleans(), st.sampled_from([1, 3]))
def test_interruption(avatar, at, silent, block_frames):
    "Sound of the old utterance ends at the interruption, its picture within a block; numbers run on; the new sound is whole."
    s = session(avatar, block_frames=block_frames)
    s.say(VOICE)
    screen, made = drive(s, 3.2, [(at, s.interrupt if silent else lambda: s.say(VOICE[:6400], mark="new"))])
    old, new = [r for r in screen.shown if r[2] == 1], [r for r in screen.shown if r[2] == 2]
    assert max((r[3] for r in old), default=0) <= at + .02
    assert new[0][0] <= at + s.seconds + .03 and all(r[2] == 2 for r in screen.shown[screen.shown.index(new[0]):])
    assert [r[1] for r in screen.shown] == list(range(len(screen.shown)))
    sound = np.concatenate([t.samples for t in made if t.epoch == 2])
    assert np.array_equal(sound[:6400], np.zeros(6400) if silent else VOICE[:6400]) and not sound[6400:].any()


def test_going_back_leaves_no_trace(avatar):
    "A stream that was taken back equals one that never strayed, with other settings, portraits and policies in between."
    for policy in ("timestep", "clean"):
        one, two = (avatar.stream(FACE, "calm", seed=4, policy=policy) for _ in range(2))
        for x in (one, two): list(x.push(VOICE[:9000]))
        mark = Mark(one)
        list(one.push(VOICE[20_000:30_000])); one.say("angry"); one.change(steps=3); list(one.push(VOICE[:8000]))
        for _ in range(2):      # a mark can be used twice
            mark.restore()
            again = [c.frames for c in one.push(VOICE[9000:23_040])]
        want = [c.frames for c in two.push(VOICE[9000:23_040])]
        assert np.array_equal(again, want) and one.prompt == "calm" and one.config == two.config


def test_queue_is_an_option_and_marks_come_back(avatar):
    s = session(avatar, replace=False)
    for m in "ab": s.say(VOICE[:9000], mark=m)
    _, made = drive(s, 2.)
    assert [m for t in made for m in t.begins] == ["a", "b"] and [m for t in made for m in t.ends] == ["a", "b"] and {t.epoch for t in made} == {0}
    s.say(VOICE[:9000], replace=True)
    assert s.epoch == 1


def test_wishes_survive_going_back(avatar):
    s = session(avatar)
    s.say(VOICE)
    other = FACE[::-1].copy()
    drive(s, 1.4, [(.6, lambda: s.tell("angry")), (.6, lambda: s.change(steps=3)), (.6, lambda: s.show(other)), (.7, s.interrupt), (.75, s.interrupt)])
    assert (s.stream.prompt, s.stream.config.steps) == ("angry", 3) and s.stream is s.place
    with pytest.raises(ValueError, match="begin another one"): s.change(block_frames=1)
    with pytest.raises(ValueError, match="unknown setting"): s.change(colour=1)
    with pytest.raises(ValueError, match="policy"): s.change(policy="no")
    assert s.config.policy == "timestep"


def test_film_that_cannot_be_taken_back(avatar):
    "Without rewinding every block that was made stays: numbers never repeat."
    s = session(avatar, rewind=False, lead=2.)
    s.say(VOICE)
    _, made = drive(s, 2.5, [(.7, s.interrupt), (1.2, lambda: s.say(VOICE[:6400]))])
    assert [t.number for t in made] == list(range(len(made))) and made[-1].epoch == 3


def test_microphone_keeps_step_and_a_stall_does_not_freeze(avatar):
    s = session(avatar)
    mic = [(1 + .12 * i, lambda i=i: s.hear(VOICE[1920 * i:1920 * (i + 1)], at=1000 + 120. * i)) for i in range(16)]
    screen, made = drive(s, 6., mic)
    assert screen.held < .6 and len(screen.shown) >= 11 and not made[-1].speech
    lag = [1000 * (r[0] + 0) - t.heard for r in screen.shown for t in made if (t.number, t.epoch) == (r[1], r[2]) and t.heard is not None]
    assert max(lag[:4]) < 1000 * (s.seconds + .3)         # heard -> on the screen: one block and a little
    heard = np.concatenate([t.samples for t in made])
    first = np.flatnonzero(heard)[0]
    assert np.array_equal(heard[first:first + 16 * 1920], VOICE[:16 * 1920])


def test_live_sound_never_lags():
    s = Sounds(7680)
    s.add(VOICE[:1000], open=True, live=True, heard=0.)
    s.feed(VOICE)
    assert s.waiting == 1.2 and s.skipped == 65_000 - 19_200 and np.isclose(s.take().heard, s.skipped / 16)


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=6), st.sampled_from([2560, 7680]))
def test_sounds_lose_nothing(lengths, size):
    "Utterances come out whole, in order, each from the beginning of a frame."
    s, n = Sounds(size), 0
    for i, k in enumerate(lengths): s.add(np.full(k, i + 1, np.float32))
    out = []
    while s.queue: out.append(s.take().samples)
    out = np.concatenate(out or [np.zeros(0)])
    for i, k in enumerate(lengths):
        at = np.flatnonzero(out == i + 1)
        assert len(at) == k and (not k or (at[0] % 640 == 0 and at[-1] - at[0] == k - 1))


def test_bad_sound_and_text(avatar):
    s = session(avatar)
    for bad, words in ((np.array([np.nan], np.float32), "NaN"), (np.zeros((2, 2), np.float32), "one channel"), (np.zeros(4, np.int16), "divide"), (np.zeros(0, np.float32), "empty"), (" ", "nothing to say")):
        with pytest.raises(ValueError, match=words): s.say(bad)
    assert s.epoch == 0                                      # what can't be said interrupts nothing
    with pytest.raises(ValueError, match="no utterance is open"): s.feed(VOICE)
    with pytest.raises(ValueError, match="waiting"): s.say(np.zeros(16_000 * 601, np.float32))


def test_screen_forgets_what_came_late():
    class Block:
        def __init__(self, number, epoch): self.number, self.epoch = number, epoch
    screen = Screen(.48)
    for n in range(3): screen.receive(Block(n, 0), .1 * n)
    screen.stop(1, 0, .3)
    screen.receive(Block(2, 0), .31); screen.receive(Block(0, 0), .31); screen.receive(Block(1, 1), .32)
    screen.tick(2.)
    assert [(r[1], r[2]) for r in screen.shown] == [(0, 0), (1, 1)] and screen.shown[0][3] == .3 and screen.dropped == 1


def test_threads(avatar):
    "Four threads talk, interrupt and change while a fifth makes blocks: the viewer's film has no gap and no old block."
    s = Session(avatar, FACE)
    screen, errors = Screen(s.seconds), []
    s.on_stop = lambda epoch, keep: screen.stop(epoch, keep, time.monotonic())
    def make():
        try:
            for take in s.takes():
                with s.lock: screen.receive(take, time.monotonic())
        except Exception as e: errors.append(e)
    def poke(i):
        r = np.random.default_rng(i)
        for _ in range(12):
            try: (lambda: s.say(VOICE[:9000]), s.interrupt, lambda: s.tell(f"mood {r.integers(9)}"), lambda: s.hear(VOICE[:1920]))[r.integers(4)]()
            except Exception as e: errors.append(e)
            time.sleep(r.uniform(0, .15))
    maker = threading.Thread(target=make)
    threads = [threading.Thread(target=poke, args=(i,)) for i in range(4)]
    for t in (maker, *threads): t.start()
    for t in threads: t.join()
    until = time.monotonic() + 30
    while len(screen.shown) < 4 and time.monotonic() < until: time.sleep(.05)
    s.closed = True
    maker.join(10)
    assert not errors and [r[1] for r in screen.shown] == list(range(len(screen.shown))) and len(screen.shown) > 2
    epochs = [r[2] for r in screen.shown]
    assert epochs == sorted(epochs) and epochs[-1] == s.epoch
    s.close()
    assert s.stream is None and s.step() is None


def test_count_blinks():
    eye = np.full(100, .8)
    eye[[10, 11, 12]] = .1; eye[50] = .3; eye[80] = .6
    assert count_blinks(eye) == 2 and count_blinks(np.full(9, .7)) == 0


def test_closed_while_a_block_is_made(avatar, monkeypatch):
    "`close` from another thread between the bookkeeping and the block: no block, no error, nothing kept."
    from liveavatar_nb.serve import session as module
    s = session(avatar)
    s.say(VOICE[:20_000])
    monkeypatch.setattr(module, "Mark", lambda stream: (Mark(stream), s.close())[0])
    assert s.step() is None and s.closed and s.stream is None
    assert s.step() is None and list(s.takes()) == []
