"The five-process engine (43_stream.distributed): equality, faults, resume, the joined film. Small on purpose; `liveavatar-nb bench tpp` runs all cases."
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from liveavatar_nb.data.audio import save_wav
from liveavatar_nb.stream.checkpoint import restore_point
from liveavatar_nb.stream.distributed import launch, main, run_tpp
from liveavatar_nb.stream.settings import TPPConfig, TPPError, one_process
from liveavatar_nb.stream.supervision import DONE, WORKING, Board, find_fault, process_state
from liveavatar_nb.stream.tppbench import bench_faults, leftovers
from liveavatar_nb.stream.simulator import simulate
from liveavatar_nb.stream.tpp import Placement, SinkPlan, StageTimes
from liveavatar_nb.stream.film import fragment_ends, read_video
from liveavatar_nb.stream.writer import VideoWriter

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher forks: Linux or macOS")
LATENT = 16 * 3 * 4 * 4 * 4  # bytes of one block's latent of the tiny preset


@pytest.fixture(scope="module")
def config(tmp_path_factory, pipeline_config):
    return pipeline_config(tmp_path_factory.mktemp("tpp"), 6)


@pytest.fixture(scope="module")
def judge(config):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield one_process(config)
    torch.set_num_threads(threads)


def same(run, judge):
    kept = run.kept
    return torch.equal(kept["latents"], judge["latents"][:, :, 3 * run.first:]) and torch.equal(kept["frames"], judge["frames"][12 * run.first:])


@pytest.mark.parametrize("placement, share", [("0|1|2|3|D", True), ("01|23D", False)])
def test_same_bits_as_one_process(config, judge, placement, share):
    run = run_tpp(config, name="equal", placement=placement, share=share)
    assert same(run, judge)
    ranks = run.schedule.placement.n_ranks
    assert [run.bytes["latent", r, r + 1] for r in range(ranks - 1)] == [7 * LATENT] * (ranks - 1)
    assert {what for what, *_ in run.bytes} == {"latent", "portrait", "sink kv" if share else "sink latent"}
    assert all(("dit" in p) == bool(s) and ("vae" in p) == (r == ranks - 1) for r, (p, s) in enumerate(zip(run.parameters, run.schedule.placement.stages)))
    frames, sound = read_video(config.folder.parent / "equal.mp4")
    assert len(frames) == 84 and 0 <= len(sound) - 7 * 7680 < 400  # the sound coder fills its last packet
    assert not leftovers(run.config) and not list(run.config.folder.glob("step*"))
    rows = run.schedule.compute()
    assert all((b.start >= a.end - 1e-6) for d in range(ranks) for a, b in zip(run.schedule.compute(d), run.schedule.compute(d)[1:]))
    assert sum(r.kind == "sink" for r in rows) == (2 if share else 4)


def test_torchrun_and_a_finished_run_is_left_alone(config):
    c = replace(config, name="torchrun", n_blocks=3)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "liveavatar_nb.stream.distributed"]
    words = ["--audio", c.audio, "--image", c.image, "--outdir", c.outdir, "--name", c.name, "--preset", "tiny", "--n-blocks", "3"]
    done = subprocess.run(command + words, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(read_video(c.video)[0]) == 36
    before = c.video.read_bytes()
    again = run_tpp(c, placement="01|23D", refresh_at=6, resume=True, text="")
    assert again.n_blocks == 3 and c.video.read_bytes() == before


@pytest.mark.parametrize("kind, rank", [("kill", 1), ("stop", 2), ("raise", 0)])
def test_a_broken_rank_ends_the_job_and_the_film_goes_on(config, judge, kind, rank):
    row, = bench_faults(replace(config, placement="01|23|D"), [rank], [kind], n_blocks=7, at=5)
    assert row["seconds_to_end"] < 10 and row["names_rank_and_block"] and row["orphans"] == 0, row
    assert row["resumed_at"] in (0, 2, 4) and row["complete"] and row["equal"], row
    assert row["frames_playable"] % 12 == 0


def test_resume_refuses_another_run(config):
    c = replace(config, name="other", placement="01|23D", fault=[0, 3, "raise"])
    with pytest.raises(TPPError, match=r"rank 0 \(step 0 1\) failed .* at block 3"): run_tpp(c)
    with pytest.raises(ValueError, match="begun with another seed"): run_tpp(c, fault=[], resume=True, seed=5)


@pytest.mark.parametrize("wrong, words", [(dict(placement="0|2|D"), "placement"), (dict(audio="missing.wav"), "missing.wav"), (dict(image="missing.png"), "missing.png"),
                                          (dict(preset="huge"), "unknown preset"), (dict(n_blocks=-1), "0 or more"), (dict(stretch=[.1]), "stretch needs")])
def test_wrong_settings_get_one_line(config, wrong, words, refusal):
    assert words in refusal(main, replace(config, **wrong))


def test_board(tmp_path):
    board = Board(tmp_path, 2)
    assert board.verdict is None and [board.condemn(dict(rank=r)) for r in (1, 0)] == [True, False] and board.verdict == dict(rank=1)
    child, frozen = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
    child.wait()
    assert process_state(os.getpid()) and not process_state(child.pid)
    def fault(began=0., **changes):
        for r in range(2): board.slots[r] = (109., 109., .1, os.getpid(), 0, WORKING, 7, 0, 7, 3)
        for k, v in changes.items(): board.slots[1][k] = v
        return find_fault(board, TPPConfig(), 110., began, 0)
    assert fault() is None and fault(beat=50., since=50., state=DONE) is None
    assert fault(beat=101.)[0] == 1 and "stopped responding" in fault(beat=101.)[1]
    assert fault(beat=103.) is None, "seven seconds of silence may be a busy machine"
    assert fault(beat=20., since=20., longest=0.) is None, "whoever loads may be silent"
    assert fault(began=109., beat=50., since=50.) is None, "whoever slept with us gets a new chance"
    assert "hangs" in fault(since=103.)[1] and "died" in fault(pid=child.pid)[1] and fault(since=103., longest=2.) is None
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        while process_state(frozen.pid) != "T": time.sleep(.01)
        for longest in (0., .1): assert "is stopped" in fault(beat=105., pid=frozen.pid, longest=longest)[1], "that is no busy machine"
    finally: frozen.kill(); frozen.wait()


def test_a_process_with_threads_is_never_forked(config):
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="can't be forked"): launch(config)
    finally: release.set(); thread.join()


@pytest.mark.parametrize("cut, had, tail", [(1, 2, b""), (3, 4, b"\0\0\1\0moof half"), (4, 4, b"\0\0")])
def test_a_film_goes_on_without_a_seam(tmp_path, cut, had, tail):
    t = np.arange(6 * 7680) / 16000
    wave = (.4 * np.sin(2 * np.pi * 300 * t)).astype(np.float32)
    frames = np.stack([np.full((32, 32, 3), 30 + 2 * i, np.uint8) for i in range(72)])
    def write(writer, start, stop):
        for b in range(start, stop): writer.write(frames[12 * b:12 * b + 12], wave[7680 * b:7680 * b + 7680])
        return writer
    write(VideoWriter(tmp_path / "whole.mp4", 32, segment_blocks=cut), 0, 6).close()
    write(VideoWriter(tmp_path / "cut.mp4", 32, segment_blocks=cut), 0, had)   # never closed
    with open(tmp_path / "cut.mp4", "ab") as f: f.write(tail)
    assert len(fragment_ends(tmp_path / "cut.mp4")) == had
    write(VideoWriter.resume(tmp_path / "cut.mp4", 32, cut, lambda b: wave[7680 * b:7680 * b + 7680], segment_blocks=cut), cut, 6).close()
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "cut.mp4").read_bytes()
    with pytest.raises(ValueError, match="start again without --resume"): VideoWriter.resume(tmp_path / "cut.mp4", 32, 99 * cut, None, segment_blocks=cut)


def test_emulated_devices_keep_time(config):
    for attempt in range(2):   # a loaded machine may spoil the clock once; the logic never
        run = run_tpp(config, name="time", placement="0|1|2|3|D", n_blocks=10, stretch=[.2] * 4 + [.15, .1], record=False, checkpoint_every=0)
        rows = run.schedule.compute()
        steps = {(r.block, r.step): r for r in rows if r.kind == "step"}
        decodes = [r for r in rows if r.kind == "decode"]
        assert sorted(steps) == [(b, k) for b in range(10) for k in range(4)] and [r.block for r in decodes] == list(range(10))
        assert min(r.end - r.start for r in steps.values()) >= .199 and min(r.end - r.start for r in decodes) >= .149
        assert all(steps[b, k].start >= steps[b, k - 1].end - 1e-6 for b in range(10) for k in (1, 2, 3))
        # what is left is how much goes on at the same time: never more than 1 without a pipeline
        side_by_side = sum(r.end - r.start for r in rows) / run.schedule.makespan
        seen = [np.mean([r.end - r.start for b, r in steps.items() if b[1] == k]) for k in range(4)]
        times = StageTimes(seen, np.mean([r.end - r.start for r in decodes]), .1)   # as long as they took here
        model = simulate(times, run.schedule.placement, 10, sink=SinkPlan(4, 0, True))
        if side_by_side > 2.5 and run.schedule.makespan < 1.2 * model.makespan: return
    pytest.fail(f"{side_by_side:.2f} stages at a time, {run.schedule.makespan:.2f} s where {model.makespan:.2f} s are expected")


def test_the_command_line_runs_a_pipeline_and_resumes_it(config, tmp_path):
    """`liveavatar-nb generate --tpp 2`, killed while it works, goes on with `--resume`; the film is that of one process."""
    voice = tmp_path / "voice.wav"
    save_wav(voice, .3 * np.sin(np.arange(16000 * 3) / 16))
    def command(*more):
        words = ["generate", "--no-mark", "--tpp", "2", "--preset", "pico", "--audio", str(voice), "--image", config.image, "--text", "calm", "--outdir", str(tmp_path), "--name", "film", *more]
        return [sys.executable, "-c", "import sys; from liveavatar_nb.cli import main; sys.exit(main())", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    child, folder = subprocess.Popen(command(), stderr=subprocess.PIPE, text=True, env=env), tmp_path / ".film.tpp"
    place = Placement.parse("0123|D")
    for _ in range(12000):
        if restore_point(TPPConfig(outdir=str(tmp_path), name="film"), place) or child.poll() is not None: break
        time.sleep(.01)
    os.kill(int(Board(folder / "job", 2).slots[1]["pid"]), signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    lines = [line for line in err.strip().splitlines() if not line.startswith(("portrait:", "warning:"))]   # noise is no drawn face, and it says so
    assert child.returncode == 2 and len(lines) == 1 and "rank 1 " in lines[0] and "--resume" in lines[0], err
    done = subprocess.run(command("--resume", "--json", str(tmp_path / "film.json")), capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "film.json").read_text())["result"]
    frames, sound = read_video(tmp_path / "film.mp4")
    assert result["first_block"] == 4 and result["frames"] == len(frames) == 75 and Placement.parse(result["placement"]).n_ranks == 2
    assert abs(len(sound) - 3 * 16000) < 1100 and (tmp_path / "film.png").exists()
    one = one_process(TPPConfig(str(voice), config.image, "calm", str(tmp_path), preset="pico"))["frames"][:75].numpy()
    assert frames.shape == one.shape and np.abs(frames.astype(int) - one).mean() < 4   # H.264 changes a little


def test_bench_of_emulated_devices_from_the_command_line(tmp_path):
    from liveavatar_nb.stream.tppbench import bench_tpp
    said = []
    result = bench_tpp("tiny", stage_ms=50, decode_share=1, say=said.append)
    row, = result["emulated"]
    assert row["step_s"] == row["decode_s"] == .05 and [w["kind"] for w in row["work_ms"]] == ["step"] * 4 + ["decode"]
    assert all(0 < w["processor"] for w in row["work_ms"]) and row["makespan_error_with_startup"] - row["makespan_error_of_simulation"] == pytest.approx(row["startup_s"] * row["fps"] / 480, abs=.05)
    assert set(result["holds"]) == {"throughput_95_percent", "speed_up_3_8", "simulation_within_3_percent", "whole_run_within_3_percent"} and said
