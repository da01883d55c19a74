"""The command line as a user meets it: separate processes, exit codes, one line on stderr, nothing half-written."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from PIL import Image

from liveavatar_nb.stream.film import read_video

# a quick stand-in behind the front door, so that these tests are about the command line alone
STAND_IN = """
import sys, time, types, numpy as np
import liveavatar_nb.stream
class Stream:
    def __init__(self): self.n, self.block = 0, 0
    def push(self, samples):
        self.n += len(samples)
        while self.n >= 7680:
            self.n -= 7680; self.block += 1; time.sleep(DELAY)
            yield types.SimpleNamespace(frames=np.full((12, 64, 64, 3), self.block * 10 % 250, np.uint8), time=0., samples=None)
    def flush(self):
        if self.n: yield from self.push(np.zeros(7680 - self.n, np.float32))
class LiveAvatar:
    @classmethod
    def from_pretrained(cls, preset, precision, device):
        if preset != "toy": raise ValueError(f"unknown preset {preset!r}: use toy")
        return cls()
    def stream(self, image, prompt="", seed=0, steps=4): return Stream()
sys.modules["liveavatar_nb.stream.avatar"] = types.SimpleNamespace(LiveAvatar=LiveAvatar)
from liveavatar_nb.cli import main
sys.exit(main())
"""


@pytest.fixture
def inputs(tmp_path):
    soundfile.write(tmp_path / "voice.wav", 0.2 * np.sin(np.arange(16000 * 3 + 123) / 30), 16000)
    Image.new("RGB", (64, 64), (180, 140, 110)).save(tmp_path / "face.png")
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def command(inputs, delay=0.0, **change):
    options = {"audio": inputs / "voice.wav", "image": inputs / "face.png", "outdir": inputs / "out", "preset": "toy", **change}
    words = [f"--{k}={v}" for k, v in options.items() if v is not None]
    return [sys.executable, "-c", STAND_IN.replace("DELAY", str(delay)), "generate", *words]


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
    (dict(preset="huge"), "unknown preset"), (dict(audio="gone.wav"), "no audio file"), (dict(image="gone.png"), "no such picture"),
    (dict(audio="face.png"), "audio"), (dict(image="voice.wav"), "not a picture"), (dict(outdir="file/out"), "can't write"),
    (dict(outdir="/proc/out"), "can't write"), (dict(guidance="2"), "guidance"), (dict(tpp="2", precision="bfloat16"), "--precision"),
])
def test_one_line_and_nothing_written(inputs, change, words):
    change = {k: inputs / v if k in ("audio", "image", "outdir") and not v.startswith("/") else v for k, v in change.items()}
    before = sorted(p.name for p in inputs.iterdir())
    done = run(command(inputs, **change))
    if "guidance" in change:  # the stand-in's stream() doesn't take it: a programming error keeps its traceback
        assert done.returncode == 1 and "Traceback" in done.stderr
    else:
        assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
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


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)])
def test_stopped_in_the_middle(inputs, how, code):
    child = subprocess.Popen(list(map(str, command(inputs, delay=3))), stderr=subprocess.PIPE, text=True,
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
    frames, _ = read_video(film)
    assert 12 <= len(frames) < 76
    assert not list((inputs / "out").glob("*.part"))


def test_help_is_quick():
    code = "import sys; from liveavatar_nb.cli import main; main(['--help']); assert not {'torch', 'librosa', 'av', 'numpy'} & set(sys.modules)"
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("generate", "train", "bench", "demo", "plan"))


def test_train_and_bench_name_what_they_know():
    for argv in (["train", "hair", "--out", "x"], ["bench", "hair"]):
        done = run([sys.executable, "-c", "import sys; from liveavatar_nb.cli import main; sys.exit(main())", *argv])
        assert done.returncode == 1 and "use one of" in done.stderr and len(done.stderr.splitlines()) == 1


def test_console_script():
    done = run([os.path.join(os.path.dirname(sys.executable), "liveavatar-nb"), "plan"])
    assert done.returncode == 0 and "0|1|2|3|D" in done.stdout, done.stderr
