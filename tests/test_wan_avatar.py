"""The official release streams: films from a tiny folder in its layout, sizes, quirks, eight bits."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

pytest.importorskip("transformers", reason="the official encoders need transformers (the extra `wan`)")
from liveavatar_nb.cli import main  # noqa: E402
from liveavatar_nb.wan.avatar import AREA, OfficialAvatar, check_folder, film_size, fit_picture, official_config, parse_size  # noqa: E402
from liveavatar_nb.wan.checkpoint import WAN, write_tiny  # noqa: E402
from liveavatar_nb.wan.encoders import write_tiny_encoders  # noqa: E402
from liveavatar_nb.wan.quantize import Float8Linear, Int8Linear, quantize, to_fp8  # noqa: E402

samples = Path(__file__).resolve().parents[1] / "data" / "samples"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return write_tiny_encoders(write_tiny(tmp_path_factory.mktemp("official") / "ckpt"))

@pytest.fixture(scope="module")
def avatar(ckpt): return OfficialAvatar.from_folder(ckpt)

@pytest.fixture(scope="module")
def sound(): return (.1 * np.random.default_rng(0).normal(size=20000)).astype(np.float32)

@pytest.fixture(scope="module")
def picture(): return np.random.default_rng(1).integers(0, 255, (90, 150, 3), dtype=np.uint8)

def film(stream, sound, cuts=()):
    return np.concatenate([c.frames for p in np.split(sound, cuts) for c in stream.push(p)] + [c.frames for c in stream.flush()])


def test_any_cut_gives_the_same_film(avatar, sound, picture):
    begin = lambda **o: avatar.stream(picture, "calm", size="96x64", **o)
    whole = film(begin(), sound)
    assert whole.shape == (32, 64, 96, 3)
    assert np.array_equal(whole, film(begin(), sound, [3, 7000, 15361]))
    assert not np.array_equal(whole, film(begin(seed=1), sound)), "the seed matters"
    other = np.roll(sound, 4000)
    assert not np.array_equal(whole, film(begin(), other)), "the sound matters"
    late = begin(future=.1)
    assert film(late, sound).shape == whole.shape

def test_the_sentence_matters_and_can_change(avatar, sound, picture):
    a, b = (avatar.stream(picture, t, size="96x64") for t in ("calm", "a very long and angry sentence " * 8))
    assert len(b.prompt) > 200, "not cut at 48 bytes"
    first = [next(iter(s.push(sound[:7680]))).frames for s in (a, b)]
    assert not np.array_equal(*first)
    a.say("now happy")
    assert len(list(a.push(sound[7680:15360]))) == 1

def test_snapshot_goes_on_bit_for_bit(avatar, sound, picture):
    for options in (dict(), dict(compat="official", sound=sound)):
        begin = lambda: avatar.stream(picture, "calm", size="96x64", **options)
        a = begin(); list(a.push(sound[:9000]))
        b = begin().restore(*a.snapshot())
        assert np.array_equal(film(a, sound[9000:]), film(b, sound[9000:])), options

def test_released_ways(avatar, sound, picture):
    stream = avatar.stream(picture, "calm", size="96x64", compat="official", sound=sound)
    assert len(film(stream, sound)) == 32 - 3, "three pictures are dropped"
    h = stream.sampler.histories[0]
    assert h.positions()[24, 0] == -1 - h.elapsed, "motion tokens stay behind"
    ours = avatar.stream(picture, "calm", size="96x64"); film(ours, sound)
    assert ours.sampler.histories[0].positions()[24, 0] == -1, "and roll along by default"
    released, mended = official_config("official"), official_config()
    assert (released.sink_jitter, released.refresh_at) == ((4, 30), 4) and (mended.sink_jitter, mended.refresh_at) == (None, 1)
    assert [round(s, 4) for s in released.levels] == [1, .8577, .6022, .0089, 0]
    with pytest.raises(ValueError, match="give sound=samples"): avatar.stream(picture, compat="official")

def test_released_sound_repeats_the_first_row_of_each_block(avatar, sound, picture):
    stream = avatar.stream(picture, "calm", size="96x64", compat="official", sound=sound)
    features, _ = next(stream.features.push(sound))
    assert features.shape == (1, 25, 12, 32) and stream.history == 0

@given(h=st.integers(50, 4000), w=st.integers(50, 4000))
def test_any_picture_gets_a_size(h, w):
    if not .2 < h / w < 5: return
    high, wide = film_size(h, w)
    assert high % 16 == 0 == wide % 16 and .75 * AREA <= high * wide <= AREA
    ratio = wide / high / (w / h)
    assert min(ratio, 1 / ratio) > .9

def test_sizes_of_the_release():
    assert [film_size(h, w, 720 * 400, 64) for h, w in ((9, 16), (1, 1), (3, 4))] == [(384, 704), (512, 512), (448, 640)]

@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (64, 64), (97, 131)])
def test_no_black_bars(shape):
    assert fit_picture(np.full((*shape, 3), 200, np.uint8), 128, 96).shape == (128, 96, 3)
    assert fit_picture(np.full((*shape, 3), 200, np.uint8), 128, 96).min() == 200

@pytest.mark.parametrize("size", ["100x100", "64", "axb", (0, 64), (32, 32), "64x64x64"])
def test_sizes_that_are_refused(size):
    with pytest.raises(ValueError, match="size"): parse_size(size)
    assert parse_size("704*384") == (384, 704) and parse_size(None) is None


def test_generate_writes_a_film(ckpt, tmp_path, capsys):
    from liveavatar_nb.stream.film import read_video
    argv = ["generate", "--preset", "wan-s2v-14b", "--ckpt", str(ckpt), "--compat", "official", "--size", "96x64", "--text", "calm",
            "--audio", str(samples / "hello.wav"), "--image", str(samples / "ada.png"), "--outdir", str(tmp_path)]
    assert main(argv) == 0, capsys.readouterr().err
    frames = read_video(tmp_path / "demo.mp4")
    frames = frames[0] if isinstance(frames, tuple) else frames
    assert np.asarray(frames).shape[1:] == (64, 96, 3) and len(frames) > 100

def test_check_command(ckpt, tmp_path, capsys):
    assert main(["wan", "check", str(ckpt)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("168 of 168", "48 matrices", "194 of 194", "umT5", "wav2vec"))
    broken = Path(shutil.copytree(ckpt, tmp_path / "ckpt"))
    (broken / WAN / "diffusion_pytorch_model-00001-of-00003.safetensors").unlink(); (broken / WAN / "Wan2.1_VAE.pth").write_bytes(b"no")
    assert main(["wan", "check", str(broken)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert any("00001-of-00003.safetensors is missing" in x for x in lines) and any("Wan2.1_VAE.pth is cut short" in x for x in lines)
    assert check_folder(ckpt).problems == []

@pytest.mark.parametrize("argv,line", [
    (["--preset", "wan-s2v-14b"], "needs --ckpt FOLDER"), (["--preset", "nano", "--ckpt", "x"], "--ckpt is for wan-s2v-14b"),
    (["--compat", "official"], "--compat and --size are for"), (["--preset", "wan-s2v-14b", "--ckpt", "/nowhere"], "/nowhere is not a folder"),
    (["--preset", "wan-s2v-14b", "--ckpt", "/nowhere", "--tpp", "5"], "/nowhere is not a folder"), (["--preset", "wan-s2v-14b", "--tpp", "5"], "needs --ckpt FOLDER"),
    (["--preset", "nano", "--ckpt", "x", "--tpp", "5"], "--ckpt is for wan-s2v-14b")])
def test_command_line_says_what_is_wrong(argv, line, tmp_path, capsys):
    assert main(["generate", "--audio", str(samples / "hello.wav"), "--image", str(samples / "ada.png"), "--outdir", str(tmp_path), *argv]) in (1, 2)
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("kind,bound", [(Float8Linear, .06), (Int8Linear, .01)])
def test_eight_bits_are_close(kind, bound):
    torch.manual_seed(0)
    x, linear = torch.randn(2, 20, 64) * torch.logspace(-2, 2, 20)[:, None], nn.Linear(64, 48)
    got, want = kind(linear)(x), linear(x)
    error = ((got - want).norm(dim=-1) / want.norm(dim=-1))
    assert got.dtype == x.dtype and error.max() < bound, "rows of very different size are all close"
    assert kind(linear).weight.element_size() == 1

def test_rows_have_their_own_scale():
    x = torch.tensor([[1e-4, 2e-4], [1e4, 3e4]])
    q, scale = to_fp8(x)
    assert (q.float() * scale / x - 1).abs().max() < 1 / 16 and q.float().abs().amax(1).tolist() == [448, 448]

@pytest.mark.parametrize("precision,bound", [("float8", .08), ("int8", .03)])
def test_a_block_in_eight_bits(ckpt, precision, bound):
    from liveavatar_nb.wan.checkpoint import load_dit
    nets = [load_dit(ckpt, dtype=torch.float32) for _ in range(2)]
    assert quantize(nets[1], precision) == 4 * 10 + 2 * 3
    assert not isinstance(nets[1].head.head, (Float8Linear, Int8Linear)) and not isinstance(nets[1].text_embedding[0], (Float8Linear, Int8Linear))
    torch.manual_seed(0)
    x, rows, audio = torch.randn(1, 16, 3, 8, 12), [torch.randn(7, 64)], torch.randn(1, 25, 12, 32)
    with torch.inference_mode():
        v = [n(x, torch.tensor(.6), n.conditions(rows, audio))[0] for n in nets]
    assert 0 < (v[0] - v[1]).norm() / v[0].norm() < bound

def test_unknown_precision_is_refused(ckpt):
    with pytest.raises(ValueError, match="unknown precision"): OfficialAvatar.from_folder(ckpt, precision="int3")
