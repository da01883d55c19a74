"""Adapters: rank and scale, what is trained, merging, the file that chapter 60's loader takes, training and resuming."""
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from safetensors.torch import load_file

from liveavatar_nb.model.dit import DiT
from liveavatar_nb.model.presets import preset
from liveavatar_nb.wan.checkpoint import LORA, TINY, CheckpointError, check_dit, find_folder, load_dit, write_tiny
from liveavatar_nb.wan.lora import (FilmClips, LoRALinear, adapters, add_lora, is_target, lora_gb, merge_lora, remade, save_lora, train_lora,
                                    tuning_loss, write_shard)


def rand(seed=0):
    g = torch.Generator().manual_seed(seed)
    return lambda *s: torch.randn(s, generator=g)

def tiny(seed=0):
    torch.manual_seed(seed)
    net = DiT(TINY)
    nn.init.normal_(net.head.head.weight, std=.05)
    return net.eval()

def look(net):
    r = rand(1)
    return net(r(2, 16, 3, 8, 8), .7, net.conditions([r(7, 64), r(3, 64)], r(2, 25, 20, 32), 8))[0]

def learned(net, rank=8, **options):
    add_lora(net, rank, **options)
    torch.manual_seed(5)
    for m in adapters(net).values(): nn.init.normal_(m.lora_B, std=.05)
    return net

@pytest.fixture
def data(tmp_path):
    r = rand(2)
    way = r(1, 16, 1, 1)
    made = []
    for _ in range(3):
        audio, still = r(25, 48, 32), r(1, 16, 1, 1).expand(1, 16, 8, 8)
        move = audio[0, :, 0].unflatten(0, (-1, 4)).mean(1)[:, None, None, None]
        made.append(dict(latents=torch.cat([still, still + way * move]).half(), audio=audio.half(), text=r(6, 64).half()))
    write_shard(tmp_path / "clips", "train", 0, made)
    return tmp_path / "clips"


def test_official_size():
    with torch.device("meta"): net = DiT(preset("wan-s2v-14b").dit, init=False)
    assert add_lora(net, 128) == 448
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == lora_gb()["million_adapter_numbers"] * 1e6 or abs(trained / 1e6 - lora_gb()["million_adapter_numbers"]) < .1
    assert 675e6 < trained < 677e6 and lora_gb()["total"] < 80 and lora_gb(gpus=1)["total"] > lora_gb()["total"] + 20

@pytest.mark.parametrize("rank,alpha,scale", [(8, None, .5), (4, 4, 1.), (2, 16, 8.)])
def test_rank_and_alpha(rank, alpha, scale):
    net = learned(tiny(), rank, alpha=alpha)
    layer = net.blocks[2].ffn[2]
    assert (tuple(layer.lora_A.shape), tuple(layer.lora_B.shape), layer.scale) == ((rank, 192), (96, rank), scale)
    x = rand(3)(5, 192)
    by_hand = x @ layer.weight.T + layer.bias + scale * (x @ layer.lora_A.T) @ layer.lora_B.T
    assert (layer(x) - by_hand).abs().max() < 1e-4

def test_nothing_changes_at_the_start_and_adapters_alone_learn():
    net = tiny(); before = look(net)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    assert add_lora(net, 4) == 4 * 10 + 2 * 4 and torch.equal(look(net), before)
    trained = [p for p in net.parameters() if p.requires_grad]
    assert len(trained) == 2 * 48 and {n for n, m in net.named_modules() if is_target(n, m)} == adapters(net).keys()
    optimizer = torch.optim.SGD(trained, 1.)
    for _ in range(2): optimizer.zero_grad(); look(net).square().mean().backward(); optimizer.step()
    assert (look(net) - before).abs().max() > 1e-4
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items() if k in state)
    assert net.head.head.weight.grad is None

def test_merged_is_unmerged():
    net = learned(tiny()); plain, apart = look(tiny()), look(net)
    with pytest.raises(ValueError, match="merge it first"): add_lora(net, 4)
    assert merge_lora(net) == 48 and not any(isinstance(m, LoRALinear) for m in net.modules())
    assert net.state_dict().keys() == tiny().state_dict().keys()
    assert (look(net) - apart).abs().max() <= 1e-5 < 1e-3 < (plain - apart).abs().max()

def test_the_file_loads_through_the_official_loader(tmp_path):
    folder = write_tiny(tmp_path / "ckpt", rank=0)
    net = learned(load_dit(folder, dtype=torch.float32)); save_lora(folder / LORA, net)
    assert "rank 8, scale 0.5, 48 matrices corrected, 0 tensors replaced" in dict(check_dit(find_folder(folder)).rows)["LoRA"]
    assert (look(load_dit(folder, dtype=torch.float32)) - look(net)).abs().max() < 1e-5
    assert not list((folder / LORA).parent.glob("*.tmp"))

def test_beside_the_release_lora(tmp_path):
    "The release's LoRA is merged in what is tuned; the file must hold both."
    from liveavatar_nb.wan.lora import base_network
    folder = write_tiny(tmp_path / "ckpt", rank=4)
    net, release = base_network(folder)
    learned(net, 6, alpha=12); save_lora(tmp_path / "mine.safetensors", net, release)
    for file, name in (("mine.safetensors", LORA), ("adapter_config.json", "LiveAvatar/adapter_config.json")): (tmp_path / file).rename(folder / name)
    assert json.loads((folder / "LiveAvatar/adapter_config.json").read_text())["r"] == 10
    assert (look(load_dit(folder, dtype=torch.float32)) - look(net)).abs().max() < 1e-4

def test_without_adapters_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="add_lora first"): save_lora(tmp_path / "x.safetensors", tiny())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="rank 0"): add_lora(tiny(), 0)

def test_remade_layers_give_the_same_gradients(data):
    net, batch = learned(tiny(), 4), FilmClips(data).batch(0, 1, 2)
    def gradients(on):
        with remade(net, on): loss = tuning_loss(net, batch, torch.Generator().manual_seed(3))
        return torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad], allow_unused=True)
    pairs = [(a, b) for a, b in zip(gradients(True), gradients(False)) if b is not None]
    assert len(pairs) > 80 and all((a - b).abs().max() <= 1e-5 * max(1, b.abs().max()) for a, b in pairs)
    assert "_call_impl" not in vars(net.blocks[0])

def test_batches_are_a_pure_function_of_step_and_seed(data):
    clips = FilmClips(data)
    a, b, c = clips.batch(3, 2, 2, 0), clips.batch(3, 2, 2, 0), clips.batch(4, 2, 2, 0)
    assert all(torch.equal(a[k], b[k]) for k in ("latents", "sink", "audio")) and not torch.equal(a["latents"], c["latents"])
    assert a["latents"].shape == (2, 16, 6, 8, 8) and a["audio"].shape == (2, 25, 32, 32) and a["sink"].shape == (2, 16, 1, 8, 8)
    with pytest.raises(ValueError, match="no heldout shards"): FilmClips(data, "heldout")

def test_training_lowers_the_loss_resumes_and_leaves_the_base_alone(data, tmp_path):
    folder = write_tiny(tmp_path / "ckpt", rank=0)
    bytes_before = {f: f.read_bytes() for f in folder.rglob("*.safetensors")}
    settings = dict(rank=4, lr=1e-2, batch=2, n_blocks=1, progress=False, remake=False, device="cpu", save_every=10, log_every=10)
    whole = train_lora(folder, data, tmp_path / "a", steps=30, **settings)
    assert all(f.read_bytes() == b for f, b in bytes_before.items())
    losses = [json.loads(x)["loss"] for x in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    batch, control = FilmClips(data).batch(99, 3, 1), load_dit(folder, dtype=torch.float32)
    loss = [tuning_loss(n, batch, torch.Generator().manual_seed(1)).item() for n in (whole, control)]
    assert loss[0] < .95 * loss[1] and len(losses) == 3
    names = load_file(tmp_path / "a" / "liveavatar.safetensors")
    assert len(names) == 96 and all(k.startswith("base_model.model.") for k in names)
    saved = sorted((tmp_path / "a").glob("step_*.safetensors"))
    assert saved and saved[-1].stat().st_size < 8 * sum(t.nbytes for t in names.values()), "checkpoints hold adapters, not the network"
    saved[-1].unlink()      # as if killed before the last one
    again = train_lora(folder, data, tmp_path / "a", steps=30, resume=True, **settings)
    a, b = ({n: m.lora_B for n, m in adapters(net).items()} for net in (whole, again))
    assert all(torch.equal(a[n], b[n]) for n in a)

def test_wrong_folders_are_one_line(data, tmp_path):
    with pytest.raises(CheckpointError, match="neither config.json nor"): train_lora(tmp_path, data, tmp_path / "x", steps=1, device="cpu")
    assert not (tmp_path / "x").exists()

def test_own_networks_too_from_the_command_line(tmp_path, capsys):
    from liveavatar_nb.cli import main
    from liveavatar_nb.model.presets import load_weights, save_weights
    from liveavatar_nb.train.loop import write_checkpoint
    from dataclasses import replace
    torch.manual_seed(0)
    config = replace(preset("pico").dit, dim=48, ffn_dim=96, heads=2, layers=2, inject_layers=(0,), ear=0)
    base = DiT(config); nn.init.normal_(base.head.head.weight, std=.05)
    save_weights(tmp_path / "base.safetensors", base, "dit", config=config)
    r = rand(4)
    clips = dict(latents=r(2, 13, 16, 8, 8).half(), audio=r(2, 48, 80).half(), motion=r(2, 48, 15).half())
    note = dict(vae=0, size=64, n_frames=48, caption=["calm"] * 2, text=[""] * 2, mood=[""] * 2, manner=[""] * 2, seed=[0, 1])
    write_checkpoint(tmp_path / "clips" / "train_00000.safetensors", clips, note)
    argv = ["train", "lora", "--init", str(tmp_path / "base.safetensors"), "--data", str(tmp_path / "clips"), "--out", str(tmp_path / "out"),
            "--steps", "2", "--rank", "2", "--device", "cpu", "--progress", "False", "--n-blocks", "1", "--lr", "0.05"]
    assert main(argv) == 0, capsys.readouterr().err
    merged, start = load_weights(tmp_path / "out" / "weights.safetensors"), load_weights(tmp_path / "base.safetensors")
    moved = {k for k, v in merged.state_dict().items() if not torch.equal(v, start.state_dict()[k])}
    assert moved and all(is_target(k.removesuffix(".weight"), merged.get_submodule(k.rpartition(".")[0])) for k in moved)
    assert Path(tmp_path / "out" / "adapter_config.json").is_file()
