"""Official weights: names, shapes, LoRA, VAE, and one line for each way in which a folder can be wrong."""
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from liveavatar_nb.model.dit import DiT
from liveavatar_nb.wan.checkpoint import (LORA, TINY, WAN, Adapter, CheckpointError, check_dit, find_folder, fit_vae, load_dit, load_vae, put, read_config,
                                          write_tiny)

SHARD = "diffusion_pytorch_model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("official") / "ckpt")

def base(folder):
    return {k: v for f in sorted((folder / WAN).glob("diffusion*.safetensors")) for k, v in load_file(f).items()}

def edit(path, function):
    save_file({k: v.contiguous() for k, v in function(load_file(path)).items()}, path)

def cut(path, size=500):
    path.write_bytes(path.read_bytes()[:-size])


def test_every_tensor_arrives(good):
    state, net = base(good), load_dit(good, dtype=torch.float32, lora=False)
    own = net.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[k], state[k]) for k in state)
    assert read_config(find_folder(good)) == TINY
    assert next(load_dit(good).parameters()).dtype == torch.bfloat16

def test_lora_is_added_in_float32_and_full_tensors_win(good):
    state, net, lora = base(good), load_dit(good, dtype=torch.float32).state_dict(), load_file(good / LORA)
    for name in ("blocks.0.self_attn.q", "blocks.3.ffn.2", "blocks.2.cross_attn.o", "audio_injector.injector.1.k"):
        a, b = (lora[f"base_model.model.{name}.lora_{s}.weight"].double() for s in "AB")
        assert (net[name + ".weight"].double() - (state[name + ".weight"].double() + .5 * b @ a)).abs().max() < 1e-6
        assert torch.equal(net[name + ".bias"], state[name + ".bias"])
    changed = [k for k in state if not torch.equal(net[k], state[k])]
    assert len(changed) == 4 * 10 + 2 * 4 + 1 and "patch_embedding.bias" in changed
    bf16 = load_dit(good).state_dict()
    assert all(torch.equal(bf16[k], net[k].bfloat16()) for k in net), "rounded once, after adding"

def test_official_size_has_448_corrected_matrices():
    with torch.device("meta"):
        names = DiT(read_official(), init=False).state_dict()
    assert len([k for k in names if re.search(r"(attn|injector\.\d+)\.[qkvo]\.weight$|ffn\.[02]\.weight$", k)]) == 448

def read_official():
    from liveavatar_nb.model.presets import OFFICIAL_DIT
    return OFFICIAL_DIT

def test_other_spellings_of_lora_names(folder):
    before = load_dit(folder, dtype=torch.float32).state_dict()
    edit(folder / LORA, lambda t: {k.replace("base_model.model.", "").replace("lora_A.weight", "lora_A.default.weight").replace("lora_B", "lora_up") if "lora_B" in k else
                                   k.replace("base_model.model.", "").replace("lora_A.weight", "lora_A.default.weight"): v for k, v in t.items()})
    after = load_dit(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)

def test_vae(good):
    vae = load_vae(good)
    assert torch.equal(vae.decoder.conv1.weight, torch.load(good / WAN / "Wan2.1_VAE.pth", weights_only=True)["decoder.conv1.weight"])
    assert vae.latent_std.shape == (16,) and abs(vae.latent_mean[0] + .7571) < 1e-6
    video = torch.randn(1, 3, 5, 16, 16)
    assert vae.decode(vae.encode(video)).shape == video.shape

def test_vae_as_safetensors_is_the_same(folder):
    state = torch.load(folder / WAN / "Wan2.1_VAE.pth", weights_only=True)
    want = load_vae(folder).state_dict()
    (folder / WAN / "Wan2.1_VAE.pth").unlink(); save_file(state, folder / WAN / "Wan2.1_VAE.safetensors")
    got = load_vae(folder).state_dict()
    assert all(torch.equal(got[k], want[k]) for k in want)

def test_a_pickle_that_runs_code_is_refused(folder, tmp_path):
    class Bad:
        def __reduce__(self): return (Path.touch, (tmp_path / "ran",))
    torch.save({"decoder.head.0.gamma": Bad()}, folder / WAN / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match="Wan2.1_VAE.pth"):
        load_vae(folder)
    assert not (tmp_path / "ran").exists()


WRONG = {
    "missing": (lambda f: edit(f / WAN / SHARD, lambda t: {k: v for k, v in t.items() if k != sorted(t)[3]}), r"00002-of-00003.safetensors: \S+ should be in it"),
    "renamed": (lambda f: edit(f / WAN / SHARD, lambda t: {k.replace("blocks.1.", "blocks.one."): v for k, v in t.items()}), r"00002-of-00003.safetensors: blocks.1.\S+ should be in it"),
    "extra": (lambda f: edit(f / WAN / SHARD, lambda t: t | {"surprise": torch.zeros(2)}), "00002-of-00003.safetensors: surprise is unknown"),
    "twice": (lambda f: edit(f / WAN / SHARD, lambda t: t | {"patch_embedding.weight": torch.zeros(96, 16, 1, 2, 2)}), "patch_embedding.weight is in .* already"),
    "shape": (lambda f: edit(f / WAN / SHARD, lambda t: t | {sorted(t)[0]: torch.zeros(5, 5)}), r"00002-of-00003.safetensors: \S+ has shape \[5, 5\], the network wants \[96\]"),
    "integers": (lambda f: edit(f / WAN / SHARD, lambda t: t | {sorted(t)[0]: torch.zeros(96, dtype=torch.int8)}), "holds I8"),
    "cut": (lambda f: cut(f / WAN / SHARD), "00002-of-00003.safetensors is cut short"),
    "shard gone": (lambda f: (f / WAN / SHARD).unlink(), "00002-of-00003.safetensors is missing"),
    "no index": (lambda f: (f / WAN / "diffusion_pytorch_model.safetensors.index.json").unlink(), "index.json is missing"),
    "no config": (lambda f: (f / WAN / "config.json").unlink(), "config.json is missing"),
    "bad config": (lambda f: (f / WAN / "config.json").write_text("{"), "config.json is not JSON"),
    "other switch": (lambda f: (f / WAN / "config.json").write_text(json.dumps(dict(enable_motioner=True))), "config.json: enable_motioner is True"),
    "lora rank": (lambda f: edit(f / LORA, lambda t: {k: v[:2] if "lora_A" in k else v[:, :2] if "lora_B" in k else v for k, v in t.items()}), r"liveavatar.safetensors: \S+lora_A.weight has rank 2"),
    "lora without scale": (lambda f: (f / LORA).with_name("adapter_config.json").unlink(), r"liveavatar.safetensors: \S+lora_A.weight has rank 4, the scale 0.5 belongs to rank 128"),
    "lora half": (lambda f: edit(f / LORA, lambda t: {k: v for k, v in t.items() if not k.endswith("blocks.1.ffn.0.lora_B.weight")}), "blocks.1.ffn.0.lora_A.weight has no partner lora_B"),
    "lora elsewhere": (lambda f: edit(f / LORA, lambda t: {k.replace("blocks.1.", "blocks.9."): v for k, v in t.items()}), "blocks.9.* which this network doesn't have"),
    "lora shape": (lambda f: edit(f / LORA, lambda t: {k: torch.zeros(4, 7) if k.endswith("blocks.1.ffn.0.lora_A.weight") else v for k, v in t.items()}), r"blocks.1.ffn.0.lora_A.weight and its partner have shapes"),
    "lora cut": (lambda f: cut(f / LORA), "liveavatar.safetensors is cut short"),
    "vae cut": (lambda f: cut(f / WAN / "Wan2.1_VAE.pth"), "Wan2.1_VAE.pth is cut short"),
    "vae gone": (lambda f: (f / WAN / "Wan2.1_VAE.pth").unlink(), "Wan2.1_VAE.pth is missing"),
    "vae key": (lambda f: torch.save({k: v for k, v in torch.load(f / WAN / "Wan2.1_VAE.pth", weights_only=True).items() if k != "conv2.bias"}, f / WAN / "Wan2.1_VAE.pth"), "Wan2.1_VAE.pth: conv2.bias .* is missing"),
}

@pytest.mark.parametrize("name", WRONG)
def test_one_line_names_file_and_key(folder, name):
    change, line = WRONG[name]
    change(folder)
    with pytest.raises(CheckpointError, match=line) as caught:
        load_dit(folder); load_vae(folder)
    assert "\n" not in str(caught.value)

def test_not_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        find_folder(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither config.json nor"):
        find_folder(tmp_path)

def test_dry_run_reads_no_weights(good, monkeypatch):
    "Names, shapes and types come from the files' tables."
    import safetensors
    real = safetensors.safe_open
    class Spy:
        def __init__(self, *a, **k): self.f = real(*a, **k)
        def __enter__(self): self.g = self.f.__enter__(); return self
        def __exit__(self, *a): return self.f.__exit__(*a)
        def keys(self): return self.g.keys()
        def get_slice(self, k): return self.g.get_slice(k)
        def get_tensor(self, k): raise AssertionError("a dry run read " + k)
    monkeypatch.setattr(safetensors, "safe_open", Spy)
    found = check_dit(find_folder(good))
    assert not found.problems and "168 of 168 tensors fit" in dict(found.rows)["network"] and "48 matrices corrected" in dict(found.rows)["LoRA"]
    assert "194 of 194" in dict(fit_vae(find_folder(good))[1].rows)["VAE"]

@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_the_network_and_one_shard(tmp_path):
    big = write_tiny(tmp_path / "big", replace(TINY, dim=768, ffn_dim=2048, heads=6, layers=5), pieces=4)
    small = write_tiny(tmp_path / "small")
    code = ("import re, sys, torch\nfrom liveavatar_nb.wan.checkpoint import load_dit\n"
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
            "load_dit(sys.argv[2], dtype=torch.float32); before = peak()\nnet = load_dit(sys.argv[1], dtype=torch.float32)\n"
            "print(peak() - before, sum(p.nbytes for p in net.parameters()))")
    grown, model = map(int, subprocess.run([sys.executable, "-c", code, str(big), str(small)], capture_output=True, text=True, check=True).stdout.split())
    shard = max(f.stat().st_size for f in (big / WAN).glob("*.safetensors"))
    assert model * .9 < grown <= model + 1.2 * shard, f"{grown / 1e6:.0f} MB for a network of {model / 1e6:.0f} MB in shards of {shard / 1e6:.0f} MB"

def test_adapter_counts(good):
    shapes = {k: v.shape for k, v in base(good).items()}
    lora = Adapter(good / LORA, shapes)
    assert (lora.rank, lora.scale, len(lora.pairs), len(lora.full), lora.problems) == (4, .5, 48, 1, [])

def test_put_knows_parameters_and_buffers():
    net = torch.nn.BatchNorm1d(3)
    put(net, "weight", torch.full((3,), 2.)); put(net, "running_mean", torch.full((3,), 5.))
    assert net.weight[0] == 2 and net.running_mean[0] == 5
