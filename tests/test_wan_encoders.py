"""The official text and sound encoders, with tiny random weights in the official layout."""
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="the official encoders need transformers (the extra `wan`)")
from liveavatar_nb.wan.checkpoint import WAN, CheckpointError, find_folder, write_tiny  # noqa: E402
from liveavatar_nb.wan.encoders import (HEARING, UMT5, UMT5_TOKENS, HearingStream, SoundReader, TextReader, check_encoders, official_frames, pairs,  # noqa: E402
                                        write_tiny_encoders)

GOLDEN = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_tiny_encoders(write_tiny(tmp_path_factory.mktemp("official") / "ckpt"))

@pytest.fixture(scope="module")
def ears(good): return SoundReader(good)

@pytest.fixture(scope="module")
def sound():
    x = np.cumsum(np.random.default_rng(1).normal(size=16000 * 3))
    return (.3 * (x - x.mean()) / x.std()).astype(np.float32)


def t5_by_hand(w, ids, heads=4):
    "The encoder written out in the official names: pre-norm, unscaled attention with a relative bias of its own in each layer, gated GELU."
    norm = lambda x, g: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * g
    x, n = w["token_embedding.weight"][ids], len(ids)
    away = torch.arange(n)[None] - torch.arange(n)[:, None]
    far = away.abs()
    large = 8 + (torch.log(far.float().clamp(min=1) / 8) / math.log(128 / 8) * 8).long()
    bucket = (away > 0).long() * 16 + torch.where(far < 8, far, large.clamp(max=15))
    for i in range(2):
        p = lambda name: w[f"blocks.{i}.{name}.weight"]
        h = norm(x, p("norm1"))
        q, k, v = ((h @ p(f"attn.{s}").T).unflatten(-1, (heads, -1)).transpose(0, 1) for s in "qkv")
        a = (q @ k.mT + p("pos_embedding.embedding")[bucket].permute(2, 0, 1)).softmax(-1)
        x = x + (a @ v).transpose(0, 1).flatten(1) @ p("attn.o").T
        h = norm(x, p("norm2"))
        x = x + (h @ p("ffn.fc1").T * F.gelu(h @ p("ffn.gate.0").T, approximate="tanh")) @ p("ffn.fc2").T
    return norm(x, w["norm.weight"])

def test_text_is_what_the_official_encoder_computes(good):
    reader, w = TextReader(good, dtype=torch.float32), torch.load(good / WAN / f"{UMT5}.pth", weights_only=True)
    sentence = "a calm woman, smiling in warm light"
    ids = torch.tensor([2 + ord(c) - 32 for c in sentence] + [1])
    got, want = reader.rows(sentence), t5_by_hand(w, ids)
    assert got.shape == want.shape and (got - want).abs().max() < 1e-4
    assert len(reader.rows("x" * 900)) == 512 and torch.equal(reader.rows("a &amp; b\n c"), reader.rows("a & b c"))

def test_last_state_is_the_normalised_one(ears, sound):
    "The library's version 5 no longer normalises hidden_states[-1]; the release used a version that did."
    states = ears.states(sound)
    x = torch.from_numpy(sound); x = (x - x.mean()) / x.std(unbiased=False)
    with torch.inference_mode():
        out = ears.net(x[None], output_hidden_states=True)
    assert states.shape == (25, 149, 32)
    assert (states[-1] - out.last_hidden_state[0]).abs().max() < 1e-4
    raw = out.hidden_states[-1]
    normed = raw if torch.allclose(raw, out.last_hidden_state, atol=1e-5) else ears.net.encoder.layer_norm(raw)
    assert (states[-1] - normed[0]).abs().max() < 1e-4
    assert (states[:-1] - torch.cat(out.hidden_states[:-1])).abs().max() < 1e-4

@pytest.mark.skipif(not GOLDEN.exists(), reason="golden numbers not found in ../shared/golden")
def test_official_frames_are_golden():
    g = load_file(GOLDEN / "audio_bucket.safetensors")
    assert (official_frames(g["feat50"]).permute(1, 2, 0)[None] - g["bucket"]).abs().max() < 1e-6

def test_pairs_are_means_of_two_rows():
    states = torch.arange(10.).reshape(1, 10, 1)
    assert pairs(states, 5).flatten().tolist() == [.5, 2.5, 4.5, 6.5, 8.5] and pairs(states, 6)[-1].item() == 9

@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, 48000), max_size=5), future=st.sampled_from([0., .1]), past=st.sampled_from([0., .48, 1.]))
def test_any_cut_gives_the_same_rows(ears, sound, cuts, future, past):
    def hear(pieces):
        s = HearingStream(ears, past=past, future=future)
        return torch.cat([s.push(p) for p in np.split(sound, pieces)])
    assert torch.equal(hear([]), hear(sorted(cuts))) and len(hear([])) == (48000 - round(future * 50) * 320) // 7680 * 12

def test_a_stream_with_the_whole_past_is_the_file(ears, sound):
    "The last block, with everything before it in the window, has the rows of the whole file so far."
    s = HearingStream(ears, past=10.)
    rows = s.push(sound[:7680 * 5])[-12:]
    whole = pairs(ears.states(np.pad(sound[:7680 * 5], (0, 80))), 60)[-12:]
    assert (rows - whole).abs().max() < 1e-4

def test_memory_of_a_stream_does_not_grow(ears, sound):
    s = HearingStream(ears, past=.5)
    for _ in range(4): s.push(sound)
    assert len(s.held) <= .5 * 16000 + 7680

def test_snapshot_goes_on_bit_for_bit(ears, sound):
    a, b = HearingStream(ears, past=1.), HearingStream(ears, past=1.)
    a.push(sound[:20000]); b.restore(a.snapshot())
    assert torch.equal(a.push(sound[20000:]), b.push(sound[20000:]))

WRONG = {
    "t5 gone": (lambda f: (f / WAN / f"{UMT5}.pth").unlink(), f"{UMT5}.pth is missing"),
    "t5 cut": (lambda f: (f / WAN / f"{UMT5}.pth").write_bytes(b"x" * 100), f"{UMT5}.pth is cut short"),
    "t5 key": (lambda f: rewrite(f, lambda s: {k: v for k, v in s.items() if k != "blocks.1.ffn.fc2.weight"}), "no tensor for encoder.block.1.layer.1.DenseReluDense.wo.weight"),
    "t5 extra": (lambda f: rewrite(f, lambda s: s | {"decoder.x": torch.zeros(1)}), "decoder.x is unknown"),
    "t5 shape": (lambda f: rewrite(f, lambda s: s | {"norm.weight": torch.zeros(3)}), r"final_layer_norm.weight has shape \[3\], not \[64\]"),
    "no tokenizer": (lambda f: shutil.rmtree(f / WAN / UMT5_TOKENS), "umt5-xxl is missing"),
    "no ears": (lambda f: shutil.rmtree(f / WAN / HEARING), f"{HEARING} is missing"),
    "ears cut": (lambda f: next((f / WAN / HEARING).glob("*.safetensors")).write_bytes(b"x" * 100), HEARING),
}

def rewrite(folder, change):
    path = folder / WAN / f"{UMT5}.pth"
    torch.save(change(torch.load(path, weights_only=True)), path)

@pytest.mark.parametrize("name", WRONG)
def test_one_line_names_what_is_wrong(folder, name):
    change, line = WRONG[name]
    change(folder)
    with pytest.raises(CheckpointError, match=line) as caught:
        TextReader(folder); SoundReader(folder)
    assert "\n" not in str(caught.value)

def test_dry_run(good, folder):
    assert not check_encoders(find_folder(good)).problems
    rewrite(folder, lambda s: s | {"norm.weight": torch.zeros(3)})
    assert "final_layer_norm.weight has shape" in check_encoders(find_folder(folder)).problems[0]

def test_without_the_library_one_line(good, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'liveavatar-nb\[wan\]'"):
        TextReader(good)
