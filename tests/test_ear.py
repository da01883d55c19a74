"The ear: heard block by block as in a stream, trained on sound alone, exchangeable; and the reader that teaches the middle of the network."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from liveavatar_nb.data.speech import VOICES, random_speech, variants
from liveavatar_nb.eval.metrics import SPREAD
from liveavatar_nb.model.conditions import Ear, cut_blocks
from liveavatar_nb.model.dit import DiT, DiTConfig
from liveavatar_nb.model.presets import build, load_weights, read_weights, save_weights
from liveavatar_nb.train.ear import Listener, Sounds, heldout_sounds, hearing_loss, make_sounds, train_ear, validate_hearing
from liveavatar_nb.train.forcing import train_forcing
from liveavatar_nb.train.latents import AUDIO_HISTORY, encode_clips
from liveavatar_nb.train.loop import Optim, fit, read_log
from liveavatar_nb.train.align import Reader, middle_tokens
from liveavatar_nb.train.stage import start_from

TINY = DiTConfig(dim=48, ffn_dim=96, heads=3, layers=3, inject_layers=(0, 2), rope_scale=2., ear=16, cond_dim=16, reference=True)

@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return DiT(TINY).eval()

@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(1, 4), frames=st.integers(1, 4), history=st.integers(0, 12), batch=st.integers(1, 2), actors=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_window_cut_into_blocks_is_heard_as_a_stream_hears_it(net, blocks, frames, history, batch, actors, seed):
    rows, k = 4 * frames, torch.Generator().manual_seed(seed)
    sound = torch.randn(batch, actors, 1, history + blocks * rows, 80, generator=k)
    with torch.no_grad():
        whole = net.conditions(["a cat"] * batch, sound, history, block_frames=frames)
        for b in range(blocks):
            part = net.conditions(["a cat"] * batch, sound[..., b * rows:(b + 1) * rows + history, :], history)
            for w, p in zip(whole.audio, part.audio): torch.testing.assert_close(w.k[:, :, b * frames:(b + 1) * frames], p.k, atol=1e-5, rtol=1e-5)

def test_cut_blocks_gives_each_block_its_past():
    rows = torch.arange(2 * 20 * 3.).reshape(2, 20, 3)
    assert torch.equal(cut_blocks(rows, 4, 8), torch.stack([rows[:, :12], rows[:, 8:]], 1))
    with pytest.raises(ValueError, match="whole blocks"): cut_blocks(rows, 5, 8)

def test_the_ear_of_a_network_is_not_trained(net):
    assert not any(p.requires_grad for p in net.ear.parameters()) and all(p.requires_grad for p in net.casual_audio_encoder.parameters())
    assert not hasattr(DiT(DiTConfig(dim=48, ffn_dim=96, heads=3, layers=1, inject_layers=(0,))), "ear")

def test_many_voices_but_none_of_the_held_out_ones():
    kept_out = {v.variant for v in VOICES if v.split == "heldout"}
    assert not kept_out & set(variants()) and len(variants()) > 60
    heard = {random_speech(s, "train", .5, many=True).voice.variant for s in range(30)}
    assert len(heard) > 15 and heard <= set(variants())
    a, b = random_speech(5, "train", 1.), random_speech(5, "train", 1., many=True)
    assert a.voice in VOICES or a.voice.name in {v.name for v in VOICES}
    assert b.voice.name == "any"

def test_the_shipped_ear_hears_voices_it_has_never_heard():
    "The bar that the shipped card claims, on fewer sounds: a linear reading of its channels, fitted on half of the sounds, on the other half."
    ear = load_weights("ear", build("nano").ear)
    rows, meant = heldout_sounds(16, first=60_000)
    with torch.no_grad(): heard = ear(cut_blocks(torch.cat([rows[:, :1].expand(-1, AUDIO_HISTORY, -1), rows], 1), AUDIO_HISTORY, 12).flatten(0, 1))[:, AUDIO_HISTORY:]
    heard = torch.cat([heard.unflatten(0, (16, -1)).flatten(1, 2), torch.ones(16, 132, 1)], -1)
    fit = torch.linalg.lstsq(heard[:8].flatten(0, 1), meant[:8].flatten(0, 1)).solution
    told = heard[8:] @ fit
    r = [np.corrcoef(a[:, 0], b[:, 0])[0, 1] for a, b in zip(told.numpy(), meant[8:].numpy())]
    assert np.mean(r) > .9, r

def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    make_sounds(tmp_path/"s", 8, frames=24, progress=False)
    assert len(Sounds(tmp_path/"s")) == 8
    quick = dict(batch=2, validate_every=100, progress=False)
    train_ear(tmp_path/"s", tmp_path/"whole", steps=6, **quick)
    torch.manual_seed(0)
    sounds, listener = Sounds(tmp_path/"s"), Listener()
    class Stop(Exception): pass
    def dies(step, b, rng):
        if step == 3: raise Stop
        return hearing_loss(listener, b, rng, .06)
    with pytest.raises(Stop):
        fit(dies, listener, lambda step, seed: sounds.batch(step, 2, seed), tmp_path/"cut", Optim(lr=3e-3, weight_decay=1e-2, ema=.998), steps=6, save_every=3, progress=False)
    train_ear(tmp_path/"s", tmp_path/"cut", steps=6, resume=True, **quick)
    one, two = (read_weights(tmp_path/k/"weights.safetensors")[0] for k in ("whole", "cut"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

def test_missing_sounds_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no sounds .*train sounds"): train_ear(tmp_path, tmp_path/"out", steps=1)

def test_hearing_is_scored_by_correlation():
    class Perfect(torch.nn.Module):
        def forward(self, rows): return meant * 2 + 1
    meant = torch.rand(2, 24, 6)
    scores = validate_hearing(Perfect(), (torch.zeros(2, 24, 80), meant))
    assert scores["val_mouth_open"] == pytest.approx(1, abs=1e-4) and scores["val"] > .5

def test_the_reader_teaches_and_is_left_behind(tmp_path):
    encode_clips(load_weights("nano_vae"), tmp_path/"c", 4, n_frames=24, size=64, progress=False)
    encode_clips(load_weights("nano_vae"), tmp_path/"c", 2, n_frames=24, size=64, split="heldout", progress=False)
    net = train_forcing("pico", tmp_path/"c", tmp_path/"f", steps=12, batch=2, n_blocks=2, lr=3e-3, align=.5, config=TINY, validate_every=100, progress=False, ear=tiny_ear(tmp_path))
    assert "reading" in read_log(tmp_path/"f")[-1]
    assert not hasattr(net, "reader") and not any(k.startswith("reader") for k in read_weights(tmp_path/"f"/"weights.safetensors")[0])
    start_from(DiT(TINY), tmp_path/"f")          # the folder holds a reader, the network has none

def tiny_ear(folder):
    save_weights(folder/"ear.safetensors", Ear(80, 16), "ear")
    return folder/"ear.safetensors"

def test_middle_tokens_are_those_after_the_middle_block(net):
    x, c = torch.randn(1, 16, 3, 4, 4), net.conditions("a cat", torch.randn(1, 8 + 12, 80), 8)
    with torch.no_grad(), middle_tokens(net) as seen: net(x, .5, c)
    assert [tuple(t.shape) for t in seen] == [(1, 12, 48)]
    with torch.no_grad(): net(x, .5, c)
    assert len(seen) == 1                        # the hook is gone

def test_a_reader_that_can_read_has_no_error():
    reader, tokens = Reader(8), torch.randn(1, 6, 8)
    with torch.no_grad(): reader.bias.fill_(.5)
    assert reader.error(tokens, (.5 * torch.tensor(SPREAD)).expand(1, 24, 15)) < 1e-10

def test_middle_tokens_of_a_network_of_one_block():
    net = DiT(DiTConfig(dim=48, ffn_dim=96, heads=3, layers=1, inject_layers=(0,)))
    with torch.no_grad(), middle_tokens(net) as seen: net(torch.randn(1, 16, 3, 4, 4), .5, net.conditions("a cat"))
    assert len(seen) == 1
