"The trainer under fire: kills, signals, damaged files, broken numbers."
import math, signal, subprocess, sys, time, warnings

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings, strategies as st

from liveavatar_nb.train.loop import (Optim, TrainingError, checkpoints, fit, load_ema, mix, newest,
                                      read_checkpoint, read_log, schedule, write_checkpoint)

CHILD = """
import sys, time, torch, torch.nn as nn
from liveavatar_nb.train.learner import Optim
from liveavatar_nb.train.loop import *
torch.set_num_threads(1); torch.manual_seed(0)
net = nn.ModuleDict(dict(start=nn.Linear(1, 16), blocks=nn.Linear(16, 16), head=nn.Linear(16, 1)))
net.forward = lambda x: net.head(net.blocks(net.start(x).tanh()).tanh())
def data(step, seed):
    g = torch.Generator().manual_seed(mix(seed, step, 2)); x = torch.rand(32, 1, generator=g) * 6 - 3
    return x, x.sin()
def step_fn(step, batch, rng):
    x, y = batch; time.sleep(float(sys.argv[2]))
    return (net(x) - y - .05 * torch.randn(y.shape, generator=rng)).square().mean()
run = fit(step_fn, net, data, sys.argv[1], Optim(lr=1e-2, muon=1e-2), steps=300, save_every=20, log_every=1, resume=True, progress=False, ahead=True)
print("finished" if run.finished else "stopped", run.step)
"""


def child(out, pause=0.):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(pause)], stdout=subprocess.PIPE, text=True)


def wait_for(out, lines, process):
    end = time.monotonic() + 300
    while len(read_log(out)) < lines:
        assert process.poll() is None and time.monotonic() < end, "the child did not get there"
        time.sleep(.03)


def same(a, b):
    (ta, sa), (tb, sb) = newest(a), newest(b)
    assert sa["step"] == sb["step"] and ta.keys() == tb.keys()
    assert all(torch.equal(ta[k], tb[k]) for k in ta)


def toy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))


def data(step, seed):
    g = torch.Generator().manual_seed(mix(seed, step, 2)); x = torch.rand(32, 1, generator=g)
    return x, x.sin()


def mse(net, at=None, value=math.nan):
    def step_fn(step, batch, rng):
        loss = (net(batch[0]) - batch[1]).square().mean()
        return loss * value if step == at else loss
    return step_fn


def train(out, steps=40, **k):
    net = toy()
    return net, fit(mse(net), net, data, out, steps=steps, progress=False, **k)


def test_kills_and_polite_stop_give_the_uninterrupted_run(tmp_path):
    whole = child(tmp_path/"whole")
    shot = child(tmp_path/"shot", .004)
    wait_for(tmp_path/"shot", 60, shot); shot.kill(); shot.wait()              # kill -9, first
    shot = child(tmp_path/"shot", .004)
    wait_for(tmp_path/"shot", 150, shot); shot.kill(); shot.wait()             # and again
    shot = child(tmp_path/"shot", .004)
    wait_for(tmp_path/"shot", 200, shot); shot.send_signal(signal.SIGTERM)     # then politely
    said = shot.communicate()[0]
    assert shot.returncode == 0 and said.startswith("stopped")
    assert newest(tmp_path/"shot")[1]["step"] == int(said.split()[1])          # nothing lost at all
    assert child(tmp_path/"shot").communicate()[0].strip() == "finished 300"
    whole.communicate()
    same(tmp_path/"whole", tmp_path/"shot")
    strip = lambda log: [{k: v for k, v in e.items() if k != "seconds"} for e in log]
    assert strip(read_log(tmp_path/"whole")) == strip(read_log(tmp_path/"shot"))


def test_damaged_newest_falls_back_and_still_ends_equal(tmp_path):
    train(tmp_path/"whole")
    train(tmp_path/"hurt", steps=30, shape="constant", save_every=10)
    train(tmp_path/"ref", steps=40, shape="constant", save_every=10)
    last = checkpoints(tmp_path/"hurt")[-1]; last.write_bytes(b"\0" * 100)
    with pytest.warns(UserWarning, match="00000030.*trying the one before"):
        train(tmp_path/"hurt", steps=40, shape="constant", save_every=10, resume=True)
    assert [p.name for p in checkpoints(tmp_path/"hurt")] == ["step_00000030.safetensors", "step_00000040.safetensors"]
    # warm-up differs between 30 and 40 steps, so parameters aren't compared here; steps are
    assert [e["step"] for e in read_log(tmp_path/"hurt")] == [e["step"] for e in read_log(tmp_path/"ref")]


def test_all_damaged_is_one_clear_line(tmp_path):
    train(tmp_path, steps=20, save_every=10)
    for p in checkpoints(tmp_path): p.write_bytes(p.read_bytes()[:50])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TrainingError, match="all 2 checkpoints are damaged"): train(tmp_path, resume=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_names_the_step_and_keeps_the_good_checkpoint(tmp_path, value):
    net = toy()
    with pytest.raises(TrainingError, match="at step 25: .*step_00000020"):
        fit(mse(net, 25, value), net, data, tmp_path, steps=40, save_every=10, progress=False)
    assert newest(tmp_path)[1]["step"] == 20
    assert all(p.isfinite().all() for p in net.parameters())


def test_non_finite_gradient_is_found_too(tmp_path):
    net = toy()
    def step_fn(step, batch, rng):
        loss = (net(batch[0]) - batch[1]).square().mean()
        if step == 5: loss = loss + (loss * 0).sqrt()     # finite value, infinite slope
        return loss
    with pytest.raises(TrainingError, match="step 5"): fit(step_fn, net, data, tmp_path, steps=10, progress=False)


def test_refuses_other_seed_network_or_folder_in_use(tmp_path):
    train(tmp_path, steps=5)
    with pytest.raises(TrainingError, match="seed 0, not 3"): train(tmp_path, resume=True, seed=3)
    with pytest.raises(TrainingError, match="already holds a run"): train(tmp_path)
    other = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    with pytest.raises(TrainingError, match="another network"):
        fit(mse(other), other, data, tmp_path, steps=9, resume=True, progress=False)
    with pytest.raises(TrainingError, match="no checkpoint"): load_ema(tmp_path/"nothing", toy())
    with pytest.raises(ValueError, match="steps or minutes"): fit(mse(other), other, data, tmp_path/"x", progress=False)


@pytest.mark.parametrize("end", [dict(), dict(steps=0), dict(minutes=0)])
def test_a_training_without_an_end_is_refused(tmp_path, end):
    with pytest.raises(ValueError, match="when to stop"):
        fit(lambda *_: None, nn.Linear(1, 1), lambda *_: None, tmp_path / "run", **end)
    assert not (tmp_path / "run").exists()


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(TrainingError, match="can't create"): train(tmp_path/"file"/"run", steps=2)


def test_load_ema_brings_the_average_not_the_last_weights(tmp_path):
    net, _ = train(tmp_path, steps=30, optim=Optim(lr=1e-2, ema=.9))
    mean = toy(); assert load_ema(tmp_path, mean) == 30
    tensors, _ = newest(tmp_path)
    assert torch.equal(mean[0].weight, tensors["ema/net/0.weight"])
    assert not torch.equal(mean[0].weight, net[0].weight)


def test_validation_sees_the_average_and_does_not_disturb(tmp_path):
    net, seen = toy(), []
    def validate(): torch.randn(5); seen.append(net[0].weight.clone()); return {"v": 1.}
    fit(mse(net), net, data, tmp_path/"a", steps=20, validate=validate, validate_every=5, progress=False)
    other, _ = train(tmp_path/"b", steps=20)
    assert torch.equal(net[0].weight, other[0].weight) and len(seen) == 4
    assert not torch.equal(seen[-1], net[0].weight)


def test_autocast_keeps_float32_weights_and_learns(tmp_path):
    net = toy(); kinds = set()
    def step_fn(step, batch, rng):
        y = net(batch[0]); kinds.add(y.dtype)
        return (y.float() - batch[1]).square().mean()
    fit(step_fn, net, data, tmp_path, Optim(lr=1e-2), steps=60, autocast=True, progress=False, log_every=10)
    log = read_log(tmp_path)
    assert kinds == {torch.bfloat16} and all(p.dtype == torch.float32 for p in net.parameters())
    assert log[-1]["loss"] < .5 * log[0]["loss"]


def test_global_random_state_comes_back(tmp_path):
    torch.manual_seed(5); before = torch.get_rng_state(); net = toy(); torch.manual_seed(5)
    fit(mse(net), net, data, tmp_path, steps=3, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_torn_log_line_is_skipped(tmp_path):
    train(tmp_path, steps=20, log_every=5)
    with open(tmp_path/"log.jsonl", "a") as f: f.write('{"step": 25, "lo')
    assert [e["step"] for e in read_log(tmp_path)] == [5, 10, 15, 20]


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 2), st.floats(0, .9), st.sampled_from(["cosine", "linear", "constant"]))
def test_schedule_stays_in_range(p, warmup, shape):
    assert 0 <= schedule(p, warmup, shape) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2**32))
def test_one_damaged_byte_anywhere_is_noticed(tmp_path_factory, where, flip):
    path = tmp_path_factory.mktemp("c")/"step_00000001.safetensors"
    tensors = {"a": torch.arange(50.), "b": torch.tensor([1, 2]), "c": torch.ones(3, dtype=torch.bool)}
    write_checkpoint(path, tensors, {"step": 1})
    blob = bytearray(path.read_bytes()); i = where % len(blob); blob[i] ^= 1 + flip % 255; path.write_bytes(blob)
    try: got, state = read_checkpoint(path)
    except TrainingError: return
    assert state == {"step": 1} and got.keys() == tensors.keys()      # a byte of padding, then
    assert all(torch.equal(got[k], tensors[k]) for k in got)
