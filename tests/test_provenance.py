"""Marks survive and are not imagined; seals find every change and accuse nobody; consents are checked; verify says so on the command line."""
import datetime as dt
import io
import json
import os
import stat
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liveavatar_nb.data.clips import make_clip
from liveavatar_nb.stream import chain as ch
from liveavatar_nb.stream.chain import Chain, ProvenanceError, signing_key, walk
from liveavatar_nb.stream.consent import check_consent, load_consent, new_consent
from liveavatar_nb.stream.marks import (InvisibleMark, VisibleMark, codeword, decode, follow, paint, payload, plate, read_mark, shrink,
                                        volume)
from liveavatar_nb.stream.provenance import Provenance, read_c2pa, say, verify
from liveavatar_nb.stream.provbench import CHANGES, encode, write_film
from liveavatar_nb.stream.provbench import decode as pictures
from liveavatar_nb.stream.verify import MANIPULATIONS, manipulate, parts, verify_film
from liveavatar_nb.stream.writer import VideoWriter

av.logging.set_level(av.logging.FATAL)


@pytest.fixture(scope="module")
def clip():
    return make_clip(7, "heldout", 144, 128)


@pytest.fixture(scope="module")
def film(clip, tmp_path_factory):
    "A finished film with marks, seals and a C2PA manifest: (path, its Provenance)."
    p = Provenance(dict(generator="liveavatar-nb 0"))
    path = write_film(tmp_path_factory.mktemp("film") / "film.mp4", clip.frames[1:], clip.samples, p)
    assert p.embed(path)
    return path, p


# the marks

def test_id_comes_back_after_every_change(clip):
    rng = np.random.default_rng(3)
    name = rng.bytes(8)
    marked = InvisibleMark(name, 128, 128).add(clip.frames[1:], 5)
    assert 10 * np.log10(255**2 / np.mean((marked.astype(float) - clip.frames[1:])**2)) > 47.5
    for change in CHANGES.values():
        found = read_mark(shrink(pictures(change(marked, rng), "gray")))
        assert found.film == name and found.place.start == 5
    # and nothing where nothing is
    assert read_mark(shrink(pictures(encode(clip.frames[1:], 23), "gray"))).film is None


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (256, 256)])
def test_marks_of_other_sizes(size, clip):
    frames = np.stack([np.kron(f[::2, ::2], np.ones((4, 4, 1), np.uint8))[:size[0], :size[1]] for f in clip.frames[1:97]])
    frames = np.ascontiguousarray(frames) if frames.shape[1:3] == size else np.tile(frames, (1, 1, 2, 1))[:, :size[0], :size[1]]
    name = bytes(range(8))
    assert read_mark(shrink(pictures(encode(InvisibleMark(name, *size).add(frames, 0), 20), "gray"))).film == name


@given(st.binary(min_size=8, max_size=8))
def test_codeword_and_back(name):
    assert decode(volume(name).astype(np.float32)) == name
    rows = codeword(payload(name)).astype(int)
    assert rows.shape == (11, 128) and set(np.unique(rows)) == {-1, 1}


@given(st.binary(min_size=8, max_size=8), st.integers(0, 2**32))
def test_code_corrects(name, seed):
    "A fifth of the chips turned round: still the same id."
    rng = np.random.default_rng(seed)
    v = volume(name).astype(np.float32)
    assert decode(np.where(rng.random(v.shape) < .2, -v, v)) == name


@given(st.integers(0, 2**32))
def test_noise_is_no_id(seed):
    rng = np.random.default_rng(seed)
    assert read_mark(rng.normal(100, 3, (96, 64, 64)).astype(np.float32)).film is None


test_noise_is_no_id = settings(max_examples=5)(test_noise_is_no_id)


def test_follow_finds_the_cut(clip):
    g = InvisibleMark(b"12345678", 128, 128).add(np.concatenate([clip.frames[1:], clip.frames[:0:-1]]), 0)
    y = shrink(pictures(encode(np.concatenate([g[:150], g[171:]]), 20), "gray"))
    jumps = follow(y, read_mark(y).place)
    assert len(jumps) == 1 and jumps[0][1] == 21 and abs(jumps[0][0] - 150) <= 60


@pytest.mark.parametrize("place", ["bottom-right", "bottom-left", "top-right", "top-left"])
@pytest.mark.parametrize("size", [64, 128, 512])
def test_visible_mark_is_readable(place, size):
    for ground in (0, 128, 255):
        frames = np.full((1, size, size, 3), ground, np.uint8)
        paint(frames, VisibleMark(place=place))
        (y, x), grey = plate(VisibleMark(place=place), size, size)
        seen = frames[0, y:y + grey.shape[0], x:x + grey.shape[1], 0].astype(float)
        assert seen[grey > 200].mean() - seen[grey < 60].mean() > 150           # letters on their plate
        touched = (frames != ground).any(-1).mean()
        assert 0 < touched < .06
    with pytest.raises(ValueError, match="shorter text"):
        plate(VisibleMark("a very long text, that nobody needs"), 64, 64)


# the chain

def test_key_is_private_and_made_once(tmp_path):
    a, b = signing_key(tmp_path), signing_key(tmp_path)
    assert ch.public_bytes(a) == ch.public_bytes(b)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "signing_key.pem").stat().st_mode) == 0o600
        (tmp_path / "signing_key.pem").chmod(0o640)
        with pytest.raises(ProvenanceError, match="chmod 600"):
            signing_key(tmp_path)
    (tmp_path / "signing_key.pem").unlink()
    ch.write_private(tmp_path / "signing_key.pem", b"nonsense")
    with pytest.raises(ProvenanceError, match="no Ed25519 key"):
        signing_key(tmp_path)


def test_two_that_start_together_get_one_key(tmp_path):
    code = "from liveavatar_nb.stream.chain import *; import sys; print(fingerprint(public_bytes(signing_key())))"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | dict(LIVEAVATAR_CONFIG=str(tmp_path)))
            for _ in range(3)]
    assert len({r.communicate()[0] for r in runs}) == 1


def test_whole_and_by_whom(film):
    path, p = film
    r = verify_film(path)
    assert (r["status"], r["frames"], r["id"], r["first_frame"]) == ("whole", 144, p.film.hex(), None)
    assert r["by"] == ch.fingerprint(p.chain.public)


def test_players_see_no_difference(film, clip, tmp_path):
    path, p = film
    bare = tmp_path / "bare.mp4"
    with VideoWriter(bare, 128, mark=p.mark, segment_blocks=2) as w:
        for i in range(0, 144, 12):
            w.write(clip.frames[1 + i:13 + i], clip.samples[640 * i:640 * (i + 12)])
    assert (pictures(path) == pictures(bare)).all()


@given(st.integers(0, 2**32))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_manipulation_is_found(film, seed):
    data = film[0].read_bytes()
    kind, changed = manipulate(np.random.default_rng(seed), data, data)
    if changed != data:
        r = verify_film(changed)
        assert r["status"] != "whole", kind
        assert kind in MANIPULATIONS and (r["status"] == "unsigned" or 0 <= r["first_frame"] <= 144)


def test_the_address_of_a_change(film):
    data = film[0].read_bytes()
    head, *rest = parts(data)
    kinds = ch.tracks(next(d for k, d in walk(head) if k == b"moov"))
    a, b = ch.samples_of(rest[2], kinds)[b"vide"][5]
    rest[2] = rest[2][:a + 9] + bytes([rest[2][a + 9] ^ 1]) + rest[2][a + 10:]
    r = verify_film(head + b"".join(rest))
    assert (r["status"], r["first_frame"], r["time"]) == ("changed", 53, 2.12)
    assert verify_film(head + b"".join(rest[:1] + rest[2:]))["first_frame"] == 24 if (rest := parts(data)[1:]) else 0


def test_killed_and_resumed(tmp_path):
    frames, samples = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8), np.zeros(7680, np.float32)
    p = Provenance(dict(seed=1), visible=None)
    w = VideoWriter(tmp_path / "a.mp4", 32, segment_blocks=2, mark=p.mark, seal=p.seal)
    for _ in range(5):
        w.write(frames, samples)                               # two segments and a block that nobody sealed
    r = verify_film(tmp_path / "a.mp4")
    assert (r["status"], r["frames"], r["unsigned"]) == ("unfinished", 48, 12)
    w.file.close()
    q = Provenance(dict(seed=1), visible=None)
    w = VideoWriter.resume(tmp_path / "a.mp4", 32, 4, lambda b: samples, segment_blocks=2, mark=q.mark, seal=q.seal)
    for _ in range(2):
        w.write(frames, samples)
    w.close()
    whole = write_film(tmp_path / "b.mp4", np.concatenate([frames] * 6), np.concatenate([samples] * 6), Provenance(dict(seed=1), visible=None))
    assert verify_film(tmp_path / "a.mp4")["status"] == "whole"
    assert (tmp_path / "a.mp4").read_bytes() == whole.read_bytes()
    # another key can't go on with it
    stranger = Chain(key=ch.Ed25519PrivateKey.generate())
    with pytest.raises(ProvenanceError, match="not with yours"):
        stranger.resume(b"".join(parts((tmp_path / "a.mp4").read_bytes())[:2]))


@given(st.binary(max_size=2000))
def test_any_bytes(data):
    assert verify_film(data)["status"] == "unsigned"
    assert verify_film(b"\0\0\0\x18ftypmp42" + data)["status"] in ("unsigned", "changed")


# C2PA

def test_c2pa_names_what_went_in(clip, tmp_path):
    from PIL import Image
    Image.fromarray(clip.frames[0]).save(tmp_path / "face.png")
    p = Provenance(dict(generator="liveavatar-nb 0", settings=dict(seed=4)), inputs=dict(portrait=tmp_path / "face.png"))
    path = write_film(tmp_path / "film.mp4", clip.frames[1:49], clip.samples[:640 * 48], p)
    assert p.embed(path) and [f.name for f in tmp_path.iterdir() if "part" in f.name] == []
    said = read_c2pa(path)
    assert said["state"] == "Valid" and said["ingredients"] == ["portrait"] and said["generator"] == "liveavatar-nb 0"
    assert said["failures"] == ["signingCredential.untrusted"]
    import c2pa
    text = c2pa.Reader(str(path)).json()
    assert "trainedAlgorithmicMedia" in text and p.film.hex() in text


def test_every_byte_of_the_c2pa_box_counts(film):
    data = film[0].read_bytes()
    start = data.index(ch.C2PA) - 8
    size = int.from_bytes(data[start:start + 4], "big")
    for i in list(range(start, start + 200)) + list(range(start + 200, start + size, 397)):
        assert verify_film(data[:i] + bytes([data[i] ^ 1]) + data[i + 1:])["status"] != "whole"
    assert verify_film(data[:start] + data[start + size:])["status"] == "changed"


# consent

def test_consent(tmp_path):
    face, voice = tmp_path / "face.png", tmp_path / "voice.wav"
    face.write_bytes(b"face"); voice.write_bytes(b"voice")
    path = tmp_path / "yes.json"
    path.write_text(json.dumps(new_consent(face, voice, "Ada", "a greeting", "2031-05-01")))
    kept = check_consent(path, face, voice, dt.date(2031, 5, 1))
    assert (kept["by"], kept["purpose"], kept["until"]) == ("Ada", "a greeting", "2031-05-01") and kept["signed_by"]
    for args, message in (((face, voice, dt.date(2031, 5, 2)), "expired"), ((voice, voice, dt.date(2031, 1, 1)), "another portrait"),
                          ((face, face, dt.date(2031, 1, 1)), "another voice")):
        with pytest.raises(ProvenanceError, match=message):
            check_consent(path, *args)
    record = json.loads(path.read_text())
    for key in ("by", "until", "purpose", "portrait", "voice"):
        (tmp_path / "forged.json").write_text(json.dumps(record | {key: "2099-01-01"}))
        with pytest.raises(ProvenanceError, match="changed after"):
            load_consent(tmp_path / "forged.json")


json_values = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
                           lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=8)


@given(st.one_of(st.binary(max_size=300), json_values.map(lambda v: json.dumps(v).encode()),
                 st.dictionaries(st.sampled_from("portrait voice by purpose until key signature format".split()), json_values)
                 .map(lambda d: json.dumps(dict(format="liveavatar-nb consent 1") | d).encode())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_consent_file_gives_one_line(tmp_path, data):
    (tmp_path / "c.json").write_bytes(data)
    (tmp_path / "f").write_bytes(b"x")
    try:
        check_consent(tmp_path / "c.json", tmp_path / "f", tmp_path / "f")
    except ProvenanceError as e:
        assert "\n" not in str(e)


# verify

def reencode(old, new):
    with av.open(str(old)) as a, av.open(str(new), "w") as b:
        s = b.add_stream("libx264", rate=25, options=dict(crf="26"))
        s.width, s.height, s.pix_fmt = 128, 128, "yuv420p"
        for i, f in enumerate(a.decode(video=0)):
            f.pts, f.time_base = i, Fraction(1, 25)
            b.mux(s.encode(f))
        b.mux(s.encode(None))


def test_verify_says_whose_copy_it_is(film, tmp_path):
    path, p = film
    r = verify(path)
    assert r["ok"] and r["mine"] and r["mark"]["id"] == p.film.hex() and r["c2pa"]["state"] == "Valid" and not r["notes"]
    reencode(path, tmp_path / "copy.mp4")
    r = verify(tmp_path / "copy.mp4")
    assert (r["status"], r["ok"], r["mark"]["id"], r["by"]) == ("re-encoded", False, p.film.hex(), None)
    assert p.film.hex() in say(r) and "re-encoded" in say(r)
    thief = Provenance(dict(generator="x 1"), visible=None, invisible=False, key=ch.Ed25519PrivateKey.generate())
    stolen = write_film(tmp_path / "stolen.mp4", pictures(tmp_path / "copy.mp4"), np.zeros(640 * 144, np.float32), thief)
    r = verify(stolen)
    assert r["status"] == "whole" and not r["mine"] and p.film.hex() in r["notes"][0]
    assert verify(stolen, by=ch.fingerprint(p.chain.public))["status"] == "stranger"


def run(*argv):
    from contextlib import redirect_stderr, redirect_stdout
    from liveavatar_nb.cli import main
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


def test_command_line(film, tmp_path):
    path, p = film
    code, out, _ = run("verify", path)
    assert code == 0 and out.startswith("whole")
    code, out, _ = run("verify", path, "--json")
    assert code == 0 and json.loads(out)["id"] == p.film.hex()
    data = path.read_bytes()
    (tmp_path / "bad.mp4").write_bytes(data[:-3000] + bytes(100) + data[-2900:])
    code, out, _ = run("verify", tmp_path / "bad.mp4")
    assert code == 1 and out.startswith("changed") and "frame" in out
    code, out, err = run("verify", tmp_path / "none.mp4")
    assert code in (1, 2) and err.startswith("error: can't read") and err.count("\n") == 1
    code, out, err = run("verify", path, "--by", "0000-0000-0000-0000")
    assert code == 1 and out.startswith("stranger")


def test_consent_command(tmp_path):
    for n in ("face.png", "voice.wav"):
        (tmp_path / n).write_bytes(n.encode())
    out = tmp_path / "yes.json"
    base = ["consent", "--image", tmp_path / "face.png", "--audio", tmp_path / "voice.wav", "--by", "Ada", "--for", "a test", "--out", out]
    assert run(*base, "--until", "2099-01-01")[0] == 0
    assert check_consent(out, tmp_path / "face.png", tmp_path / "voice.wav")["by"] == "Ada"
    code, _, err = run(*base, "--until", "soon")
    assert code in (1, 2) and "2027-06-30" in err
