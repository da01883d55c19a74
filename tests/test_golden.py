"""Every fp32 golden number of the official DiT, its parts and its roll-outs (VAE and schedule have their own tests)."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liveavatar_nb.model.cache import History, LayerKV
from liveavatar_nb.model.conditions import framepack_positions
from liveavatar_nb.model.dit import DiT, DiTConfig, load_official
from liveavatar_nb.model.flow import official_sigmas
from liveavatar_nb.model.rope import grid_positions, rope_angles, rotate

GOLDEN = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="golden numbers not found in ../shared/golden")
EPS = 1e-4
CONFIG = DiTConfig(dim=96, ffn_dim=192, heads=3, layers=4, freq_dim=64, text_dim=64, text_len=16, text_vocab=0, audio_layers=25,
                   audio_dim=32, inject_layers=(0, 2), cond_dim=16, framepack=True)
RDMIX = [4, 17, 30, 9, 23, 5, 12, 28, 30, 6, 19, 11]


def load(name): return load_file(GOLDEN / f"{name}.safetensors")
def close(got, want, eps=EPS): assert (got.double() - want.double()).abs().max() <= eps
def factors(positions, head_dim=32): return torch.stack(rope_angles(positions, head_dim), -1)[None]


@pytest.fixture(scope="module")
def g(): return load("modules_fp32")
@pytest.fixture(scope="module")
def want(): return load("rollout_fp32")
@pytest.fixture(scope="module")
def inp(): return load("tiny_inputs")
@pytest.fixture(scope="module")
def net():
    net = DiT(CONFIG, init=False).requires_grad_(False).eval()
    assert load_official(net, load("tiny_weights")) == 168
    return net


class Official:
    "The official call protocol on top of the pure network."
    def __init__(self, net, inp):
        self.net, self.inp, self.text = net, inp, net.conditions(inp["context"])
        self.motion = torch.arange(132) >= 56           # motion tokens never roll
    def cond(self, b, actors=1, mask=None):
        pose = self.inp["cond_latents"][:, :, b % 4 * 3:b % 4 * 3 + 3]
        sound = self.inp["audio"][None, :actors, ..., 12 * b:12 * b + 12].mT
        return self.net.add_audio(replace(self.text, pose=self.net.embed(pose, self.net.cond_encoder)), sound, actor_mask=mask)
    def history(self, ref):
        return self.set_sink(History(7, 8, 9), ref)
    def set_sink(self, history, ref):
        kv, offsets = self.net.prefill(ref, self.text, self.inp["motion_latents"])
        history.set_sink(kv, offsets + self.motion[:, None] * torch.tensor([30., 0, 0]), self.motion)
        return history
    def look(self, x, sigma, b, history, relative=30., cond=None):
        v, kv = self.net(x, sigma, cond or self.cond(b), history.past(max(30. - 3 * b, relative)))
        history.append(kv)
        return v

@pytest.fixture(scope="module")
def official(net, inp): return Official(net, inp)


@pytest.mark.parametrize("start", [0, 3, 27, 1200])
def test_rope(g, start):
    close(factors(grid_positions(torch.arange(start, start + 3), 7, 8)), g[f"rope.noisy.start{start}"])
    ref = grid_positions(torch.tensor([30. + start]), 7, 8)    # in these files the roll is the start
    close(factors(torch.cat([ref, framepack_positions(7, 8)])), g[f"rope.cond.roll{start}"])

def test_rope_wide_head_and_rotation(g):
    close(factors(grid_positions(torch.arange(1000, 1002), 5, 7), 128), g["rope.hd128.start1000"])
    close(rotate(g["rope_apply.x"], *rope_angles(grid_positions(torch.arange(27, 30), 7, 8), 32)), g["rope_apply.out_start27"])

def test_time(net, g):
    e, e0 = net.time(g["time.t"].double()[None] / 1000)
    close(e[0], g["time.e"]); close(e0[0], g["time.e0"])

def test_audio_encoder(net, g):
    glob, local = net.casual_audio_encoder(g["audio_enc.in"])
    close(glob, g["audio_enc.global"]); close(local, g["audio_enc.local"])
    short = net.casual_audio_encoder.blocks(g["audio_enc.in"][..., 73:])      # 12 frames say what the official code computes from 85
    close(short[0], g["audio_enc.global"][:, 19:]); close(short[1], g["audio_enc.local"][:, 19:])

def test_injector(net, g):
    x = g["injector.hidden_in"].unflatten(1, (3, 56))
    glob, local = (g[f"audio_enc.{n}"][None, :, 19:] for n in ("global", "local"))
    kv, mod = net.audio_injector.project(0, glob, local)
    close(net.audio_injector.injector_adain_layers[0](x[0], *(m[0, 0] for m in mod)), g["injector.adain_out"])
    close((x + net.audio_injector(0, x, kv, mod)).flatten(1, 2), g["injector.hidden_out"])

def test_framepack(net, g, inp):
    tokens, places = net.frame_packer(inp["motion_latents"])
    close(tokens, g["framepack.tokens"]); close(factors(places), g["framepack.rope"])

def test_head(net, g):
    e, _ = net.time(official_sigmas(4)[1].expand(1, 3))
    out = net.head(g["head.x"], e)
    close(out, g["head.out"]); close(net.unpatchify(out, 3, 7, 8)[0], g["unpatchify.out"])

def test_block_with_official_cache(net, g):
    "Block 1 of the network at stream block 5, on the official ring buffer of rotated keys, turned back to un-rotated ones."
    frames = torch.tensor([12, 13, 14, 6, 7, 8, 9, 10, 11])                   # slots 0, 2, 3 of the ring; slot 1 is written now
    cos, sin = rope_angles(grid_positions(frames, 7, 8), 32)
    slots = torch.cat([torch.arange(168), torch.arange(336, 672)])
    k, v = (g[f"attn_block.kv_{n}_before"][:, slots] for n in "kv")
    past = LayerKV(torch.cat([g["attn_block.cond_k"], rotate(k, cos, -sin)], 1), torch.cat([g["attn_block.cond_v"], v], 1))
    places = torch.cat([grid_positions(torch.tensor([45.]), 7, 8), framepack_positions(7, 8),
                        grid_positions(frames, 7, 8), grid_positions(torch.arange(15, 18), 7, 8)])
    close(factors(places[:132]), g["attn_block.freqs_cond"]); close(factors(places[-168:]), g["attn_block.freqs"])
    block, angles = net.blocks[1], rope_angles(places, 32)
    out, new = block(g["attn_block.x"], g["attn_block.e"][..., 0, :], block.cross_attn.project(g["attn_block.context"]), angles, past)
    close(out, g["attn_block.out"])
    close(rotate(new.k, *(a[-168:] for a in angles)), g["attn_block.kv_k_after"]); close(new.v, g["attn_block.kv_v_after"])

def test_sink(official, want, inp):
    kv, _, hidden = official.net.prefill(inp["ref_latents"], official.text, inp["motion_latents"], hidden=True)
    close(hidden, want["sink.hidden"])
    for i in range(4): close(kv[i].k, want[f"sink.cond_k.{i}"]); close(kv[i].v, want[f"sink.cond_v.{i}"])

@pytest.mark.parametrize("name,distance", [("rd30", [30]), ("rd12", [12]), ("rdmix", RDMIX)])
def test_rollout(official, want, inp, name, distance):
    history = official.history(inp["ref_latents"])
    for b in range(12):
        v = official.look(inp["noise"][b:b + 1], official_sigmas(4)[1], b, history, distance[b % len(distance)])
        close(v[0], want[f"{name}.velocity"][b])
    if name == "rd30":                                  # the last layer's cache: frames 27..35, official slot = frame % 12
        frames = torch.arange(27, 36)
        slots = (frames % 12)[:, None] * 56 + torch.arange(56)
        k, v = (a[:, 132:] for a in history.kv[3])
        close(rotate(k, *rope_angles(grid_positions(frames, 7, 8), 32)), want["rd30.kv_k.3"][:, slots.flatten()])
        close(v, want["rd30.kv_v.3"][:, slots.flatten()])

def test_hidden_states(official, want, inp):
    "After every block of the network, before and after the sound, at the first and the sixth block of the stream."
    net, seen = official.net, {}
    hooks = [b.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(f"block{i}", out[0])) for i, b in enumerate(net.blocks)]
    hooks += [b.register_forward_pre_hook(lambda m, a, i=i: seen.__setitem__(f"block{i - 1}_audio", a[0])) for i, b in enumerate(net.blocks) if i - 1 in (0, 2)]
    history = official.history(inp["ref_latents"])
    try:
        for b in range(6):
            official.look(inp["noise"][b:b + 1], official_sigmas(4)[1], b, history)
            if b in (0, 5):
                names = [n for n in want if n.startswith(f"rd30.trace.b{b}.")]
                assert len(names) == 6
                for n in names: close(seen[n.split(".")[-1]], want[n])
                close(factors(grid_positions(torch.arange(3 * b, 3 * b + 3), 7, 8)), want[f"rd30.rope_noisy.b{b}"])
    finally:
        for h in hooks: h.remove()

def test_full_stream(official, want, inp):
    levels, histories, done = official_sigmas(4), [official.history(inp["ref_latents"]) for _ in range(4)], []
    for b in range(6):
        if b == 4:
            for h in histories: official.set_sink(h, done[0][:, :, :1])
        x = inp["noise"][b:b + 1]
        for i, h in enumerate(histories):
            x = x + (levels[i + 1] - levels[i]) * official.look(x, levels[i], b, h)
            if b in (0, 5): close(x[0], want["full.steps_b0_b5"][b // 5, i], 2e-4)
        done.append(x)
    close(torch.cat(done), want["full.final"], 2e-4)

def test_two_actors(official, want, inp):
    history, mask = official.history(inp["ref_latents"]), want["multi.mask"][None, :, :3, ..., 0]
    for b in range(2):
        v = official.look(inp["noise"][b:b + 1], official_sigmas(4)[1], b, history, cond=official.cond(b, 2, mask))
        close(v[0], want["multi.velocity"][b])

def test_wrong_numbers_would_be_seen(official, want, inp):
    "A sink two frames further off must not pass: the tolerance can tell."
    history = official.history(inp["ref_latents"])
    v = official.look(inp["noise"][:1], official_sigmas(4)[1], 0, history, 32.)
    assert (v[0] - want["rd30.velocity"][0]).abs().max() > 10 * EPS
