"A clone shows the match with the official classes: the numbers in data/golden, through the plain path and through a stream's ring."
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liveavatar_nb.model.cache import History
from liveavatar_nb.model.conditions import framepack_positions
from liveavatar_nb.model.dit import DiT, DiTConfig, load_official
from liveavatar_nb.model.flow import official_sigmas
from liveavatar_nb.model.rope import grid_positions, rope_angles, rotate

FILE = Path(__file__).resolve().parents[1] / "data" / "golden" / "dit.safetensors"
CONFIG = DiTConfig(dim=96, ffn_dim=192, heads=3, layers=4, freq_dim=64, text_dim=64, text_len=16, text_vocab=0, audio_layers=25,
                   audio_dim=32, inject_layers=(0, 2), cond_dim=16, framepack=True)
MOTION = torch.arange(132) >= 56        # the last 76 of the 132 sink tokens are old motion, which never rolls
def close(got, want, eps=1e-4): assert got.shape == want.shape and (got.double() - want.double()).abs().max() <= eps


@pytest.fixture(scope="module")
def g():
    assert FILE.exists(), "data/golden/dit.safetensors belongs to the repository"
    return load_file(FILE)

@pytest.fixture(scope="module")
def net(g):
    net = DiT(CONFIG, init=False).requires_grad_(False).eval()
    own = {k: torch.zeros_like(v) for k, v in net.state_dict().items() if k in ("frame_packer.proj_2x.weight", "frame_packer.proj_4x.weight")}
    assert load_official(net, own | {k[7:]: v for k, v in g.items() if k.startswith("weight.")}) == 168
    net.frame_packer.forward = lambda motion: (g["in.motion_tokens"], framepack_positions(7, 8))    # the kernels are not in the file, their tokens are
    return net


class Stream:
    "The official call protocol; `in_place`: through the ring, with everything made once."
    def __init__(self, net, g, in_place):
        self.net, self.g, self.in_place = net, g, in_place
        self.text = net.conditions(g["in.context"], merge=in_place)
        self.levels = [net.level(s) if in_place else s for s in official_sigmas(4)]
    def history(self): return self.set_sink(History(7, 8, 9), self.g["in.ref_latents"])
    def set_sink(self, history, latent):
        kv, offsets = self.net.prefill(latent, self.text, torch.zeros(1, 16, 19, 14, 16))
        history.set_sink(kv, offsets + MOTION[:, None] * torch.tensor([30., 0, 0]), MOTION)
        return history
    def look(self, x, step, b, history):
        pose, sound = self.g["in.cond_latents"][:, :, b % 4 * 3:b % 4 * 3 + 3], self.g["in.audio"][None, :, ..., 12 * b:12 * b + 12].mT
        c = self.net.add_audio(replace(self.text, pose=self.net.embed(pose, self.net.cond_encoder)), sound, fold=self.in_place)
        distance = max(30. - 3 * b, 30.)
        past = history.open(3, distance) if self.in_place else history.past(distance).unturned()
        v, kv = self.net(x, self.levels[step], c, past)
        history.append(kv)
        return v

@pytest.fixture(scope="module", params=[False, True], ids=["plain", "in place"])
def stream(request, net, g): return Stream(net, g, request.param)


def test_rope_and_time(net, g):
    close(torch.stack(rope_angles(grid_positions(torch.arange(1200, 1203), 7, 8), 32), -1)[None], g["want.rope.noisy.start1200"])
    close(rotate(g["want.rope_apply.x"], *rope_angles(grid_positions(torch.arange(27, 30), 7, 8), 32)), g["want.rope_apply.out_start27"])
    close(net.time(g["want.time.t"].double()[None] / 1000)[0][0], g["want.time.e"])

def test_sink(stream, g):
    close(stream.net.prefill(g["in.ref_latents"], stream.text, torch.zeros(1, 16, 19, 14, 16), hidden=True)[2], g["want.hidden"])

@torch.no_grad()
def test_six_blocks_at_one_level(stream, g):
    history = stream.history()
    for b in range(6): close(stream.look(g["in.noise"][b:b + 1], 1, b, history)[0], g["want.rd30"][b])

@torch.no_grad()
def test_full_stream_with_a_new_sink(stream, g):
    levels, histories, done = official_sigmas(4), [stream.history() for _ in range(4)], []
    for b in range(6):
        if b == 4:
            for h in histories: stream.set_sink(h, done[0][:, :, :1])
        x = g["in.noise"][b:b + 1]
        for i, h in enumerate(histories): x = x + (levels[i + 1] - levels[i]) * stream.look(x, i, b, h)
        done.append(x)
    close(torch.cat(done), g["want.full"], 2e-4)

@torch.no_grad()
def test_a_wrong_place_would_be_seen(net, g):
    stream = Stream(net, g, True); h = stream.history(); h.offsets[:, 0] += 2
    assert (stream.look(g["in.noise"][:1], 1, 0, h)[0] - g["want.rd30"][0]).abs().max() > 1e-3
