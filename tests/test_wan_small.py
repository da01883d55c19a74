"""`wan-s2v-1.3b`: sizes, planning, a start from a video network's names, and stage 1 from there."""
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from liveavatar_nb.cli import main
from liveavatar_nb.model.dit import DiT
from liveavatar_nb.model.presets import load_weights, preset
from liveavatar_nb.stream.planner import plan
from liveavatar_nb.wan.checkpoint import EARS, TINY, WAN, CheckpointError, write_tiny
from liveavatar_nb.wan.lora import FilmClips, tuning_loss, write_shard
from liveavatar_nb.wan.small import FRESH, from_video, save_network, train_from_video, write_tiny_video

small = preset("wan-s2v-1.3b")
tiny = replace(small, dit=TINY)


@pytest.fixture
def folder(tmp_path):
    return write_tiny_video(tmp_path / "Wan2.1-T2V-1.3B", TINY)

def rand(seed=0):
    g = torch.Generator().manual_seed(seed)
    return lambda *s: torch.randn(s, generator=g)

def look(net, hears=True):
    r = rand(1)
    x, rows, sound = r(1, 16, 3, 8, 8), [r(7, 64)], r(1, 25, 20, 32)
    with torch.no_grad(): return net(x, .6, net.conditions(rows, sound if hears else None, 8 if hears else 0))[0]


def test_sizes_and_plan():
    with torch.device("meta"): net = DiT(small.dit, init=False)
    video = sum(w.numel() for n, w in net.named_parameters() if not n.startswith(FRESH))
    assert abs(video / 1e9 - 1.419) < .002, "Wan 2.1 1.3B as published"
    assert 1.5e9 < sum(w.numel() for w in net.parameters()) < 1.6e9
    p = plan("1xRTX4090", "wan-s2v-1.3b", size=(704, 384))
    assert max(p.gb) < 24 and p.fps > 4 and plan("1xH100", "wan-s2v-1.3b").fps > 3 * plan("1xH100", "wan-s2v-14b", precision="fp8").fps

def test_every_tensor_arrives_and_nothing_is_disturbed(folder):
    net, file = from_video(folder, tiny), load_file(folder / "diffusion_pytorch_model.safetensors")
    own = net.state_dict()
    assert all(torch.equal(own[k], v) for k, v in file.items()) and {k for k in own if k not in file} == {k for k in own if k.startswith(FRESH)}
    assert torch.equal(look(net), look(net, False)) and look(net).std() > .01
    bare = DiT(replace(TINY, framepack=False, cond_dim=0), init=False)
    with torch.no_grad():
        bare.load_state_dict({k: own.get(k, torch.zeros_like(v)) if not k.startswith("trainable") else torch.zeros_like(v) for k, v in bare.state_dict().items()})
    assert (look(bare, False) - look(net)).abs().max() < 1e-5, "the plain video network"
    assert not any(v.is_meta for v in own.values()) and all(torch.isfinite(v).all() for v in own.values())
    again = from_video(folder, tiny).state_dict()
    assert all(torch.equal(own[k], again[k]) for k in own)

def test_packed_motion_begins_as_the_mean_of_small_patches(folder):
    net = from_video(folder, tiny)
    film = rand(2)(1, 16, 19, 8, 8)
    with torch.no_grad():
        tokens, own = net.frame_packer(film)[0], net.embed(film)
    assert (tokens[:, :16] - own[:, -16:]).abs().max() < 1e-4, "the newest frame in full"
    pair = own.unflatten(1, (19, 2, 2, 2, 2))[:, 16:18].mean((1, 3, 5)).flatten(1, 2)
    assert (tokens[:, 16:20] - pair).abs().max() < 1e-4

WRONG = {
    "missing": (lambda t: t.pop("blocks.1.ffn.0.weight"), r"blocks.1.ffn.0.weight \[192, 96\] is missing"),
    "extra": (lambda t: t.update({"img_emb.proj": torch.zeros(2)}), "safetensors: img_emb.proj is unknown"),
    "shape": (lambda t: t.update({"head.head.bias": torch.zeros(3)}), r"head.head.bias has shape \[3\], the network wants \[64\]"),
}

@pytest.mark.parametrize("name", WRONG)
def test_one_line_names_file_and_key(folder, name):
    change, line = WRONG[name]
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file); change(tensors); save_file(tensors, file)
    with pytest.raises(CheckpointError, match=line) as caught: from_video(folder, tiny)
    assert "\n" not in str(caught.value)

def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"): from_video(tmp_path / "nothing", tiny)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("t2v", "i2v"))
    with pytest.raises(CheckpointError, match="config.json: model_type is 'i2v'"): from_video(folder, tiny)
    config.unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"): from_video(folder, tiny)

def test_stage_1_learns_to_hear(folder, tmp_path):
    r, made = rand(3), []
    way = r(1, 16, 1, 1)
    for _ in range(3):
        audio, still = r(25, 24, 32), r(1, 16, 1, 1).expand(1, 16, 8, 8)
        move = audio[0, :, 0].unflatten(0, (-1, 4)).mean(1)[:, None, None, None]
        made.append(dict(latents=torch.cat([still, still + way * move]).half(), audio=audio.half(), text=r(6, 64).half()))
    write_shard(tmp_path / "clips", "train", 0, made)
    net = train_from_video(folder, tmp_path / "clips", tmp_path / "run", tiny, steps=25, batch=2, n_blocks=1, lr=3e-3, ema=.5, device="cpu",
                           progress=False, remake=False)
    batch, start = FilmClips(tmp_path / "clips").batch(99, 3, 1), from_video(folder, tiny)
    loss = [tuning_loss(n, batch, torch.Generator().manual_seed(1)).item() for n in (net, start)]
    assert loss[0] < .9 * loss[1] and (look(net) - look(net, False)).abs().max() > 1e-4
    saved = load_weights(tmp_path / "run" / "weights.safetensors")
    assert saved.config == net.config and (look(saved) - look(net)).abs().max() < .05


samples = Path(__file__).resolve().parents[1] / "data" / "samples"

def generate(folder, out, *more):
    return main(["generate", "--preset", "wan-s2v-1.3b", "--ckpt", str(folder), "--size", "96x64", "--text", "calm", "--audio", str(samples / "hello.wav"),
                 "--image", str(samples / "ada.png"), "--outdir", str(out), *more])

def test_a_folder_of_the_small_network_makes_a_film(folder, tmp_path, capsys):
    "From a video network's folder, with its VAE and text encoder, to a film; what is missing on the way is one line each."
    pytest.importorskip("transformers", reason="the official encoders need transformers (the extra `wan`)")
    from liveavatar_nb.stream.film import read_video
    from liveavatar_nb.wan.encoders import HEARING, write_tiny_encoders
    release = write_tiny_encoders(write_tiny(tmp_path / "release")) / WAN
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"): shutil.copy(release / name, folder)
    shutil.copytree(release / "google", folder / "google")
    net = from_video(folder, tiny)
    small_folder = save_network(net, tmp_path / "network", folder)
    assert generate(small_folder, tmp_path) == 2 and capsys.readouterr().err.strip().endswith(f"{HEARING} is missing: fetch it, the folder must look like the official release")
    shutil.copytree(release / HEARING, small_folder / HEARING)
    assert main(["wan", "check", str(small_folder)]) == 0
    assert generate(small_folder, tmp_path, "--name", "small", "--steps", "2") == 0, capsys.readouterr().err
    assert read_video(tmp_path / "small.mp4")[0].shape[1:] == (64, 96, 3)

def test_a_network_without_ears_is_one_line(folder, tmp_path, capsys):
    deaf = save_network(from_video(folder, tiny), tmp_path / "deaf")
    state = load_file(deaf / "diffusion_pytorch_model.safetensors")
    save_file({k: v for k, v in state.items() if not k.startswith(EARS)}, deaf / "diffusion_pytorch_model.safetensors")
    for path in (folder, deaf):
        for more in ([], ["--tpp", "2"]):
            assert generate(path, tmp_path, *more) == 2
            line, = [x for x in capsys.readouterr().err.strip().splitlines() if not x.startswith("portrait:")]
            assert line.startswith(f"error: {path} holds a video network without audio layers: `liveavatar-nb train from-video"), line
