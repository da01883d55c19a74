"What a stream computes once, how it is compiled, which kernels it may use, and what it allocates."
from collections import Counter

import pytest
import torch

from liveavatar_nb.model import attention, cache
from liveavatar_nb.model.attention import CrossAttention
from liveavatar_nb.model.cache import History, LayerKV, LayerRoom
from liveavatar_nb.model.conditions import AdaLayerNorm, join
from liveavatar_nb.model.dit import DiT, DiTConfig
from liveavatar_nb.model.rope import grid_positions
from liveavatar_nb.stream.sampler import BlockSampler, SamplerConfig, many_steps

LAYERS, STEPS, BLOCKS = 2, 4, 12
CONFIG = DiTConfig(dim=48, ffn_dim=96, heads=3, layers=LAYERS, inject_layers=(0,), rope_scale=2., cond_dim=16, reference=True)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = DiT(CONFIG).requires_grad_(False).eval()
    torch.nn.init.normal_(net.head.head.weight, std=.1)
    return net

@pytest.fixture(scope="module")
def sound(): return torch.randn(1, 8 + 12 * BLOCKS, 80, generator=torch.Generator().manual_seed(1))

def sampler(net, **settings):
    sink = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return BlockSampler(net, (16, 8, 8), SamplerConfig(**settings)).start(sink, "a cat, happy")

def roll(s, sound, n=BLOCKS): return torch.cat([s.block(sound[:, 12 * b:12 * b + 20]) for b in range(s.number, n)], 2)


def test_once_a_stream_once_a_block(net, sound, monkeypatch):
    "Text keys and time vectors once a stream, sound and angles once a block: counted."
    calls = Counter()
    def counted(owner, name, what):
        old = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (calls.update([what]), old(*a, **k))[1])
    cache._turns.cache_clear()
    counted(DiT, "time", "time"); counted(DiT, "angles", "angles in the network"); counted(cache, "rope_angles", "angles")
    counted(AdaLayerNorm, "project", "adain"); counted(DiT, "text_rows", "text"); counted(CrossAttention, "fold", "sound keys")
    s = sampler(net)
    begin = Counter(calls)
    assert begin == {"time": 1, "angles in the network": 1, "text": 1}        # the sink's prefill
    roll(s, sound)
    calls.subtract(begin)
    assert calls["text"] == 0 and calls["angles in the network"] == 0
    assert calls["time"] == STEPS                                              # one for each noise level, in the first block
    assert calls["adain"] == calls["sound keys"] == BLOCKS                     # one injector
    assert calls["angles"] == 2 * BLOCKS                                       # the block's and the sink's, shared by four stages

def test_a_new_stream_sees_new_weights(net, sound):
    "Training rolls out again with changed weights: nothing of the old ones may be left."
    s = sampler(net); first = roll(s, sound, 2)
    saved = net.time_embedding[0].bias.clone()
    try:
        net.time_embedding[0].bias += 1.
        changed = roll(s.start(s.sink, "a cat, happy"), sound, 2)
    finally: net.time_embedding[0].bias.copy_(saved)
    assert (changed - first).abs().max() > 1e-3
    assert torch.equal(roll(s.start(s.sink, "a cat, happy"), sound, 2), first)

@pytest.mark.parametrize("settings", [{}, dict(weight=2.), dict(policy="clean"), dict(rolling=False), dict(window_frames=4), dict(sink_jitter=(4, 30))])
def test_in_place_equals_copies(net, sound, settings, monkeypatch):
    "The stream's ring against the plain way: un-rotated copies joined in each step."
    fast = roll(sampler(net, **settings), sound)
    def look(self, x, conditions):
        from liveavatar_nb.stream.sampler import guided
        past = self.history.past()
        return guided(self.net, x, self.sigma, conditions, past and past.unturned(), self.config.weight)
    monkeypatch.setattr("liveavatar_nb.stream.sampler.Stage.look", look)
    assert (roll(sampler(net, **settings), sound) - fast).abs().max() < 1e-5 and fast.std() > .5

def test_one_graph_few_compilations(net, sound):
    "`forward` is one graph without breaks; twelve blocks with four noise levels compile it at most four times."
    import torch._dynamo as dynamo
    from torch._dynamo.testing import CompileCounter
    dynamo.reset()
    counter = CompileCounter()
    class Compiled:                                     # the network, its forward compiled; fullgraph: a break would raise
        def __init__(self): self.forward = torch.compile(net, backend=counter, fullgraph=True)
        def __getattr__(self, name): return getattr(net, name)
        def __call__(self, *a, **k): return self.forward(*a, **k)
    got = roll(sampler(Compiled()), sound)
    assert counter.frame_count <= 4
    assert (got - roll(sampler(net), sound)).abs().max() < 1e-5
    dynamo.reset()

@pytest.mark.parametrize("backend", attention.available_backends())
def test_back_ends_reach_all_attention(net, sound, backend, monkeypatch):
    "Chosen in the stream's settings, used in self-, text and sound attention; a bias falls back to sdpa, and nothing changes but rounding."
    import warnings
    seen, want = Counter(), roll(sampler(net), sound, 3)
    for name, call in list(attention.BACKENDS.items()):
        monkeypatch.setitem(attention.BACKENDS, name, lambda *a, name=name, call=call: (seen.update([name]), call(*a))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = roll(sampler(net, attention=backend), sound, 3)
    assert (got - want).abs().max() < 1e-5
    text = backend if attention.takes_masks(backend) else "sdpa"
    assert set(seen) == {backend, text} and seen[backend] >= LAYERS * STEPS * 3

def test_unknown_back_end():
    with pytest.raises(ValueError, match="unknown attention back end 'magic'"): SamplerConfig(attention="magic")

def test_guidance_joins_texts_of_different_length(net):
    long, short = net.conditions("a cat, happy and loud", merge=True), net.conditions("", merge=True)
    both, sink = join(long, short), torch.randn(2, 16, 1, 8, 8)
    kv, _ = net.prefill(sink, both)
    for i, c in enumerate((net.conditions("a cat, happy and loud"), net.conditions(""))):
        for a, b in zip(kv, net.prefill(sink[i:i + 1], c)[0]): assert (a.k[i:i + 1] - b.k).abs().max() < 1e-5

def test_places_begin_again(net, sound, monkeypatch):
    "A stream whose numbers begin again every seven frames says the same as one that counts on."
    want = roll(sampler(net), sound)
    monkeypatch.setattr(History, "again", 7)
    s = sampler(net); got = roll(s, sound)
    assert (got - want).abs().max() < 1e-5 and all(h.place < 7 for h in s.histories)

def test_restored_stream_has_the_same_bits_while_the_ring_turns(net, sound):
    for cut in range(1, 8):
        a = sampler(net); roll(a, sound, cut)
        b = BlockSampler(net, a.latent, a.config).restore({k: v.clone() for k, v in a.snapshot().items()}, "a cat, happy")
        assert torch.equal(roll(a, sound, cut + 4), roll(b, sound, cut + 4))

def test_another_rope_scale_is_refused_in_place_and_right_in_copies(net, sound):
    h = History(4, 4); kv, offsets = net.prefill(torch.randn(1, 16, 1, 8, 8), net.conditions("")); h.set_sink(kv, offsets)
    with pytest.raises(ValueError, match="give History scale="): net(torch.randn(1, 16, 3, 8, 8), .5, net.conditions(""), h.open(3))
    right = History(4, 4, scale=2.); right.set_sink(kv, offsets); x = torch.randn(1, 16, 3, 8, 8)
    for one in (h, right): one.append(net(x, 1., net.conditions(""), None)[1])
    a, b = (net(x, .5, net.conditions(""), one.past())[0] for one in (h, right))
    assert (a - b).abs().max() < 1e-5

def test_a_step_allocates_less_than_the_window(net):
    "Peak growth within a block-step: no second window. Concatenation alone would be more than the cache of a layer."
    from liveavatar_nb.bench import peak_growth
    g, heads, d = 16, 3, 16
    h = History(g, g, 9, scale=2.); kv = lambda n: [LayerKV(*(torch.randn(1, n * g * g, heads, d) for _ in "kv")) for _ in range(LAYERS)]
    h.set_sink(kv(1), grid_positions(torch.zeros(1), g, g))
    for _ in range(4): h.append(kv(3))
    x, c, level = torch.randn(1, 16, 3, 2 * g, 2 * g), net.conditions("a", merge=True), net.level(.5)
    layer = 2 * h.buffers[0].k.nbytes
    with torch.inference_mode():
        room = h.open(3)
        assert isinstance(room.kv[0], LayerRoom)
        in_place, copied = peak_growth(lambda: net(x, level, c, room)), peak_growth(lambda: net(x, level, c, h.past()))
    assert in_place < copied - layer
