"Latent data set, teacher and stage 1: purity, parity with the stream, resume, bad input."
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from liveavatar_nb.model.cache import History
from liveavatar_nb.model.conditions import join, window
from liveavatar_nb.model.dit import DiT, DiTConfig
from liveavatar_nb.model.flow import cfg, euler_step, sigmas
from liveavatar_nb.model.presets import preset
from liveavatar_nb.model.vae import VAEConfig, VideoVAE
from liveavatar_nb.train.forcing import KINDS, forcing_loss, forcing_sigmas, forward_forcing, train_forcing
from liveavatar_nb.train.latents import LatentClips, audio_window, choose_window, encode_clips, shard_path
from liveavatar_nb.train.loop import checkpoints, newest, read_checkpoint
from liveavatar_nb.train.stage import start_from
from liveavatar_nb.train.teacher import (cell_weight, draw_sigmas, drop_conditions, sample_teacher, sink_past, sink_place, teacher_loss,
                                         train_teacher)

TINY = DiTConfig(dim=48, ffn_dim=64, heads=3, layers=2, inject_layers=(0,), rope_scale=2., cond_dim=16, reference=True)


def fake_clip(seed, split="train", n_frames=24, size=16):
    r = np.random.default_rng([seed, split == "train"])
    return SimpleNamespace(frames=r.integers(0, 256, (1 + n_frames, size, size, 3), dtype=np.uint8), samples=np.zeros(n_frames * 640, np.float32),
                           audio=r.normal(size=(n_frames, 80)).astype(np.float32), motion=r.normal(size=(n_frames, 15)).astype(np.float32),
                           identity=SimpleNamespace(species=seed % 4, attributes=r.random(50, np.float32)), caption=f"clip {seed}, calm", text="hello",
                           mood="calm", manner="still", seed=seed)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VideoVAE(VAEConfig(dim=8, dim_mult=(1, 2, 2))).eval()


@pytest.fixture(scope="module")
def folder(vae, tmp_path_factory):
    out = tmp_path_factory.mktemp("clips")
    for split, n in (("train", 7), ("heldout", 3)):
        encode_clips(vae, out, n, 48, 32, split, shard=3, make=fake_clip, progress=False)
    return out


def same_shard(a, b):
    (ta, sa), (tb, sb) = read_checkpoint(a), read_checkpoint(b)
    assert sa == sb and ta.keys() == tb.keys() and all(torch.equal(ta[k], tb[k]) for k in ta)


def test_workers_make_the_same_shards_as_one_process(vae, folder, tmp_path):
    settings = dict(n_clips=7, n_frames=48, size=32, shard=3, make=fake_clip, progress=False)
    assert encode_clips(vae, tmp_path, worker=1, workers=2, **settings) == 1
    assert encode_clips(vae, tmp_path, worker=0, workers=2, **settings) == 2
    for k in range(3): same_shard(shard_path(tmp_path, "train", k), shard_path(folder, "train", k))


def test_a_kill_in_the_middle_leaves_whole_shards_only(vae, folder, tmp_path):
    def make(seed, **k):
        if seed == 5: raise KeyboardInterrupt
        return fake_clip(seed, **k)
    settings = dict(n_clips=7, n_frames=48, size=32, shard=3, progress=False)
    with pytest.raises(KeyboardInterrupt): encode_clips(vae, tmp_path, make=make, **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["train_00000.safetensors"]
    assert encode_clips(vae, tmp_path, make=fake_clip, **settings) == 2
    for k in range(3): same_shard(shard_path(tmp_path, "train", k), shard_path(folder, "train", k))


def test_bad_folders_give_one_clear_line(vae, folder, tmp_path):
    with pytest.raises(ValueError, match="no train shards"): LatentClips(tmp_path)
    with pytest.raises(ValueError, match="size = 32, not 64"): encode_clips(vae, folder, 7, 48, 64, shard=3, make=fake_clip, progress=False)
    other = VideoVAE(VAEConfig(dim=8, dim_mult=(1, 2, 2))); torch.nn.init.normal_(next(other.parameters()))
    with pytest.raises(ValueError, match="another VAE"): encode_clips(other, folder, 7, 48, 32, shard=3, make=fake_clip, progress=False)
    (tmp_path/"train_00000.safetensors").write_bytes(shard_path(folder, "train", 0).read_bytes()[:-1])
    with pytest.raises(ValueError, match="train_00000.* damaged"): LatentClips(tmp_path)
    (tmp_path/"train_00000.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="damaged"): LatentClips(tmp_path)
    with pytest.raises(ValueError, match="fewer blocks or longer clips"): LatentClips(folder).batch(0, 2, n_blocks=5)


def test_rounds_see_every_clip_once_and_batches_are_pure(folder):
    data = LatentClips(folder)
    seen = sum((data.order(s, 7, seed=3) for s in range(4)), [])
    assert all(sorted(seen[i:i + 7]) == list(range(7)) for i in range(0, 28, 7)) and seen[:7] != seen[7:14]
    a, b = data.batch(9, 5, 3, seed=2), LatentClips(folder).batch(9, 5, 3, seed=2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["latents"], data.batch(9, 5, 3, seed=1)["latents"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 60), st.integers(1, 30))
def test_windows_stay_inside_and_never_contain_their_sink(seed, total, frames):
    if frames > total: return
    start, sink = choose_window(np.random.default_rng(seed), total, frames)
    assert 1 <= start and start + frames - 1 <= total and 0 <= sink <= total
    assert sink == 0 or sink < start - 3 or sink >= start + frames + 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 12))
def test_audio_window_is_the_clip_with_its_first_row_repeated_before(start, length, history):
    clip = np.arange(60.)[:, None]
    got = audio_window(clip, start, length, history)[:, 0]
    assert got.tolist() == [max(0, i) for i in range(start - history, start + length)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9), st.floats(1, 8), st.integers(0, 10**6))
def test_levels_are_spread_inside_the_unit_interval(batch, blocks, shift, seed):
    g = torch.Generator().manual_seed(seed)
    s = draw_sigmas((batch, blocks), g, shift)
    assert s.shape == (batch, blocks) and s.min() >= 0 and s.max() <= 1
    u = (s / (shift - (shift - 1) * s)).flatten().sort().values * s.numel()      # undo the shift
    assert ((u - torch.arange(len(u))) > -1e-3).all() and ((u - torch.arange(len(u))) < 1 + 1e-3).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10**6))
def test_every_block_sees_the_sink_within_the_trained_distances(n_blocks, seed):
    place = sink_place(n_blocks, torch.Generator().manual_seed(seed))
    assert all(4 <= place - 3 * b <= 30 for b in range(n_blocks))


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind"): forcing_sigmas("sideways", 1, 2, torch.Generator())


def random_net():
    torch.manual_seed(0)
    net = DiT(TINY).eval(); torch.nn.init.normal_(net.head.head.weight, std=.1)
    return net


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window_blocks,block_frames", [(2, 3), (4, 3), (5, 1), (2, 4)])
def test_parallel_pass_equals_stream_past_the_window(kind, window_blocks, block_frames):
    net, n, m = random_net(), 6, block_frames; F = n * m
    x0, eps, ctx, sink = (torch.randn(2, 16, f, 4, 4) for f in (F, F, F, 1))
    plain = net.conditions(["a cat", "fire"], torch.randn(2, 8 + 4 * F, 80), 8); c = net.refer(plain, sink, F)
    g = torch.Generator().manual_seed(1); sigma, low = forcing_sigmas(kind, 2, n, g, block_frames=m), .1 * forcing_sigmas("independent", 2, n, g, block_frames=m)
    noisy = lambda s, e: (1 - s)[:, None, :, None, None] * x0 + s[:, None, :, None, None] * e
    with torch.no_grad():
        whole = forward_forcing(net, x0, sigma, eps, c, sink_past(net, sink, c, 25.), kind, (low, ctx), window_blocks, m)
        kv, offsets = net.prefill(sink, c); h = History(2, 2, window_frames=m * (window_blocks - 1)); h.set_sink(kv, offsets); parts = []
        for b in range(n):
            cut, past = slice(m * b, m * b + m), h.past(distance=25. - m * b)
            block = net.refer(window(plain, m * b, m * b + m), sink, m)
            v, kv = net(noisy(sigma, eps)[:, :, cut], sigma[:, cut], block, past); parts.append(v)
            if kind == "clean": _, kv = net(noisy(low, ctx)[:, :, cut], low[:, cut], block, past)
            h.append(kv)
    assert whole.std() > .05 and (whole - torch.cat(parts, 2)).abs().max() < 1e-5


@pytest.mark.parametrize("loss_fn", [teacher_loss, forcing_loss])
def test_losses_are_pure_and_reach_every_parameter(folder, loss_fn):
    net, batch, touched = random_net(), LatentClips(folder).batch(0, 4, 2), set()
    for seed in range(8):                   # several seeds: each kind of noise occurs
        a, b = (loss_fn(net, batch, torch.Generator().manual_seed(seed))[0] for _ in range(2))
        assert torch.equal(a, b)
        net.zero_grad(); a.backward()
        touched |= {k for k, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched == {k for k, _ in net.named_parameters()}


def test_dropped_conditions_are_empty_text_and_silent_zero(folder):
    batch = LatentClips(folder).batch(0, 4, 2)
    tokens, audio = drop_conditions(batch, torch.Generator().manual_seed(0), 0., 0., 1.)
    assert tokens.abs().sum() == 0 and audio.abs().sum() == 0
    tokens, audio = drop_conditions(batch, torch.Generator().manual_seed(0), 0., 0., 0.)
    assert torch.equal(tokens, batch["tokens"]) and torch.equal(audio, batch["audio"])


def test_cell_weight_keeps_the_mean_and_is_off_by_default():
    x = torch.randn(3, 16, 6, 4, 4)
    assert cell_weight(x) == 1. and torch.allclose(cell_weight(x, 3.).mean((1, 2, 3, 4)), torch.ones(3), atol=1e-5)


def test_teacher_then_forcing_resume_bit_for_bit(folder, tmp_path):
    quick = dict(batch=2, n_blocks=2, config=TINY, progress=False, validate_every=100, lr=3e-3)
    train_teacher("pico", folder, tmp_path/"teacher", steps=8, **quick)
    whole = train_forcing("pico", folder, tmp_path/"whole", steps=10, init=tmp_path/"teacher", **quick)
    class Stop(Exception): pass
    import liveavatar_nb.train.forcing as forcing
    original, calls = forcing.forcing_loss, []
    def dies(*a, **k):
        calls.append(1)
        if len(calls) == 6: raise Stop
        return original(*a, **k)
    forcing.forcing_loss = dies
    try:
        with pytest.raises(Stop): train_forcing("pico", folder, tmp_path/"shot", steps=10, init=tmp_path/"teacher", **quick)
        assert not checkpoints(tmp_path/"shot")          # died before the first save: starts again, from the same weights
    finally: forcing.forcing_loss = original
    again = train_forcing("pico", folder, tmp_path/"shot", steps=10, init=tmp_path/"teacher", resume=True, **quick)
    for a, b in zip(whole.parameters(), again.parameters()): assert torch.equal(a, b)
    card = (tmp_path/"whole"/"weights.json").read_text()
    assert '"forcing"' in card and "val" in card


def test_start_from_brings_weights_and_a_wrong_network_is_one_line(folder, tmp_path):
    train_teacher("pico", folder, tmp_path/"t", steps=2, batch=2, n_blocks=1, config=TINY, progress=False)
    net = start_from(DiT(TINY), tmp_path/"t")
    assert torch.equal(net.head.head.weight, newest(tmp_path/"t")[0]["ema/net/head.head.weight"])
    wrong = DiT(DiTConfig(dim=96, ffn_dim=64, heads=3, layers=2, inject_layers=(0,)))
    with pytest.raises(RuntimeError, match="another network"): start_from(wrong, tmp_path/"t")


def test_start_from_a_sum():
    "Shipped networks of one family: pico's stage 1 plus what distillation changed is pico's student."
    pico = lambda init: start_from(DiT(preset("pico").dit), init).state_dict()
    student, total = pico("pico_student"), pico("pico_forcing + pico_student - pico_forcing")
    for k, v in student.items(): assert (v - total[k]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="nowhere"): pico("pico_student - nowhere")


def test_sampling_with_guidance_one_is_the_plain_sampler(folder):
    net, b = random_net(), LatentClips(folder).batch(0, 2, 1)
    a = sample_teacher(net, b["sink"], b["tokens"], b["audio"], 4, weight=1.)
    c = sample_teacher(net, b["sink"], b["tokens"], b["audio"], 4, weight=1. + 1e-6)
    assert torch.allclose(a, c, atol=1e-3) and a.shape == b["latents"].shape
    d = sample_teacher(net, b["sink"], b["tokens"], b["audio"], 4, weight=3.)
    assert (a - d).abs().max() > 1e-3


def test_a_teachers_clip_is_the_plain_loop(folder):
    "`sample_teacher` goes through the stages of a stream; here stands the loop that they must amount to."
    net, b, weight, place = random_net(), LatentClips(folder).batch(0, 2, 1), 1.5, 11.
    frames, twice = b["latents"].shape[2], lambda x: torch.cat([x, x])
    with torch.no_grad():
        c = join(net.conditions(b["tokens"], b["audio"], 8), net.conditions(torch.zeros_like(b["tokens"]), torch.zeros_like(b["audio"]), 8))
        c = net.refer(c, twice(b["sink"]), frames)
        past = sink_past(net, twice(b["sink"]), c, place)
        x, levels = torch.randn(b["latents"].shape, generator=torch.Generator().manual_seed(5)), sigmas(6, 2.).tolist()
        for now, then in zip(levels, levels[1:]): x = euler_step(x, cfg(*net(twice(x), now, c, past)[0].chunk(2), weight), now, then)
    found = sample_teacher(net, b["sink"], b["tokens"], b["audio"], 6, weight, 2., seed=5, place=place)
    assert (found - x).abs().max() < 1e-6 * x.abs().max()


def test_noise_on_the_caches_channels_changes_the_future_and_nothing_else():
    from liveavatar_nb.stream.sampler import BlockSampler, many_steps
    torch.manual_seed(0)
    net, sink, sound = DiT(TINY).eval(), torch.randn(1, 16, 1, 4, 4), torch.randn(1, 8 + 12 * 12, 80)
    torch.nn.init.normal_(net.head.head.weight, std=.1)

    def roll(policy, blocks=12):
        s = BlockSampler(net, (16, 4, 4), many_steps(2, policy=policy)).start(sink, "a cat, calm")
        return torch.stack([s.block(sound[:, 12 * b:12 * b + 20]) for b in range(blocks)])
    clean, noisy = roll("clean"), roll("channels")
    assert torch.equal(clean[0], noisy[0]) and not torch.equal(clean[-1], noisy[-1]) and torch.equal(noisy, roll("channels"))
