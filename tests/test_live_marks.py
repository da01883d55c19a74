"""What a session sends and what the demo shows carries both marks; an interruption doesn't confuse them; they can be turned off."""
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liveavatar_nb.data.audio import save_wav
from liveavatar_nb.data.portrait import load_portrait, sample_path
from liveavatar_nb.demo.live import Live, Pace
from liveavatar_nb.demo.page import furnish
from liveavatar_nb.serve.ends import FakeClock
from liveavatar_nb.serve.messages import Mp4, Pictures, unpack
from liveavatar_nb.serve.session import Session, drive
from liveavatar_nb.stream.avatar import LiveAvatar
from liveavatar_nb.stream.film import read_video
from liveavatar_nb.stream.marks import Stamp, VisibleMark, follow, paint, read_mark, shrink
from liveavatar_nb.stream.provenance import verify
from liveavatar_nb.stream.verify import verify_film

rng = np.random.default_rng(0)
VOICE = (.1 * rng.standard_normal(64_000)).astype(np.float32)
FACE = load_portrait(sample_path("ada.png"), 64)


@pytest.fixture(scope="module")
def avatar():
    torch.set_num_threads(1)
    return LiveAvatar.from_pretrained("pico")                # an untrained network shows noise, in which no mark can be read


def luma(frames): return shrink(frames @ np.float32([.299, .587, .114]))


def talk(avatar, seconds=4.5, interrupt=True, **options):
    "(session, screen, what was made, what the viewer saw) of a talk that is interrupted."
    session = Session(avatar, FACE, clock=FakeClock(), seed=3, steps=2, **options)
    session.say(VOICE)
    screen, made = drive(session, seconds, [(1.3, session.interrupt), (1.7, lambda: session.say(VOICE[:16_000]))] if interrupt else ())
    best = {(t.number, t.epoch): t for t in made}
    return session, screen, made, [best[row[1], row[2]] for row in screen.shown]


def test_marks_depend_on_id_and_number_alone():
    frames, stamp = rng.integers(0, 255, (30, 64, 64, 3)).astype(np.uint8), Stamp()
    kept, once = frames.copy(), stamp(frames, 0)
    assert np.array_equal(frames, kept) and np.array_equal(Stamp(stamp.film)(frames[7:19], 7), once[7:19])
    assert not np.array_equal(Stamp()(frames, 0), once) and len(stamp.film) == 8
    seen = Stamp(invisible=False)(frames, 0)
    paint(kept, VisibleMark())
    assert np.array_equal(seen, kept) and not np.array_equal(seen, frames)
    assert np.array_equal(Stamp(visible=None, invisible=False)(frames, 0), frames)


def test_a_session_is_marked_across_an_interruption(avatar):
    "The pictures as a client gets them, JPEG by JPEG; the clock of the mark never jumps although blocks were taken back."
    session, screen, made, seen = talk(avatar, block_frames=1, lead=4.)
    assert len(made) > len(seen)                                                       # something was taken back
    pack, pictures = Pictures((64, 64)), []
    for take in seen: pictures += [np.asarray(Image.open(io.BytesIO(p))) for p in unpack(pack(take))[1][:-1]]
    y = luma(np.stack(pictures))
    found = read_mark(y)
    assert found.film == session.stamp.film and found.place.start == 0 and follow(y, found.place) == []


def test_the_mp4_of_a_session_is_marked(avatar, tmp_path):
    session, _, made, seen = talk(avatar, interrupt=False, rewind=False)
    pack = Mp4((64, 64))
    data = b"".join(unpack(pack(take))[1][0] for take in made)
    pack.writer.close()
    (tmp_path / "a.mp4").write_bytes(data)
    pack.close()
    assert unpack(pack(made[-1]))[1] == [b""]             # a block that was in the making when the client left
    assert read_mark(luma(read_video(tmp_path / "a.mp4")[0])).film == session.stamp.film


def test_without_marks_it_is_the_stream(avatar):
    "Interruptions left out: sound in, the same pictures out; and the marked session is that one, stamped."
    plain, _, made, _ = talk(avatar, 2., interrupt=False, mark=False)
    marked, _, other, _ = talk(avatar, 2., interrupt=False)
    assert plain.stamp is None and len(made) == len(other) >= 4
    stream = avatar.stream(FACE, "a person, calm, still", seed=3, steps=2)
    for take, twin, clip in zip(made, other, stream.push(np.concatenate([t.samples for t in made]))):
        assert np.array_equal(take.frames, clip.frames)
        assert np.array_equal(twin.frames, marked.stamp(clip.frames, 12 * take.number)) and not np.array_equal(twin.frames, clip.frames)


def test_the_demo_is_marked_and_measures_without(avatar):
    def film(mark):
        live = Live(avatar, FACE, "a person, calm, still", Pace(.05, .01, 2), mark=mark)
        live.auto, live.steps = False, 1
        live.voices.say(VOICE)
        clips, cut = [], False
        for clip in live.clips():
            clips = clips[:live.number - 1] + [clip]
            if live.number == 4 and not cut: cut = True; live.interrupt(1, 1); live.voices.say(VOICE[:9000])
            if live.number == 9: live.halted = True
        return live, clips
    live, clips = film(True)
    y = luma(np.concatenate([c.frames for c in clips]))
    found = read_mark(y)
    assert found.film == live.stamp.film and follow(y, found.place) == []
    plain, others = film(False)
    assert plain.stamp is None
    for a, b in zip(clips, others): assert np.array_equal(a.plain.frames, b.frames) and b.plain.frames is b.frames


def test_options():
    "Server, demo and its page hand the choice on."
    for mark in (True, False):
        with tempfile.TemporaryDirectory() as folder: assert f"mark={mark}" in furnish(Path(folder), "pico", mark)[0].read_text()


CLI = "import sys; from liveavatar_nb.cli import main; sys.exit(main())"


@pytest.fixture
def inputs(tmp_path):
    save_wav(tmp_path / "voice.wav", VOICE[:46_080])
    shutil.copy(sample_path("ada.png"), tmp_path / "face.png")
    return dict(audio=str(tmp_path / "voice.wav"), image=str(tmp_path / "face.png"), outdir=str(tmp_path))


def shell(tmp_path, *words):
    environment = os.environ | dict(LIVEAVATAR_CONFIG=str(tmp_path / "keys"), OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300, env=environment)


def test_a_film_of_a_pipeline_is_marked_and_sealed(inputs, tmp_path):
    words = [f"--{k}={v}" for k, v in inputs.items()]
    done = shell(tmp_path, "-c", CLI, "generate", "--preset=pico", "--tpp=0123D", "--no-mark", *words)
    assert done.returncode == 0, done.stderr
    r = verify(tmp_path / "demo.mp4")
    assert r["ok"] and r["mark"]["id"] == r["id"] and r["c2pa"]["state"] == "Valid", r
    assert r["manifest"]["settings"]["preset"] == "pico" and r["manifest"]["marks"]["visible"] is None and r["frames"] == 72
    film = (tmp_path / "demo.mp4").read_bytes()
    again = shell(tmp_path, "-c", CLI, "generate", "--preset=pico", "--tpp=0123D", "--no-mark", "--resume", *words)
    assert again.returncode == 0 and (tmp_path / "demo.mp4").read_bytes() == film, again.stderr       # it was finished
    other = shell(tmp_path, "-c", CLI, "generate", "--preset=pico", "--tpp=0123D", "--resume", *words)
    assert other.returncode == 2 and "begun with another provenance" in other.stderr                  # the same film with a visible mark is another


def test_a_pipeline_that_died_goes_on_with_its_chain(inputs, tmp_path):
    seals = dict(film="0123456789abcdef", visible=True, manifest=dict(generator="test 0"))
    settings = inputs | dict(name="a", preset="tiny", placement="01|23D", checkpoint_every=2, seals=seals)
    (tmp_path / "first.json").write_text(json.dumps(settings | dict(fault=[1, 4, "raise"])))
    (tmp_path / "second.json").write_text(json.dumps(settings | dict(resume=True)))
    first = shell(tmp_path, "-m", "liveavatar_nb.stream.distributed", "--config", tmp_path / "first.json")
    assert first.returncode == 1 and verify_film(tmp_path / "a.mp4")["status"] == "unfinished", first.stderr
    second = shell(tmp_path, "-m", "liveavatar_nb.stream.distributed", "--config", tmp_path / "second.json")
    assert second.returncode == 0, second.stderr
    r = verify_film(tmp_path / "a.mp4")
    assert (r["status"], r["frames"], r["id"]) == ("whole", 72, seals["film"]), r
