#!/usr/bin/env python3
"""The part of the official golden numbers that a clone carries (dit and conditions.safetensors in data/golden), out of the full set beside the repository.

    python tools/mkgolden.py ../shared/golden

Left out: the two large FramePack kernels (their tokens are kept instead), the second actor, blocks after the sixth, the VAE."""
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

BLOCKS = 6
SOURCE = "numbers of the official LiveAvatar classes (github.com/Alibaba-Quark/LiveAvatar at 9c2c38d), float32 on a CPU, tiny configuration, random weights"
PARTS = ("audio_enc.in", "audio_enc.global", "audio_enc.local", "injector.adain_out", "injector.hidden_in", "injector.hidden_out")
LEFT_OUT = ("frame_packer.proj_2x.weight", "frame_packer.proj_4x.weight")


def main(folder:Path, out:Path):
    read = lambda name: load_file(folder / f"{name}.safetensors")
    inputs, modules, want = read("tiny_inputs"), read("modules_fp32"), read("rollout_fp32")
    t = {f"weight.{k}": v for k, v in read("tiny_weights").items() if k not in LEFT_OUT}
    t |= {f"in.{k}": inputs[k] for k in ("context", "cond_latents", "ref_latents")}
    t |= {"in.noise": inputs["noise"][:BLOCKS], "in.audio": inputs["audio"][:1, ..., :12 * BLOCKS], "in.motion_tokens": modules["framepack.tokens"]}
    t |= {"want.hidden": want["sink.hidden"], "want.rd30": want["rd30.velocity"][:BLOCKS], "want.full": want["full.final"]}
    t |= {f"want.{k}": modules[k] for k in ("rope.noisy.start1200", "rope_apply.x", "rope_apply.out_start27", "time.t", "time.e")}
    save(t, out)
    save({k: modules[k] for k in PARTS}, out.with_name("conditions.safetensors"))


def save(tensors:dict, path:Path):
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, metadata=dict(source=SOURCE, made_by="tools/mkgolden.py"))
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__": main(Path(sys.argv[1]), Path(__file__).resolve().parents[1] / "data" / "golden" / "dit.safetensors")
