"The pipeline beyond one launcher: two torchrun agents as two machines, stale boards, slow disks, live sound, devices (43_stream.distributed to 43f_stream.live)."
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import timedelta

import numpy as np
import pytest
import torch

from liveavatar_nb.data.audio import load_audio, save_wav
from liveavatar_nb.stream import engine, settings
from liveavatar_nb.stream.checkpoint import load_tensors, restore_point, saved_blocks
from liveavatar_nb.stream.distributed import main, options, run_tpp, task_trouble
from liveavatar_nb.stream.live import WAVE, LiveRun
from liveavatar_nb.stream.settings import TPPConfig, TPPError, one_process
from liveavatar_nb.stream.supervision import Board, Crew
from liveavatar_nb.stream.tpp import Placement

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher forks: Linux or macOS")
ENV = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
MODULE = "liveavatar_nb.stream.distributed"


@pytest.fixture(scope="module")
def config(tmp_path_factory, pipeline_config):
    return pipeline_config(tmp_path_factory.mktemp("nodes"), 4, placement="01|23|D", startup_s=600)


@pytest.fixture(scope="module")
def judge(config):
    torch.set_num_threads(1)
    return one_process(config)


# torchrun as it is, after verdicts of another job were left under every name that its own process number could give a board
TORCHRUN = """
import os, runpy, sys
from liveavatar_nb.stream.supervision import Board
for name in ("job", f"job-{os.getpid()}", f"job-{os.getpid()}-0", f"job-{os.getpid()}-1"):
    Board(f"{sys.argv[1]}/{name}", 3).condemn(dict(rank=0, message="tpp: an old story"))
del sys.argv[1]
runpy.run_module("torch.distributed.run", run_name="__main__")"""


def agents(config, tmp_path, ranks=(2, 1)):
    """torchrun on two 'machines': each its own folder, nothing shared but the network. In a container torchrun is always process 1,
    so a board named by that number may still hold the verdict of the last job: it isn't taken for this one's."""
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    running = []
    for node, n in enumerate(ranks):
        folder = tmp_path / f"machine{node}"
        folder.mkdir(exist_ok=True)
        file = folder / "config.json"
        mine = replace(config, outdir=str(folder))
        file.write_text(json.dumps(vars(mine)))
        command = [sys.executable, "-c", TORCHRUN, str(mine.folder), "--nnodes", str(len(ranks)), "--node-rank", str(node), "--nproc-per-node", str(n),
                   "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", MODULE, "--config", str(file)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True))
    return running


def finish(running, seconds=400):
    "(exit codes, lines that begin with tpp:) of both agents."
    try: said = [p.communicate(timeout=seconds)[1] for p in running]
    finally:
        for p in running:
            if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    return [p.returncode for p in running], [[line for line in s.splitlines() if line.startswith("tpp:")] for s in said]


def test_two_machines_make_the_same_film_survive_a_fault_and_resume(config, judge, tmp_path):
    codes, lines = finish(agents(replace(config, name="film", fault=[1, 5, "kill"], stretch=[.15] * 6), tmp_path))
    assert all(codes) and [len(l) for l in lines] == [1, 1], (codes, lines)
    assert all("rank 1 (step 2 3) died" in l[0] and "at block 5" in l[0] and "--resume" in l[0] for l in lines), lines
    boards = [next((tmp_path / f"machine{i}" / ".film.tpp").glob("job-*")) for i in (0, 1)]
    assert len({b.name for b in boards}) == 2   # no machine saw the other's file
    # each machine holds only its own files, and goes on with them
    assert not list(boards[0].parent.glob("decode-*")) and not list(boards[1].parent.glob("step*"))
    # ranks that find no common block are refused in one line, and the film isn't begun again
    elsewhere = replace(config, name="film", resume=True, outdir=str(tmp_path / "machine1"))
    before = elsewhere.video.read_bytes()
    with pytest.raises(TPPError, match="no checkpoint that all ranks have") as e: run_tpp(elsewhere)
    assert "\n" not in str(e.value) and elsewhere.video.read_bytes() == before
    codes, lines = finish(agents(replace(config, name="film", resume=True), tmp_path))
    assert codes == [0, 0] and lines == [[], []], lines
    kept, note = (tmp_path / "machine1" / ".film.tpp" / n for n in ("kept.safetensors", "rank0.json"))
    first = json.loads(note.read_text())["first"]
    assert first in (2, 4)
    assert torch.equal(load_tensors(kept)["latents"], judge["latents"][:, :, 3 * first:])
    assert (tmp_path / "machine1" / "film.mp4").exists() and not (tmp_path / "machine0" / "film.mp4").exists()


@pytest.mark.parametrize("change, words", [(dict(seed=5), "rank 2 has another seed"), (dict(image="gone.png"), "gone.png")])
def test_machines_refuse_what_differs_and_what_is_missing(config, change, words):
    "All ranks learn of it, before anything is loaded."
    store, said = torch.distributed.HashStore(), {}
    def ask(rank):
        crew = Crew(rank, 3, rank % 2, 2 - rank // 2, rank // 2)
        said[rank] = task_trouble(replace(config, **change) if rank == 2 else config, crew, store, timedelta(seconds=20))
    threads = [threading.Thread(target=ask, args=(r,)) for r in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert all(words in said[r] and "\n" not in said[r] for r in range(3)), said


def test_help_is_printed_once_and_explains_every_option(monkeypatch, capsys):
    "As torchrun starts the ranks: by their environment."
    monkeypatch.setenv("COLUMNS", "100")
    for rank in range(3):
        for name, value in dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=3, LOCAL_WORLD_SIZE=3, GROUP_RANK=0).items(): monkeypatch.setenv(name, str(value))
        if rank: assert main(["--help"]) == 0
        else:
            with pytest.raises(SystemExit, match="0"): main(["--help"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert said.count("usage:") == 1 and said.count("same seed, same film") == 1 and "--precision" in said
    for f in fields(TPPConfig):
        if f.type in (list, dict): continue   # only in a --config file
        option = next(a for a in options()._actions if a.dest == f.name)
        assert option.help and len(option.help) > 8, f.name


def test_a_slow_disk_never_costs_the_restore_point(config, judge):
    "Rank 1's checkpoint of block 3 takes three seconds; when the decoder dies meanwhile, block 1 is still there for all."
    c = replace(config, name="slow", fault=[1, 3, "slow"], stretch=[.3] * 4 + [.3, .1])   # .3 s a job: time for the others to go on
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_tpp, c)
        while 3 not in saved_blocks(c, "decode") and not running.done(): time.sleep(.01)
        late = saved_blocks(c, "step2")
        if not running.done(): os.kill(int(Board(c.folder / "job", 3).slots[2]["pid"]), signal.SIGKILL)
        said = str(running.exception(300))
    if late != {1}: pytest.skip(f"this machine is too busy to catch step 2 late: it has {late}")
    assert "--resume" in said, said
    assert restore_point(c, Placement.parse(c.placement)) == 2
    again = run_tpp(c, fault=[], stretch=[], resume=True)
    assert again.first == 2 and torch.equal(again.kept["latents"], judge["latents"][:, :, 6:])


def test_no_promise_without_a_checkpoint(config):
    with pytest.raises(TPPError) as e: run_tpp(config, name="early", fault=[2, 1, "raise"])
    assert "plays" in str(e.value) and "--resume" not in str(e.value)


@pytest.mark.parametrize("placement", ["0|1|2|3|D", "01|23D"])
def test_live_sound_and_a_new_sentence(config, placement):
    "Pushed in crumbs, with another sentence from block 3 on: the bits of one process that is told the same."
    c = replace(config, name="live", placement=placement, n_blocks=0)
    samples = load_audio(c.audio)[:int(5.4 * WAVE)]
    run = LiveRun(c, audio="")
    for piece in np.array_split(samples[:3 * WAVE], 11): run.push(piece)
    run.say("angry")
    for piece in np.array_split(samples[3 * WAVE:], 7): run.push(piece)
    result = run.close()
    clips = list(run)
    save_wav(c.folder.parent / "cut.wav", samples)
    parts = settings.parts_of(replace(c, audio=str(c.folder.parent / "cut.wav")))
    sound = parts.sound()
    with torch.no_grad():
        begun = parts.begin(parts.vae())
        s = parts.sampler(parts.dit(), begun).set_sink(begun["portrait"])
        latents = []
        for b in range(sound.n_blocks):
            if b == 3: s.set_text("angry")
            latents.append(s.block(sound.block(b)))
    assert len(clips) == 6 and sum(len(clip.frames) for clip in clips) == -(-len(samples) // 640)
    assert torch.equal(result.kept["latents"], torch.cat(latents, 2))
    assert np.array_equal(np.concatenate([clip.samples for clip in clips]), samples)


def test_a_live_run_that_dies_tells_whoever_talks(config):
    run = LiveRun(config, name="dies", audio="", n_blocks=0, fault=[1, 2, "raise"])
    with pytest.raises(TPPError, match=r"rank 1 \(step 2 3\) failed"):
        run.push(load_audio(config.audio))
        for _ in run: pass
    with pytest.raises(ValueError, match="can't be resumed"): LiveRun(config, resume=True)


def test_half_precision_is_the_same_in_one_process_and_three(config):
    c = replace(config, precision="bfloat16", n_blocks=5)
    half = one_process(c)
    assert torch.equal(run_tpp(c, name="half").kept["latents"], half["latents"]) and half["latents"].dtype == torch.float32
    assert not torch.equal(half["latents"], one_process(replace(c, precision="float32"))["latents"])


def test_messages_of_a_gpu_go_through_pinned_memory_and_wait_for_one_stream(monkeypatch):
    "Without a GPU: the calls that a CUDA tensor causes, on stand-ins."
    calls = []
    class Stream:
        def synchronize(self): calls.append("stream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: calls.append(str(device)) or Stream())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: pytest.fail("the whole device is waited for"))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: calls.append(f"pinned {pin_memory}") or empty(*a, **k))
    engine.settle(torch.device("cuda", 1))
    assert calls == ["cuda:1", "stream"]
    engine.host_buffer((2,), torch.float32, torch.device("cuda", 1)); engine.host_buffer((2,), torch.float32, torch.device("cpu"))
    assert calls[2:] == ["pinned True", "pinned False"]


def test_ranks_take_the_gpus_of_their_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True); monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    c = TPPConfig(preset="wan-s2v-14b")
    assert [settings.device_of(c, r).index for r in range(5)] == [0, 1, 2, 3, 0] and settings.dtype_of(c, settings.device_of(c)) is torch.bfloat16
    assert c.plan.share is False and replace(c, share=True).plan.share and replace(c, device="cpu").plan.share
    class Card: name, total_memory = "small card", 24e9
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Card)
    with pytest.raises(ValueError, match=r"GPU 0 \(small card\) has 24.0 GB, its part .* needs 5\d"): c.check_memory(Placement.parse("0|1|2|3|D"), range(5))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU"): settings.device_of(replace(c, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_bits_on_a_gpu(config, precision):
    "Ranks share one card if there is only one; each makes the sink's keys itself."
    c = replace(config, device="cuda", precision=precision, placement="0|1|2|3|D")
    run = run_tpp(c, name="gpu")
    assert torch.equal(run.kept["latents"], one_process(c)["latents"]) and {what for what, *_ in run.bytes} == {"latent", "portrait", "sink latent"}
