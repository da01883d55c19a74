"""Eight bits: error by layer and over the official roll-out, torchao's layers, bytes by preset and placement."""
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liveavatar_nb.model.dit import DiT
from liveavatar_nb.model.presets import preset
from liveavatar_nb.stream.cost import WAN, weight_gb
from liveavatar_nb.stream.sampler import BlockSampler
from liveavatar_nb.wan.gpu import tiny_preset
from liveavatar_nb.wan.quantize import (KINDS, by_torchao, cache_bytes, golden_net, golden_rollout, is_big, layer_errors, memory_table, quantize,
                                        vae_bytes, weight_bytes)

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "dit.safetensors"
BOUNDS = dict(float8=.05, int8=.02)


@pytest.fixture(scope="module")
def g():
    return load_file(GOLDEN)

def far(got, want):
    return ((got - want).square().mean((1, 2, 3, 4)) / want.square().mean((1, 2, 3, 4))).sqrt()


def test_the_rollout_is_the_official_one(g):
    assert (golden_rollout(golden_net(g), g) - g["want.full"]).abs().max() < 2e-4

def test_errors_in_bfloat16_stay_small(g):
    assert 0 < far(golden_rollout(golden_net(g).bfloat16(), g, 2), g["want.full"][:2]).max() < .01

@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_eight_bits_do_not_pile_up(g, kind):
    net = golden_net(g)
    alone = layer_errors(net, lambda: golden_rollout(net, g, 1), kind)
    assert (golden_rollout(net, g, 1) - g["want.full"][:1]).abs().max() < 2e-4, "measuring leaves the network as it was"
    assert alone.keys() == {n for n, m in net.named_modules() if is_big(n, m)} and 0 < min(alone.values()) <= max(alone.values()) < BOUNDS[kind]
    assert quantize(net, kind) == len(alone) == 4 * 10 + 2 * 3
    film = far(golden_rollout(net, g), g["want.full"])
    assert 0 < film.min() and film.max() < BOUNDS[kind] and film[-1] < 2 * film[0] + .005

def test_a_worse_rounding_would_be_seen(g, monkeypatch):
    class Coarse(KINDS["int8"]):
        def __init__(self, linear):
            super().__init__(linear)
            self.weight = (self.weight.float() / 16).round().to(torch.int8) * 16     # three bits are gone
    monkeypatch.setitem(KINDS, "int8", Coarse)
    net = golden_net(g)
    assert max(layer_errors(net, lambda: golden_rollout(net, g, 1), "int8").values()) > BOUNDS["int8"]


def test_torchao_gives_the_same(g):
    pytest.importorskip("torchao", reason="torchao is not installed")
    ours, theirs = golden_net(g), golden_net(g)
    assert quantize(ours, "int8") == by_torchao(theirs, "int8")
    ours, theirs = (golden_rollout(n, g, 1) for n in (ours, theirs))
    assert far(theirs, g["want.full"][:1]).max() < BOUNDS["int8"] and far(theirs, ours).max() < BOUNDS["int8"]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="multiplies float8"): by_torchao(golden_net(g), "float8")

def test_torchao_missing_or_unknown_is_one_line(g, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match="pip install torchao"): by_torchao(golden_net(g), "int8")
    with pytest.raises(ValueError, match="unknown precision 'int4'"): by_torchao(golden_net(g), "int4")


def test_counted_bytes_are_the_bytes():
    p = tiny_preset()
    net = DiT(p.dit, init=False)
    assert weight_bytes(net, "float32") == sum(w.nbytes for w in net.parameters())
    net = net.bfloat16()
    for kind in KINDS:
        counted, own = weight_bytes(net, kind), DiT(p.dit, init=False).bfloat16()
        quantize(own, kind)
        assert sum(t.nbytes for t in (*own.parameters(), *own.buffers())) == counted

@torch.inference_mode()
def test_counted_cache_is_the_cache():
    p = preset("pico")
    sampler = BlockSampler(DiT(p.dit), p.latent).start(torch.randn(1, 16, 1, 8, 8), "calm")
    for _ in range(5): sampler.block(torch.randn(1, 20, 80))
    held = {t.data_ptr(): t.nbytes for h in sampler.histories for t in [x for kv in h.buffers for x in kv] + h.sink_keys}
    assert sum(held.values()) == cache_bytes(p, 4, 4)

def test_decoder_state_of_the_official_size():
    "16.2 GB when the state held views of whole activations; counted on `meta` with the real shapes."
    weights, state = vae_bytes(preset("wan-s2v-14b"), 4)
    assert 2e9 < state <= 3e9 and 70e6 < weights / 4 < 76e6

@pytest.mark.parametrize("placement,steps", [("0|1|2|3|D", (1, 1, 1, 1, 0)), ("01|23D", (2, 2)), ("0123D", (4,))])
def test_table(placement, steps):
    rows = {kind: memory_table("wan-s2v-14b", placement, kind) for kind in ("bfloat16", *KINDS)}
    for kind, short in (("bfloat16", "bf16"), ("float8", "fp8")):
        assert [bool(r["weights"]) for r in rows[kind]] == [bool(s) for s in steps]
        assert max(r["weights"] for r in rows[kind]) == pytest.approx(weight_gb(WAN, short), rel=.06), "the planner's estimate is near"
        assert rows[kind][-1]["decoder"] > 1
        assert all(abs(r["total"] - r["weights"] - r["cache"] - r["decoder"]) < .02 for r in rows[kind])
    assert rows["float8"][0]["total"] < rows["bfloat16"][0]["total"] - 14

def test_bench_bits_writes_a_record(tmp_path):
    from liveavatar_nb.cli import main
    assert main(["bench", "bits", "--golden", str(tmp_path / "no"), "--json", str(tmp_path / "x.json")]) in (1, 2) and not (tmp_path / "x.json").exists()
    assert main(["bench", "bits", "--golden", str(GOLDEN), "--json", str(tmp_path / "x.json")]) == 0
    result = json.loads((tmp_path / "x.json").read_text())["result"]
    assert result["errors"]["float32"]["film"] < 1e-3 < result["errors"]["float8"]["film"] < .05
