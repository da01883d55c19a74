"""Training cut over processes (66b_wan.shard): two processes without a GPU have the losses, the files and half of the memory of one."""
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from liveavatar_nb.model.presets import preset
from liveavatar_nb.wan.checkpoint import LORA, TINY, check_dit, find_folder, write_tiny
from liveavatar_nb.wan.lora import write_shard
from liveavatar_nb.wan.shard import share, train_sharded
from liveavatar_nb.wan.small import write_tiny_video

tiny = replace(preset("wan-s2v-1.3b"), dit=TINY)
SETTINGS = dict(steps=4, batch=2, n_blocks=2, lr=3e-3, device="cpu", log_every=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home, g = tmp_path_factory.mktemp("shard"), torch.Generator().manual_seed(0)
    r = lambda *s: torch.randn(s, generator=g).half()
    write_shard(home / "clips", "train", 0, [dict(latents=r(13, 16, 8, 8), audio=r(25, 48, 32), text=r(6, 64)) for _ in range(4)])
    write_tiny(home / "ckpt", rank=0)
    write_tiny_video(home / "video", TINY)
    return home

def by_two(init, home, out, **settings):
    "Losses of two processes, as each of them returns them."
    code = f"""
import json, os
from dataclasses import replace
from liveavatar_nb.model.presets import preset
from liveavatar_nb.wan.checkpoint import TINY
from liveavatar_nb.wan.shard import train_sharded
losses = train_sharded({str(init)!r}, {str(home / 'clips')!r}, {str(out)!r}, preset=replace(preset("wan-s2v-1.3b"), dit=TINY), **{settings!r})
open({str(out)!r} + "/losses" + os.environ["RANK"], "w").write(json.dumps(losses))
"""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"losses{r}").read_text()) for r in range(2)]

def same_run(init, home, rank, file, **more):
    settings = SETTINGS | dict(rank=rank) | more
    one = train_sharded(init, home / "clips", home / f"one{rank}", preset=tiny, **settings)
    first, second = by_two(init, home, home / f"two{rank}", **settings)
    assert first == second and max(abs(a - b) for a, b in zip(one, first)) < 1e-5 and len(set(one)) == 4
    a, b = (load_file(home / f"{name}{rank}" / file) for name in ("one", "two"))
    assert a.keys() == b.keys() and all(a[k].shape == b[k].shape and (a[k] - b[k]).abs().max() < 1e-3 for k in a)
    alone, = json.loads((home / f"one{rank}" / "ranks.json").read_text())
    ranks = json.loads((home / f"two{rank}" / "ranks.json").read_text())
    assert len(ranks) == 2 and (alone["held"] == alone["forecast"] if rank else .8 < alone["held"] / alone["forecast"] < 1), "Adam keeps nothing of the packer, which stage 1 doesn't use"
    for r in ranks: assert abs(r["held"] / alone["held"] - .5) < .02 and abs(r["forecast"] / alone["forecast"] - .5) < .001
    return a, b


def test_a_lora_by_two_processes(home):
    one, two = same_run(home / "ckpt", home, 4, "liveavatar.safetensors")
    assert len(two) == 96 and any((v != 0).any() for k, v in two.items() if "lora_B" in k)
    log = [json.loads(line) for line in (home / "two4" / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log] == [2, 4]
    (home / "ckpt" / LORA).parent.mkdir(exist_ok=True)
    for name in ("liveavatar.safetensors", "adapter_config.json"): (home / "two4" / name).rename((home / "ckpt" / LORA).with_name(name))
    found = check_dit(find_folder(home / "ckpt"))
    assert not found.problems and "rank 4, scale 0.5, 48 matrices corrected" in dict(found.rows)["LoRA"]

def test_stage_1_by_two_processes(home):
    one, two = same_run(home / "video", home, 0, "network/diffusion_pytorch_model.safetensors")
    start = load_file(home / "video" / "diffusion_pytorch_model.safetensors")
    assert any((two[k] != v).any() for k, v in start.items())
    assert not check_dit(find_folder(home / "two0" / "network")).problems

def test_a_batch_that_can_not_be_dealt_out(monkeypatch):
    assert list(share(3)) == [0, 1, 2]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert list(share(4)) == [1, 3]
    with pytest.raises(ValueError, match="batch 3 over 2 processes: give a multiple of 2"): share(3)
