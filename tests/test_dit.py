"""What the chapters 23 to 27 can't show well: any text, back ends through the whole network, low precision, teacher forcing."""
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st

from liveavatar_nb.model.cache import LayerKV, Past
from liveavatar_nb.model.conditions import join, tile_frames, tokenize, window
from liveavatar_nb.model.dit import DiT, DiTConfig, sink_past
from liveavatar_nb.model.masks import block_causal_mask, flex_block_mask, teacher_forcing_mask

F, S = 9, 16    # three blocks of latents 8 x 8


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = DiT(DiTConfig(dim=96, ffn_dim=192, heads=3, layers=3, inject_layers=(0, 2))).requires_grad_(False).eval()
    for p in net.parameters(): torch.nn.init.normal_(p, std=.12 if p.ndim > 1 else .3)
    return net

@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(1)
    return torch.randn(1, 16, F, 8, 8), torch.randn(1, 4 * F, 80), torch.randn(1, 16, 1, 8, 8)


@given(st.text(max_size=200), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_any_text_becomes_whole_characters(text, length):
    row = tokenize(text, length)[0]
    used = int((row > 0).sum())
    assert row.shape == (length,) and (row[:used] > 0).all() and (row[used:] == 0).all() and row.max() <= 256
    read = bytes((row[:used] - 1).tolist()).decode()                 # fails if a character was cut
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in read)
    assert " ".join(text.split()).isascii() is False or len(read) <= length

@given(st.integers(0, 8), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_sound_in_any_cut(net, history, frames):
    "Five real frames of past, and a block's sound tokens do not know where the stream was cut."
    torch.manual_seed(history)
    x = torch.randn(1, 1, 80, 16 + 4 * frames)
    encoder = net.casual_audio_encoder
    whole, part = encoder.blocks(x), encoder.blocks(x[..., 16 - history:], history)
    for w, p in zip(whole, part):
        same = (w[:, 4:] - p).abs().max() < 1e-5
        assert same == (history >= encoder.reach)

def test_back_ends_agree_through_the_network(net, clip):
    x, sound, portrait = clip
    c = net.conditions("a cat", sound)
    past = sink_past(*net.prefill(portrait, c), 10.)
    mask = block_causal_mask(F, S, sink_tokens=S)
    want, _ = net(x, .6, c, past, mask=mask, backend="naive")
    assert (net(x, .6, c, past, mask=mask, backend="sdpa")[0] - want).abs().max() < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (net(x, .6, c, past, mask=flex_block_mask(F, S, sink_tokens=S))[0] - want).abs().max() < 1e-4

def test_teacher_forcing_equals_clean_cache(net, clip):
    "[clean clip | noisy clip] at once = each noisy block on the clean keys of the blocks before."
    x, sound, _ = clip
    clean, c = x.roll(1, 2), net.conditions("", sound)
    sigma = torch.tensor([0.] * F + [.7] * F)[None]
    both, _ = net(torch.cat([clean, x], 2), sigma, tile_frames(c, 2), frames=torch.arange(F).repeat(2), mask=teacher_forcing_mask(F, S))
    kv = []
    for b in range(0, F, 3):
        def at(): return None if not kv else Past([LayerKV(*(torch.cat(t, 1) for t in zip(*layer))) for layer in zip(*kv)], places)
        if kv: places = torch.cat([torch.stack(torch.meshgrid(torch.arange(f, f + 3.), torch.arange(4.), torch.arange(4.), indexing="ij"), -1).flatten(0, 2) for f in range(-b, 0, 3)])
        now, cond = slice(b, b + 3), window(c, b, b + 3)
        v, _ = net(x[:, :, now], .7, cond, at())
        assert (v - both[:, :, F + b:F + b + 3]).abs().max() < 1e-4
        kv.append(net(clean[:, :, now], 0., cond, at())[1])

def test_guidance_batch_equals_two_calls(net, clip):
    x, sound, portrait = clip
    pair = net.conditions("a cat", sound), net.conditions("", torch.zeros_like(sound))
    pasts = [sink_past(*net.prefill(portrait, c), 10.) for c in pair]
    both = Past([LayerKV(*(torch.cat(t) for t in zip(*layers))) for layers in zip(*(p.kv for p in pasts))], pasts[0].positions)
    v, _ = net(x.repeat(2, 1, 1, 1, 1), .5, join(*pair), both)
    for i in range(2): assert (v[i] - net(x, .5, pair[i], pasts[i])[0][0]).abs().max() < 1e-4
    assert (v[0] - v[1]).abs().max() > 1e-2

def test_bfloat16_and_autocast_stay_close(net, clip):
    x, sound, portrait = clip
    def run(net, x, sound, portrait):
        c = net.conditions("a cat", sound)
        return net(x, .5, c, sink_past(*net.prefill(portrait, c), 10.))[0].float()
    want = run(net, *clip)
    with torch.autocast("cpu", torch.bfloat16): auto = run(net, *clip)
    low = DiT(net.config).bfloat16(); low.load_state_dict(net.state_dict())
    half = run(low, *(t.bfloat16() for t in clip))
    for got in (auto, half): assert (got - want).square().mean().sqrt() < .05 * want.square().mean().sqrt()

def test_a_new_network_learns_everywhere():
    "Zero head: the first step moves the head, the second one everything else."
    torch.manual_seed(0)
    net = DiT(DiTConfig(dim=96, ffn_dim=192, heads=3, layers=3, inject_layers=(0, 2)))
    sgd = torch.optim.SGD(net.parameters(), .1)
    for _ in range(2):
        c = net.conditions(["a cat, angry"], torch.randn(1, 12, 80))
        v, _ = net(torch.randn(1, 16, 3, 8, 8), torch.rand(1, 3), c, sink_past(*net.prefill(torch.randn(1, 16, 1, 8, 8), c), 10.))
        sgd.zero_grad(); (v - torch.randn_like(v)).square().mean().backward(); sgd.step()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []

@pytest.mark.parametrize("call,message", [
    (lambda net, c, x: net(x[:, :8], .5, c), "channels"),
    (lambda net, c, x: net(x[:, :, :3], .5, c), "latent frames of sound"),
    (lambda net, c, x: net(x.repeat(2, 1, 1, 1, 1), .5, c), "batch"),
    (lambda net, c, x: net(x, .5, c, backend="magic"), "unknown attention back end"),
    (lambda net, c, x: net.conditions("x", torch.zeros(1, 12)), "audio features"),
    (lambda net, c, x: net.conditions("x", torch.zeros(1, 13, 80)), "multiple of 4"),
])
def test_one_clear_line(net, clip, call, message):
    with pytest.raises(ValueError, match=message) as e: call(net, net.conditions("", clip[1]), clip[0])
    assert "\n" not in str(e.value)
