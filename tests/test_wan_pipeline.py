"The official network over several processes (64b_wan.pipeline): the film of one process, parts only where they are needed, refusals before anything is loaded."
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the official encoders need transformers (the extra `wan`)")
from liveavatar_nb.cli import main  # noqa: E402
from liveavatar_nb.data.audio import load_audio, save_wav  # noqa: E402
from liveavatar_nb.stream.distributed import main as torchrun_main, run_tpp  # noqa: E402
from liveavatar_nb.stream.film import read_video  # noqa: E402
from liveavatar_nb.stream.settings import TPPConfig, one_process, parts_of  # noqa: E402
from liveavatar_nb.wan.avatar import OfficialAvatar, fit_picture, official_type, size_for  # noqa: E402
from liveavatar_nb.wan.checkpoint import write_tiny  # noqa: E402
from liveavatar_nb.wan.encoders import write_tiny_encoders  # noqa: E402
from liveavatar_nb.wan.pipeline import OfficialSound  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher forks: Linux or macOS")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    "A tiny folder in the official layout, 2.2 seconds of noise and a picture: a run of 5 blocks."
    from PIL import Image
    folder = tmp_path_factory.mktemp("pipeline")
    ckpt = write_tiny_encoders(write_tiny(folder / "ckpt"))
    save_wav(folder / "voice.wav", (.1 * np.random.default_rng(0).normal(size=35_000)).astype(np.float32))
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 150, 3), dtype=np.uint8)).save(folder / "face.png")
    return TPPConfig(str(folder / "voice.wav"), str(folder / "face.png"), "calm", str(folder), preset="wan-s2v-14b", ckpt=str(ckpt), size="96x64",
                     precision="float32", device="cpu", record=True)

@pytest.fixture(scope="module")
def avatar(config):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield OfficialAvatar.from_folder(config.ckpt)
    torch.set_num_threads(threads)

def streamed(avatar, c):
    "Frames of the stream of chapter 64, which knows nothing of the pipeline."
    sound = load_audio(c.audio)
    stream = avatar.stream(c.image, c.text, size=c.size, compat=c.compat, sound=sound if c.compat else None)
    return np.concatenate([clip.frames for clip in stream.push(sound)] + [clip.frames for clip in stream.flush()])


@pytest.mark.parametrize("compat, placement, share", [("official", "0|1|2|3|D", True), ("", "01|23D", False), ("", "0|1|2|3|D", True)])
def test_same_film_as_one_process(config, avatar, compat, placement, share):
    c = replace(config, compat=compat, placement=placement, share=share, name=f"film{compat}", refresh_at=4 if compat else 1)
    run, judge = run_tpp(c), streamed(avatar, c)
    assert len(judge) == 55 - 3 * bool(compat)
    frames, latents = run.kept["frames"].numpy()[:len(judge)], run.kept["latents"]
    one = one_process(c)
    assert np.array_equal(frames, judge) and torch.equal(latents, one["latents"]) and torch.equal(run.kept["frames"], one["frames"])
    film, sound = read_video(c.video)
    assert len(film) == len(judge) and abs(len(sound) - 640 * len(judge)) < 1100


def test_parts_are_where_they_are_needed(config):
    run = run_tpp(config, placement="0|12|3|D", name="parts", n_blocks=2)
    assert [set(p) for p in run.parameters] == [{"dit", "ears"}, {"dit"}, {"dit"}, {"vae"}]
    assert {(what, a, b) for what, a, b in run.bytes if what == "sound"} == {("sound", 0, 1), ("sound", 1, 2)}
    assert run.bytes["sound", 0, 1] == 2 * 4 * 25 * 20 * 32 and run.bytes["latent", 2, 3] == 2 * 4 * 16 * 3 * 8 * 12
    assert {what for what, *_ in run.bytes} == {"latent", "sound", "portrait", "motion", "text", "sink kv"}


def test_the_command_line_streams_the_release_over_five_processes(config, tmp_path, capsys):
    words = ["generate", "--preset", "wan-s2v-14b", "--ckpt", config.ckpt, "--compat", "official", "--size", "96x64", "--text", "calm", "--no-mark",
             "--audio", config.audio, "--image", config.image, "--outdir", str(tmp_path)]
    assert main([*words, "--name", "five", "--tpp", "5"]) == 0 == main([*words, "--name", "one"]), capsys.readouterr().err
    (five, sound5), (one, sound1) = (read_video(tmp_path / f"{name}.mp4") for name in ("five", "one"))
    assert five.shape == one.shape == (52, 64, 96, 3) and len(sound5) == len(sound1)
    assert np.abs(five.astype(int) - one).mean() < 4     # films have marks of their own, and H.264 changes a little


@pytest.mark.parametrize("wrong, words", [(dict(ckpt=""), "needs --ckpt"), (dict(ckpt="nowhere"), "nowhere is not a folder"), (dict(preset="nano"), "--ckpt is for wan-s2v-14b"),
                                          (dict(compat="other"), "unknown compat"), (dict(precision="int3"), "unknown precision"), (dict(size="100x100"), "multiples of 16"),
                                          (dict(resume=True), "no checkpoint yet"), (dict(checkpoint_every=2), "no checkpoint yet"), (dict(image="gone.png"), "gone.png")])
def test_refused_in_one_line(config, wrong, words, refusal):
    assert words in refusal(torchrun_main, replace(config, **wrong))


def test_a_folder_with_a_hole_is_refused_before_five_processes_start(config, tmp_path):
    import shutil
    broken = Path(shutil.copytree(config.ckpt, tmp_path / "ckpt"))
    next(broken.rglob("*00002-of-*.safetensors")).unlink()
    with pytest.raises(ValueError, match="00002-of-00003.safetensors is missing"): run_tpp(config, ckpt=str(broken), name="broken")
    assert not (config.folder.parent / ".broken.tpp").exists()


def test_a_card_without_float8_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "an A100")
    with pytest.raises(ValueError, match="an A100 has no float8: use int8 or bfloat16"): official_type("float8", "cuda")
    assert official_type("int8", "cuda") is torch.bfloat16 and official_type("bfloat16", "cuda") is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert official_type("float8", "cuda") is torch.bfloat16 and official_type("float8", "cpu") is torch.float32


def test_gpus_that_are_too_small_are_named_before_anything_is_loaded(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True); monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    class Card: name, total_memory = "small card", 24e9
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Card)
    c = replace(config, device="cuda", precision="bfloat16")
    assert parts_of(c).dtype("cuda") is torch.bfloat16
    with pytest.raises(ValueError, match=r"GPU 0 \(small card\) has 24.0 GB, its part of wan-s2v-14b .* needs 3\d"): run_tpp(c, name="small")
    assert not (config.folder.parent / ".small.tpp").exists()


def test_mixed_devices_are_told_once(capsys):
    from liveavatar_nb.stream.distributed import warn_mixed
    warn_mixed(["NVIDIA H100"] * 4 + ["NVIDIA A100"]); warn_mixed(["cpu"] * 5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "mixed devices" in lines[0] and "NVIDIA A100" in lines[0]


@pytest.mark.parametrize("samples, lost, sizes", [(35_000, 0, [12, 12, 12, 12, 7]), (35_000, 3, [9, 12, 12, 12, 7]), (3_000, 3, [5]), (7_680, 3, [9])])
def test_sound_stays_under_its_pictures(config, tmp_path, samples, lost, sizes):
    wave = np.linspace(-.9, .9, samples, dtype=np.float32)
    save_wav(tmp_path / "ramp.wav", wave)
    sound = OfficialSound(replace(config, audio=str(tmp_path / "ramp.wav"), compat="official" if lost else ""))
    waves = [sound.wave(b) for b in range(sound.n_blocks)]
    assert [-(-len(w) // 640) for w in waves] == sizes
    together = np.concatenate(waves)
    assert np.array_equal(together, sound.samples[:len(together)]) and len(sound.wave(sound.n_blocks)) == 0


def test_a_photo_on_its_side_gets_its_upright_size(tmp_path):
    from PIL import Image
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (160, 90)).save(tmp_path / "side.jpg", exif=exif)
    size = size_for(str(tmp_path / "side.jpg"))
    assert size[0] > size[1] and size == size_for(np.zeros((160, 90, 3), np.uint8))
    assert fit_picture(tmp_path / "side.jpg", *size).shape == (*size, 3)
