"The official network over several processes (64b_wan.pipeline): the film of one process, parts only where they are needed, refusals before anything is loaded."
import os
import shutil
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
from liveavatar_nb.stream.live import WAVE, LiveRun  # noqa: E402
from liveavatar_nb.stream.settings import TPPConfig, TPPError, one_process, parts_of  # noqa: E402
from liveavatar_nb.wan.avatar import LOST, OfficialAvatar, fit_picture, official_type, size_for  # noqa: E402
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
                                          (dict(resume=True), "nothing is saved where checkpoint_every is 0"), (dict(image="gone.png"), "gone.png"),
                                          (dict(live="localhost:1/key", compat="official"), "can't hear live")])
def test_refused_in_one_line(config, wrong, words, refusal):
    assert words in refusal(torchrun_main, replace(config, **wrong))


@pytest.mark.parametrize("compat", ["", "official"])
def test_a_killed_run_goes_on(config, compat):
    "Killed at block 7 of 8, with a checkpoint after every second: what is made after that has the bits of an uninterrupted run."
    save_wav(config.folder.parent / "long.wav", (.1 * np.random.default_rng(2).normal(size=8 * WAVE)).astype(np.float32))
    c = replace(config, audio=str(config.folder.parent / "long.wav"), placement="01|23|D", name=f"killed{compat}", compat=compat, refresh_at=4 if compat else 1, checkpoint_every=2)
    with pytest.raises(TPPError, match=r"rank 1 \(step 2 3\) died .*--resume"): run_tpp(c, fault=[1, 7, "kill"])
    with pytest.raises(ValueError, match="begun with another seed"): run_tpp(c, resume=True, seed=3)
    again, judge = run_tpp(c, resume=True), one_process(c)
    lost = LOST * bool(compat)
    assert again.first in (2, 4, 6)
    assert torch.equal(again.kept["latents"], judge["latents"][:, :, 3 * again.first:])
    assert torch.equal(again.kept["frames"], judge["frames"][12 * again.first - lost:])
    film, sound = read_video(c.video)
    assert len(film) == 96 - lost and abs(len(sound) - 640 * len(film)) < 1100
    assert np.abs(film.mean((1, 2)) - judge["frames"].numpy().mean((1, 2))).max() < 8     # H.264 changes noise a good deal, its colour little


def test_another_release_is_no_release_to_go_on_with(config, tmp_path):
    other = write_tiny_encoders(write_tiny(tmp_path / "ckpt", seed=1))
    same = shutil.copytree(config.ckpt, tmp_path / "copy")
    marks = [parts_of(replace(config, ckpt=str(folder))).release for folder in (config.ckpt, same, other)]
    assert marks[0] == marks[1] != marks[2]


def test_live_sound_and_a_new_sentence(config, avatar):
    "Pushed in crumbs, with another sentence from block 3 on: the bits of one stream that is told the same."
    samples = load_audio(config.audio)
    run = LiveRun(config, placement="0|123|D", name="live", audio="")
    for piece in np.array_split(samples[:3 * WAVE], 11): run.push(piece)
    run.say("angry, loud")
    for piece in np.array_split(samples[3 * WAVE:], 7): run.push(piece)
    result, clips = run.close(), list(run)
    stream = avatar.stream(config.image, config.text, size=config.size)
    told, plain = [clip.frames for clip in stream.push(samples[:3 * WAVE])], streamed(avatar, config)
    stream.say("angry, loud")
    told = np.concatenate(told + [clip.frames for clip in stream.push(samples[3 * WAVE:])] + [clip.frames for clip in stream.flush()])
    heard = np.concatenate([clip.frames for clip in clips])
    assert np.array_equal(heard, told) and np.array_equal(heard[:36], plain[:36]) and not np.array_equal(heard[36:], plain[36:])
    assert np.array_equal(np.concatenate([clip.samples for clip in clips]), samples)
    assert [set(p) for p in result.parameters] == [{"dit", "ears"}, {"dit"}, {"vae"}]
    assert result.bytes["sentence", 0, 1] == 4 * 12 * 64 and ("sentence", 1, 2) not in result.bytes


def test_a_folder_with_a_hole_is_refused_before_five_processes_start(config, tmp_path):
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
