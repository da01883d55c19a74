"""The writer under kills, full disks and odd block sizes."""
import resource
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveavatar_nb.stream.film import OutputError, Thumbnails, boxes, contact_sheet, read_video, save_image
from liveavatar_nb.stream.writer import VideoWriter


def block(i, n=12, size=64):
    "n frames whose brightness names the block, with a moving edge, and their sound."
    frames = np.full((n, size, size, 3), (i * 7 % 20) * 10 + 20, np.uint8)
    for k in range(n):
        frames[k, :, : (i * n + k) % size] += 25
    t = np.arange(i * n * 640, (i + 1) * n * 640) / 16000
    return frames, (0.4 * np.sin(2 * np.pi * 300 * t)).astype(np.float32)


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b.astype(float)) ** 2)))


CHILD = """
import sys, numpy as np
sys.path.insert(0, sys.argv[2])
from test_writer import block
from liveavatar_nb.stream.writer import VideoWriter
writer = VideoWriter(sys.argv[1], 64)
for i in range(100000):
    writer.write(*block(i))
    print(i, flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 7])
def test_kill_leaves_every_finished_block(tmp_path, after):
    path = tmp_path / "film.mp4"
    child = subprocess.Popen([sys.executable, "-c", CHILD, path, str(__file__).rsplit("/", 1)[0]], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if int(line) == after:
            break
    time.sleep(0.013 * after)  # somewhere inside a later block
    child.send_signal(signal.SIGKILL)
    child.wait()
    frames, sound = read_video(path)
    done = (after + 1) * 12
    assert len(frames) >= done
    truth = np.concatenate([block(i)[0] for i in range(after + 1)])
    assert min(psnr(a, b) for a, b in zip(frames, truth)) > 34  # and in the right order
    assert len(sound) / 16000 > done / 25 - 0.15
    assert [f.name for f in tmp_path.iterdir()] == ["film.mp4"]


def test_kill_before_the_first_block_leaves_nothing(tmp_path):
    code = "import sys, os, signal; from liveavatar_nb.stream.writer import VideoWriter; VideoWriter(sys.argv[1], 64); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "film.mp4"]).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=8)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), cut=st.integers(0, 639))
def test_any_block_sizes_give_the_same_film(tmp_path_factory, sizes, cut):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    total = sum(sizes)
    frames = np.concatenate([block(i)[0] for i in range(21)])[:total]
    samples = np.concatenate([block(i)[1] for i in range(21)])[: max(0, total * 640 - cut)]
    with VideoWriter(path, 64) as writer:
        f = s = 0
        for n in sizes:
            writer.write(frames[f : f + n], samples[s : s + n * 640])
            f, s = f + n, s + n * 640
    if not total:
        assert not path.exists()
        return
    back, sound = read_video(path)
    assert len(back) == total and min(psnr(a, b) for a, b in zip(back, frames)) > 34
    assert abs(len(sound) / 16000 - total / 25) <= 2 / 25
    with av.open(str(path)) as film:
        assert abs(film.duration / 1e6 - total / 25) <= 1 / 25 + 1e-3


@pytest.mark.parametrize("n_samples", [0, 1000, 12 * 640 - 300, 12 * 640, 20 * 640])
def test_picture_and_sound_end_together(tmp_path, n_samples):
    with VideoWriter(tmp_path / "film.mp4", 64) as writer:
        writer.write(block(0)[0], np.ones(n_samples, np.float32) * 0.1)
    frames, sound = read_video(tmp_path / "film.mp4")
    assert len(frames) == max(12, n_samples // 640)
    assert abs(len(sound) / 16000 - len(frames) / 25) < 1 / 25


def test_sound_is_where_it_was(tmp_path):
    samples = np.zeros(48 * 640, np.float32)
    samples[16000:16160] = np.sin(np.arange(160)) * 0.8  # one click at 1 s
    with VideoWriter(tmp_path / "film.mp4", 64) as writer:
        for i in range(4):
            writer.write(block(i)[0], samples[i * 7680 : (i + 1) * 7680])
    sound = read_video(tmp_path / "film.mp4")[1]
    energy = np.convolve(sound**2, np.ones(160), "same")
    assert abs(int(energy.argmax()) - 16080) < 40  # 2.5 ms


def test_colours_survive(tmp_path):
    patches = np.array([(r, g, b) for r in (40, 128, 215) for g in (40, 128, 215) for b in (40, 128, 215)], np.uint8)
    picture = np.zeros((96, 96, 3), np.uint8)
    for i, colour in enumerate(patches[:25]):
        picture[i // 5 * 19 : i // 5 * 19 + 19, i % 5 * 19 : i % 5 * 19 + 19] = colour
    with VideoWriter(tmp_path / "film.mp4", 96) as writer:
        writer.write(np.repeat(picture[None], 12, 0), np.zeros(7680, np.float32))
    back = read_video(tmp_path / "film.mp4")[0][3]
    for i, colour in enumerate(patches[:25]):
        y, x = i // 5 * 19 + 9, i % 5 * 19 + 9
        assert np.abs(back[y, x].astype(int) - colour).max() <= 8, (colour, back[y, x])


def limited(tmp_path, limit):
    "Write blocks in a process whose files may not grow beyond `limit` bytes: what a full disk looks like."
    code = """
import sys, resource, numpy as np
sys.path.insert(0, sys.argv[2])
from test_writer import block
from liveavatar_nb.stream.writer import VideoWriter, OutputError
writer = VideoWriter(sys.argv[1], 64)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    with writer:
        for i in range(200): writer.write(*block(i))
except OutputError as e: print(writer.seconds_on_disk); print(e, file=sys.stderr); sys.exit(1)
"""
    return subprocess.run([sys.executable, "-c", code, tmp_path / "film.mp4", str(__file__).rsplit("/", 1)[0], str(limit)], capture_output=True, text=True)


def test_full_disk_keeps_what_was_finished(tmp_path):
    done = limited(tmp_path, 60_000)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    frames, _ = read_video(tmp_path / "film.mp4")
    assert len(frames) == round(float(done.stdout) * 25) >= 24
    data = (tmp_path / "film.mp4").read_bytes()
    assert sum(length for _, _, length in boxes(data)) == len(data)  # no half fragment at the end


def test_full_disk_at_the_first_block_leaves_nothing(tmp_path):
    done = limited(tmp_path, 1000)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_older_film_stays_until_the_new_one_plays(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")
    writer = VideoWriter(path, 64)
    assert path.read_bytes() == b"old"
    writer.write(*block(0))
    assert len(read_video(path)[0]) == 12  # playable before close
    writer.close()


def test_cost_stays_constant(tmp_path):
    "Memory and bytes a block don't grow with the film."
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = []
    with VideoWriter(tmp_path / "film.mp4", 64) as writer:
        for i in range(40):
            writer.write(*block(i % 20))
        before = peak()
        for i in range(160):
            writer.write(*block(i % 20))
            sizes.append(writer.size)
    assert peak() - before < 8_000  # kB
    steps = np.diff(sizes)
    assert steps[-60:].mean() < 1.2 * steps[:60].mean()


def test_contact_sheet_and_thumbnails(tmp_path):
    frames = np.concatenate([block(i)[0] for i in range(10)])
    assert contact_sheet(frames[:10], columns=4).size == (4 * 66 - 2, 3 * 66 - 2)
    with pytest.raises(ValueError, match="expected"):
        contact_sheet([])
    thumbs = Thumbnails(limit=7)
    for frame in frames:
        thumbs.add(frame[None])
    assert 3 <= len(thumbs.kept) <= 7
    for i, kept in enumerate(thumbs.kept):
        assert np.array_equal(kept, frames[i * thumbs.step])
    with pytest.raises(OutputError):
        (tmp_path / "file").write_text("")
        save_image(tmp_path / "file" / "x.png", thumbs.sheet())
    assert read_error(tmp_path / "none.mp4").count("\n") == 0


def read_error(path):
    with pytest.raises(OutputError) as e:
        read_video(path)
    return str(e.value)
