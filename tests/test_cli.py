"""The command line as a user meets it: separate processes, exit codes, one line on stderr, nothing half-written."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from PIL import Image

from liveavatar_nb.data.portrait import sample_path
from liveavatar_nb.stream.film import read_video

# the real thing with the smallest preset and one step; DELAY slows a block down, so that a test can hit the middle of a film
COMMAND = """
import sys, time
import liveavatar_nb.stream.avatar as avatar
block = avatar.AvatarStream.block
def slow(*args): time.sleep(DELAY); return block(*args)
if DELAY: avatar.AvatarStream.block = slow
from liveavatar_nb.cli import main
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def keys(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LIVEAVATAR_CONFIG", str(tmp_path_factory.getbasetemp() / "keys"))


@pytest.fixture
def inputs(tmp_path):
    soundfile.write(tmp_path / "voice.wav", 0.2 * np.sin(np.arange(16000 * 3 + 123) / 30), 16000)
    shutil.copy(sample_path("ada.png"), tmp_path / "face.png")
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def command(inputs, delay=0.0, **change):
    options = {"audio": inputs / "voice.wav", "image": inputs / "face.png", "outdir": inputs / "out", "preset": "pico", "steps": 1, **change}
    words = [f"--{k}" if v is True else f"--{k}={v}" for k, v in options.items() if v is not None]
    return [sys.executable, "-c", COMMAND.replace("DELAY", str(delay)), "generate", *words]


def run(argv, **kwargs):
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, **kwargs)


def test_generate(inputs):
    done = run(command(inputs, text="calm, 微笑 🙂", json=inputs / "r.json"))
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (inputs / "out").iterdir()) == ["demo.mp4", "demo.png"]
    frames, sound = read_video(inputs / "out" / "demo.mp4")
    seconds = 3 + 123 / 16000
    assert abs(len(frames) / 25 - seconds) <= 1 / 25 and abs(len(sound) / 16000 - seconds) <= 1 / 25
    record = json.loads((inputs / "r.json").read_text(encoding="utf-8"))
    assert record["result"]["frames"] == len(frames) == 76 and record["device"] and record["command"].startswith("liveavatar-nb generate")


@pytest.mark.parametrize("change, words", [
    (dict(preset="huge"), "unknown preset"), (dict(crop="9,9"), "crop"), (dict(name="a/b"), "--name"), (dict(guidance="nan"), "--guidance"), (dict(json="file/x/r.json"), "--json"), (dict(audio="gone.wav"), "no audio file"), (dict(image="gone.png"), "no such picture"),
    (dict(audio="face.png"), "audio"), (dict(image="voice.wav"), "not a picture"), (dict(outdir="file/out"), "can't write"),
    (dict(outdir="/proc/out"), "can't write"), (dict(tpp="2", precision="bfloat16"), "--precision"),
])
def test_one_line_and_nothing_written(inputs, change, words):
    change = {k: inputs / v if k in ("audio", "image", "outdir", "json") and not v.startswith("/") else v for k, v in change.items()}
    before = sorted(p.name for p in inputs.iterdir())
    done = run(command(inputs, **change))
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list((inputs / "out").glob("*")) and sorted(p.name for p in inputs.iterdir() if p.name != "out") == before


@pytest.mark.parametrize("argv", [["generate"], ["generate", "--audio", "x"], ["nonsense"], ["generate", "--sed", "1"], []])
def test_wrong_options(argv):
    done = run([sys.executable, "-c", "import sys; from liveavatar_nb.cli import main; sys.exit(main())", *argv])
    assert done.returncode == 2 and "Traceback" not in done.stderr and (done.stderr + done.stdout).strip()


def test_traceback_on_request(inputs):
    done = run(command(inputs, audio=inputs / "gone.wav") + ["--traceback"])
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_long_text_warns_in_one_line(inputs):
    done = run(command(inputs, text="very calm " * 100))
    assert done.returncode == 0 and done.stderr.startswith("warning: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle(inputs, how, code):
    child = subprocess.Popen(list(map(str, command(inputs, delay=2))), stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a background job's children would ignore Ctrl+C
    film = inputs / "out" / "demo.mp4"
    for _ in range(3000):  # a busy machine may need long to start
        if film.exists():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(how)
    errors = child.communicate()[1]
    assert child.returncode == code and "Traceback" not in errors
    assert how == signal.SIGKILL or "stopped: what is written so far plays" in errors
    frames, _ = read_video(film)
    assert 12 <= len(frames) < 76
    assert not list((inputs / "out").glob("*.part"))
    done = run(command(inputs, resume=True))
    assert done.returncode == 0, done.stderr
    whole = run(command(inputs, name="whole"))
    assert whole.returncode == 0 and np.array_equal(read_video(film)[0], read_video(inputs / "out" / "whole.mp4")[0])


def test_help_is_quick():
    code = "import sys; from liveavatar_nb.cli import main; main(['--help']); assert not {'torch', 'librosa', 'av', 'numpy'} & set(sys.modules)"
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("generate", "train", "bench", "demo", "plan"))


def test_train_and_bench_name_what_they_know():
    for argv in (["train", "hair", "--out", "x"], ["bench", "hair"]):
        done = run([sys.executable, "-c", "import sys; from liveavatar_nb.cli import main; sys.exit(main())", *argv])
        assert done.returncode == 2 and "use one of" in done.stderr and len(done.stderr.splitlines()) == 1


def test_console_script():
    done = run([os.path.join(os.path.dirname(sys.executable), "liveavatar-nb"), "plan"])
    assert done.returncode == 0 and "0|1|2|3|D" in done.stdout, done.stderr


def test_two_runs_into_one_film(inputs):
    first = subprocess.Popen(list(map(str, command(inputs, delay=1))), stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        if (inputs / "out" / ".demo.job" / "lock").exists(): break
        time.sleep(0.02)
    second = run(command(inputs))
    assert second.returncode == 2 and "another run is writing" in second.stderr and len(second.stderr.splitlines()) == 1
    assert run(command(inputs, name="other")).returncode == 0
    assert first.wait() == 0 and len(read_video(inputs / "out" / "demo.mp4")[0]) == 76


@pytest.mark.parametrize("what", ["folder gone", "film replaced", "folder read-only"])
def test_the_ground_gives_way(inputs, what):
    if what == "folder read-only" and os.geteuid() == 0: pytest.skip("root may write everywhere")
    child = subprocess.Popen(list(map(str, command(inputs, delay=2))), stderr=subprocess.PIPE, text=True)
    film = inputs / "out" / "demo.mp4"
    for _ in range(3000):
        if film.exists(): break
        time.sleep(0.02)
    if what == "folder gone": shutil.rmtree(inputs / "out")
    elif what == "film replaced": film.unlink(); film.write_bytes(b"mine")
    else: film.parent.chmod(0o500)
    errors = child.communicate()[1]
    if what == "folder read-only": film.parent.chmod(0o700)
    assert child.returncode == 2 and len(errors.splitlines()) == 1 and "error:" in errors, errors
    assert what != "film replaced" or film.read_bytes() == b"mine"


def test_special_files_stay_what_they_are(inputs):
    fifo = inputs / "pipe"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE, text=True)
    assert run([sys.executable, "-c", "import sys; from liveavatar_nb.cli import write_json; write_json(sys.argv[1], dict(a=1))", fifo]).returncode == 0
    assert json.loads(reader.communicate()[0]) == {"a": 1} and fifo.is_fifo()


def test_one_sample_is_a_film(inputs):
    soundfile.write(inputs / "voice.wav", np.array([0.3]), 16000)
    done = run(command(inputs))
    assert done.returncode == 0 and len(read_video(inputs / "out" / "demo.mp4")[0]) == 1, done.stderr


def test_a_photograph_is_shown_and_warned_about(inputs):
    import skimage.data
    Image.fromarray(skimage.data.astronaut()).save(inputs / "face.png")
    done = run(command(inputs, preview=True))
    assert done.returncode == 0 and "around a face that was found" in done.stderr and "warning: the portrait doesn't look like" in done.stderr
    assert [p.name for p in (inputs / "out").iterdir()] == ["demo.crop.png"]
    chosen = run(command(inputs, crop="0,0,512", preview=True))
    assert "the square 0,0,512 of 512x512 (as you said" in chosen.stderr
