"The cache against a plain list, the masks against a brute-force rule, the sampler's sink: inputs by hypothesis."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from liveavatar_nb.model.cache import History, LayerKV
from liveavatar_nb.model.flow import add_noise, euler_step, official_sigmas, shift_sigma, sigmas, velocity
from liveavatar_nb.model.rope import rotate
from liveavatar_nb.model.masks import block_causal_mask, flex_mask_mod, teacher_forcing_mask
from liveavatar_nb.stream.sink import JitteredSink, SINKS, sink_settings, without

TOKENS = 2

def frames(numbers):
    x = torch.tensor(list(numbers), dtype=torch.float32).repeat_interleave(TOKENS).reshape(1, -1, 1, 1).expand(-1, -1, -1, 6)
    return [LayerKV(x, -x)]

steps = st.lists(st.one_of(st.integers(1, 7), st.just("sink"), st.just("save"), st.just("room")), max_size=12)

@settings(deadline=None, max_examples=60)
@given(window=st.integers(0, 10), steps=steps, rolling=st.booleans())
def test_history_is_a_list(window, steps, rolling):
    h, seen, sink = History(1, TOKENS, window, 30., rolling), [], None
    for number, step in enumerate(steps):
        if step == "sink":
            sink = 1000 + number
            h.set_sink(frames([sink]), torch.zeros(TOKENS, 3))
        elif step == "room" and h.open(2) is not None:      # as the network does it: two frames, written in place
            new = range(len(seen), len(seen) + 2); seen += new; room = h.open(2)
            for layer, own in zip(room.kv, frames(new)): layer.write(rotate(own.k, *room.angles), own.v)
            h.append(room)
        elif step == "room": pass
        elif step == "save": h = History(1, TOKENS, window, 30., rolling).restore(h.snapshot())
        else:
            new = range(len(seen), len(seen) + step)
            seen += new
            h.append(frames(new))
        want = ([] if sink is None else [sink]) + seen[max(0, len(seen) - window):]
        past = h.past()
        if past is None:
            assert not want
            continue
        plain = past.unturned().kv[0]
        assert plain.k[0, ::TOKENS, 0, 0].round().int().tolist() == want and plain.v[0, ::TOKENS, 0, 0].int().tolist() == [-w for w in want]
        assert torch.allclose(plain.k, -plain.v, atol=1e-3)
        t = past.positions[::TOKENS, 0].tolist()
        if sink is not None: assert t.pop(0) == 30. - (0 if rolling else len(seen))
        assert t == list(range(-len(t), 0))

@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 9), tokens=st.integers(1, 3), block=st.integers(1, 4), window=st.one_of(st.none(), st.integers(1, 5)), sink=st.integers(0, 3))
def test_masks_cell_by_cell(n, tokens, block, window, sink):
    mask, forced = block_causal_mask(n, tokens, block, window, sink), teacher_forcing_mask(n, tokens, block, window, sink)
    size, total = block * tokens, n * tokens
    near = lambda a, b: a >= b and (window is None or a - b < window)
    for q in range(total):
        assert mask[q].tolist() == [True] * sink + [near(q // size, k // size) for k in range(total)]
        clean = [near(q // size, k // size) for k in range(total)]
        assert forced[q].tolist() == [True] * sink + clean + [False] * total
        own = [q // size == k // size for k in range(total)]
        assert forced[total + q].tolist() == [True] * sink + [c and not o for c, o in zip(clean, own)] + own
    q, k = torch.arange(2 * total)[:, None], torch.arange(sink + 2 * total)[None]
    assert torch.equal(flex_mask_mod(tokens, block, window, sink, total)(0, 0, q, k), forced)

@settings(deadline=None, max_examples=50)
@given(s=st.floats(0, 1), t=st.floats(0, 1), shift=st.floats(.2, 12), n=st.integers(1, 60))
def test_flow(s, t, shift, n):
    levels = sigmas(n, shift)
    assert levels[0] == 1 and levels[-1] == 0 and (levels.diff() < 0).all()
    assert abs(shift_sigma(shift_sigma(s, shift), 1 / shift) - s) < 1e-6
    x0, eps = torch.tensor([[.3, -2.]]), torch.tensor([[1.1, .4]])
    assert torch.allclose(euler_step(add_noise(x0, eps, s), velocity(x0, eps), s, t), add_noise(x0, eps, t), atol=1e-5)

def test_official_levels():
    assert official_sigmas(4).tolist() == pytest.approx([1, .857692301273346, .602150559425354, .008928571827709675, 0], abs=0)

@given(seed=st.integers(0, 2**40), block=st.integers(0, 10**8))
def test_jitter_is_a_function(seed, block):
    sink = JitteredSink(seed=seed)
    d = sink(3 * block)
    assert d == JitteredSink(seed=seed)(3 * block) and 4 <= d <= 30 and d >= 30 - 3 * block

def test_sink_names():
    from liveavatar_nb.stream.sampler import SamplerConfig
    for name in SINKS: SamplerConfig(**sink_settings(name))
    full = SamplerConfig(**sink_settings("full"))
    assert without(full, "aas").refresh_at is None and not without(full, "rolling-rope").rolling and without(full, "history-corrupt").policy == "clean"
    with pytest.raises(ValueError, match="choose one of"): without(full, "x")
    assert SamplerConfig(sink_jitter=[4, 30]).sink_jitter == (4, 30)
