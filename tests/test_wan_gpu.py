"""bench/gpu.sh at tiny size: every part runs, the file is there after each, and what is missing is named."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from liveavatar_nb.model.dit import DiT
from liveavatar_nb.wan.gpu import Report, Steady, bench_gpu, block_step_flops, implied, on_device, part_throughput, tiny_preset

root = Path(__file__).resolve().parents[1]


def test_script_runs_every_part_and_says_that_it_is_tiny(tmp_path):
    path = tmp_path / "gpu.json"
    if (root / "bench" / "gpu.sh").exists():
        command, env = [str(root / "bench" / "gpu.sh")], os.environ | {"PYTHON": sys.executable}
    else:
        command, env = [sys.executable, "-m", "liveavatar_nb.wan.gpu"], dict(os.environ)
    done = subprocess.run([*command, "--tiny", "--minutes", "3", "--device", "cpu", "--json", str(path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny size on the CPU")
    written = json.loads(path.read_text())
    result = written["result"]
    assert written["tiny"] is True and written["device"] == "CPU"
    assert "error" not in json.dumps(result)
    assert list(result) == ["card", "network", "dit_bf16", "vae", "dit_fp8", "throughput", "nano_stream", "nano_train"]
    assert result["dit_bf16"]["compiled, auto"]["graphs"] == result["dit_fp8"]["compiled, auto"]["graphs"] == 1, "all layers share one graph"
    assert result["dit_fp8"]["compiled, auto"]["layers"] == 3 * 10 + 2 * 3
    assert max(v["difference"] for k, v in result["vae"].items() if isinstance(v, dict)) < 1e-4
    best = min(v["step_s"] for v in result["dit_bf16"].values())
    assert result["throughput"]["bf16"]["step_s"] == best


def test_full_size_refuses_a_cpu(tmp_path):
    with pytest.raises(SystemExit, match="--tiny"):
        bench_gpu(tmp_path / "x.json", device="cpu")
    assert not list(tmp_path.iterdir())


def test_operations_are_counted_as_pytorch_counts_them():
    p = tiny_preset()
    steady = Steady(on_device(lambda: DiT(p.dit, init=False), "cpu", torch.float32), p)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        steady.look()
    ours = steady.flops
    assert 0 <= counter.get_total_flops() - ours < .01 * ours
    assert block_step_flops(p.dit, 192, 928)["total"] >= ours


def test_report_goes_on_after_an_error_and_skips_what_does_not_fit(tmp_path):
    report = Report(tmp_path / "r.json", 1., dict(device="none"))
    def bad():
        raise RuntimeError("out of memory\nmore lines")
    report.add("one", bad)
    report.add("two", lambda: dict(x=1))
    report.add("three", lambda: dict(x=1), needs=1000)
    report.add("four", lambda: dict(x=2), 0, "a")
    written = json.loads((tmp_path / "r.json").read_text())["result"]
    assert written["one"]["error"] == "RuntimeError: out of memory" and written["two"]["x"] == 1 and written["four"]["a"]["x"] == 2
    assert written["three"]["skipped"].startswith("needs about 1000 s")


def test_implied_frames_per_second():
    assert implied(.2, .1)["tpp_fps"] == 60 and implied(.2, .4)["tpp_fps"] == 30
    assert implied(.2, .2)["one_card_fps"] == 12
    figures = dict(dit_bf16={"a": dict(step_s=.3), "b": dict(step_s=.2), "c": dict(skipped="x")}, vae={"plain": dict(decode_s=.1), "took_s": 3})
    assert part_throughput(figures) == {"bf16": implied(.2, .1)}
