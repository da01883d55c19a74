"Device and precision: one meaning, weights that go from the file to their place one by one."
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from liveavatar_nb.model import presets
from liveavatar_nb.model.dit import DiT, DiTConfig
from liveavatar_nb.model.presets import PresetError, device_of, load_weights, number_type, save_weights
from liveavatar_nb.model.vae import VAEConfig, VideoVAE

CONFIG = DiTConfig(dim=48, ffn_dim=96, heads=3, layers=2, inject_layers=(0,), ear=16)


@pytest.fixture()
def file(tmp_path):
    torch.manual_seed(0)
    net = DiT(CONFIG).eval(); torch.nn.init.normal_(net.head.head.weight, std=.1)
    save_weights(tmp_path / "w.safetensors", net, "dit")
    return tmp_path / "w.safetensors"

@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_numbers_as_a_plain_load(tmp_path, bits, dtype):
    torch.manual_seed(0); net = DiT(CONFIG)
    save_weights(tmp_path / "w.safetensors", net, "dit", bits=bits)
    new, old = load_weights(tmp_path / "w.safetensors", dtype=dtype), load_weights(tmp_path / "w.safetensors", DiT(CONFIG)).to(dtype)
    assert not new.training and {k: v.dtype for k, v in new.state_dict().items()} == {k: dtype for k in old.state_dict()}
    for (k, a), (_, b) in zip(new.state_dict().items(), old.state_dict().items()): assert torch.equal(a, b), k
    assert {k: p.requires_grad for k, p in new.named_parameters()} == {k: p.requires_grad for k, p in old.named_parameters()}

def test_one_tensor_at_a_time(file, monkeypatch):
    "In bfloat16 no float32 tensor of the file outlives its turn, and no weights are drawn first."
    alive, most, read = [], 0, presets.WeightsFile.tensor
    def tensor(self, name):
        nonlocal most
        alive[:] = [r for r in alive if r() is not None]; most = max(most, len(alive))
        t = read(self, name); alive.append(weakref.ref(t)); return t
    monkeypatch.setattr(presets.WeightsFile, "tensor", tensor)
    monkeypatch.setattr(torch.nn.init, "normal_", lambda t, *a, **k: t if t.is_meta else pytest.fail("fresh weights were drawn"))
    net = load_weights(file, dtype=torch.bfloat16)
    assert most <= 1 and not any(p.is_meta for p in [*net.parameters(), *net.buffers()])

def test_a_type_for_each_part(tmp_path):
    save_weights(tmp_path / "v.safetensors", VideoVAE(VAEConfig()), "vae")
    vae = load_weights(tmp_path / "v.safetensors", dtype=lambda k: torch.bfloat16 if k.startswith("decoder.") else torch.float32)
    assert vae.decoder.conv1.weight.dtype == torch.bfloat16 and vae.linear.into.weight.dtype == torch.float32 and vae.latent_mean.dtype == torch.float32

@pytest.mark.parametrize("change,message", [
    (lambda t: t.pop("head.head.bias"), "w.safetensors belongs to another network: it lacks head.head.bias"),
    (lambda t: t.update(extra=torch.zeros(3)), "it has an unknown extra"),
    (lambda t: t.update({"head.head.bias": torch.zeros(3)}), "it has another shape of head.head.bias"),
])
def test_misfits_name_file_and_key(file, change, message):
    from safetensors import safe_open
    with safe_open(file, "pt") as f: header = f.metadata()
    tensors = load_file(file); change(tensors); save_file(tensors, file, metadata=header)
    with pytest.raises(PresetError, match=message) as e: load_weights(file)
    assert "\n" not in str(e.value)

def test_truncated(file):
    data = file.read_bytes(); file.write_bytes(data[:len(data) // 2])
    with pytest.raises(PresetError, match="damaged") as e: load_weights(file)
    assert "\n" not in str(e.value)

def test_names():
    assert device_of("cpu") == torch.device("cpu") and device_of(torch.device("meta")).type == "meta"
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="unknown device 'toaster'"): device_of("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"): device_of("cuda")
    assert number_type("auto") == (torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32)
    with pytest.raises(ValueError, match="unknown precision 'half'"): number_type("half")

def test_front_door_and_command_line(tmp_path):
    from liveavatar_nb.stream.avatar import LiveAvatar, untrained
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"): LiveAvatar.from_pretrained("pico", weights=None, device="cuda")
    avatar = untrained("pico")
    assert avatar.device.type == "cpu"

def test_bfloat16_stays_near(file):
    "A block of a stream in bfloat16 against float32: the same picture, about a percent apart."
    from liveavatar_nb.stream.sampler import BlockSampler, SamplerConfig
    sink, sound = torch.randn(1, 16, 1, 8, 8), torch.randn(1, 8 + 36, 80)
    def roll(net):
        s = BlockSampler(net, (16, 8, 8), SamplerConfig()).start(sink, "calm")
        return torch.cat([s.block(sound[:, 12 * b:12 * b + 20]) for b in range(3)], 2)
    a, b = (roll(load_weights(file, dtype=t).requires_grad_(False)) for t in (torch.float32, torch.bfloat16))
    assert a.dtype == b.dtype == torch.float32 and ((a - b).square().mean() / a.square().mean()).sqrt() < .02

def test_a_restored_cache_keeps_its_places_on_the_cpu():
    "Offsets are read on the CPU wherever the keys are (the crash of --resume on GPUs)."
    from liveavatar_nb.model.cache import History, LayerKV
    h = History(2, 2); h.set_sink([LayerKV(*(torch.randn(1, 4, 2, 12) for _ in "kv"))], torch.zeros(4, 3))
    state = {k: v.to("meta") if k.endswith((".k", ".v", "sink_k", "sink_v")) else v for k, v in h.snapshot().items()}
    again = History(2, 2).restore(state)
    assert again.buffers[0].k.is_meta and again.offsets.device.type == again.fixed.device.type == "cpu"
    assert again.open(3).kv[0].k.is_meta

def test_the_vae_remembers_frames_and_not_films():
    "State of Wan's VAE at 704 x 384, from its shapes: what the tape holds is what it needs, 3 GB and not 16."
    with torch.device("meta"):
        vae, z = VideoVAE(VAEConfig.official()).eval(), torch.zeros(1, 16, 3, 48, 88)
        with torch.no_grad(): state = vae.decode_chunk(z, vae.decode_chunk(z[:, :, :1])[1])[1]
    held = sum(t.untyped_storage().nbytes() for t in state)
    assert held == sum(t.nbytes for t in state) and held <= 3e9

def test_a_kept_weight_follows_its_weight():
    "The convolution's re-ordered weight is made again when the weight changes, in place or by another type."
    from liveavatar_nb.model.vae import causal_conv
    conv, x = causal_conv(4, 6).requires_grad_(False), torch.randn(1, 4, 5, 6, 6)
    with torch.no_grad():
        first = conv(x); conv.weight.mul_(2); conv.bias.mul_(2)
        assert torch.allclose(conv(x), 2 * first, atol=1e-5) and conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
