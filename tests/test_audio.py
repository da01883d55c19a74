"""Sound files as people really bring them, and the promise that streaming equals offline."""
import os
import stat
import struct
import time
import warnings
import wave
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from liveavatar_nb.data.audio import (AudioError, FeatureStream, LogMelStream, audio_features, check_samples, load_audio, log_mel,
                                      save_wav)

RATE = 16000
TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
NOISE = np.random.default_rng(0).normal(0, 0.1, 12_000).astype(np.float32)


def refused(path, match):
    with pytest.raises(AudioError, match=match) as e:
        load_audio(path)
    assert "\n" not in str(e.value) and isinstance(e.value, ValueError)


def pitch(samples):
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples)


# ---- usable, however odd ----

@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_rate_and_depth(tmp_path, rate, kind):
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.wav", tone, rate, subtype=kind)
    x = load_audio(tmp_path / "a.wav")
    assert x.dtype == np.float32 and x.ndim == 1 and abs(len(x) - RATE) <= 2
    assert pitch(x) == pytest.approx(440, abs=2) and np.abs(x[1000:-1000]).max() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
def test_any_channel_count(tmp_path, channels):
    data = np.zeros((RATE, channels))
    data[:, 0] = TONE
    soundfile.write(tmp_path / "a.wav", data, RATE)
    share = 0.707 if channels in (6, 8) else 1 / channels  # surround sound has its own mix-down
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), TONE * share, atol=2e-4)


# ---- what people really bring (rebuilt from public reports) ----

def rms(x): return float(np.sqrt(np.mean(x ** 2)))


def sound(tmp_path, data, subtype="FLOAT", warns=None):
    soundfile.write(tmp_path / "a.wav", data, RATE, subtype=subtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if warns is None else "ignore")
        got = load_audio(tmp_path / "a.wav")
    if warns:
        with pytest.warns(UserWarning, match=warns): load_audio(tmp_path / "a.wav")
    return got


def test_channels_that_cancel(tmp_path):
    assert rms(sound(tmp_path, np.stack([TONE, -TONE], 1), warns="cancel")) == pytest.approx(rms(TONE), rel=1e-3)
    quiet = np.stack([0.3 * TONE, -TONE], 1)  # a difference that is more than nothing is left alone
    assert rms(sound(tmp_path, quiet)) == pytest.approx(0.35 * rms(TONE), rel=1e-3)
    assert rms(sound(tmp_path, np.zeros((RATE, 2)))) == 0


def test_voice_in_the_centre_channel(tmp_path):
    data = np.zeros((RATE, 6))
    data[:, 2] = TONE
    assert rms(sound(tmp_path, data)) == pytest.approx(rms(TONE), rel=1e-3)


def test_a_spike_does_not_make_the_voice_quiet(tmp_path):
    data = TONE.copy()
    data[99] = 60
    assert rms(sound(tmp_path, data, warns="spikes")) == pytest.approx(rms(TONE), rel=0.02)
    assert np.abs(sound(tmp_path, TONE * 32768)).max() == pytest.approx(1, abs=0.01)  # whole track in another unit
    assert np.abs(sound(tmp_path, TONE / np.abs(TONE).max() * 1.2)).max() == pytest.approx(1, abs=1e-6)


def test_wrong_lengths_in_the_header(tmp_path):
    soundfile.write(tmp_path / "a.wav", TONE, RATE)
    wav = (tmp_path / "a.wav").read_bytes()
    note = b"LIST" + (12).to_bytes(4, "little") + b"INFOISFT\0\0\0\0"
    for size, tail in [(0, b""), (0xFFFFFFFF, note), (0x7FFFFFFF, note), (len(wav) * 3, b"")]:
        (tmp_path / "b.wav").write_bytes(wav[:40] + size.to_bytes(4, "little") + wav[44:] + tail)
        assert len(load_audio(tmp_path / "b.wav")) == RATE, size
    (tmp_path / "b.wav").write_bytes(wav[:40] + (1000).to_bytes(4, "little") + wav[44:])
    with pytest.warns(UserWarning, match="header"): assert len(load_audio(tmp_path / "b.wav")) == RATE
    (tmp_path / "b.wav").write_bytes(wav + note)
    assert len(load_audio(tmp_path / "b.wav")) == RATE


def test_a_pause_in_the_time_stamps_is_a_pause(tmp_path):
    import av
    with av.open(str(tmp_path / "a.webm"), "w", format="webm") as out:
        stream = out.add_stream("libopus", rate=48000, layout="mono")
        for k in range(100):
            piece = av.AudioFrame.from_ndarray(np.sin(np.arange(960) / 20)[None].astype("f4"), format="flt", layout="mono")
            piece.sample_rate, piece.pts = 48000, k * 960 + (96000 if k >= 50 else 0)  # two seconds of nothing in the middle
            piece.time_base = Fraction(1, 48000)
            for packet in stream.encode(piece): out.mux(packet)
        for packet in stream.encode(None): out.mux(packet)
    x = load_audio(tmp_path / "a.webm")
    assert abs(len(x) / RATE - 4) < 0.1 and rms(x[int(1.3 * RATE):int(2.7 * RATE)]) < 1e-3 < rms(x[-RATE // 4:])


def test_hours_in_a_few_bytes_are_refused_early(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(4 * 3600 * 8000, np.float32), 8000)
    start = time.process_time()
    with pytest.raises(AudioError, match="240 minutes of sound"): load_audio(tmp_path / "a.flac")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au"])
def test_formats(tmp_path, name):
    soundfile.write(tmp_path / name, TONE, RATE)
    x = load_audio(tmp_path / name)
    assert abs(len(x) - RATE) < 2500 and pitch(x[2000:14000]) == pytest.approx(440, abs=3)


def test_wrong_extension_and_odd_names(tmp_path):
    soundfile.write(tmp_path / "a.wav", TONE, RATE)
    for name in ("song.txt", "concat:x|y.wav", "http:", "ünï 你好 🙂.wav", "-i.wav"):
        (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
        assert len(load_audio(tmp_path / name)) == RATE
    assert len(load_audio(str(tmp_path / "a.wav"))) == RATE


def test_silence_and_single_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert not load_audio(tmp_path / "a.wav").any()
    for rate in (8000, 16000, 96000):
        soundfile.write(tmp_path / "one.wav", np.array([0.5]), rate)
        x = load_audio(tmp_path / "one.wav")
        assert 1 <= len(x) <= 2 and audio_features(x).shape == (1, 80)


def test_floats_beyond_one_are_scaled_down(tmp_path):
    soundfile.write(tmp_path / "a.wav", 20_000 * TONE, RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), TONE / np.abs(TONE).max(), atol=1e-5)


def test_sound_of_a_video(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        video, sound = out.add_stream("mpeg4", 25), out.add_stream("aac", RATE, layout="mono")
        video.width = video.height = 64
        for _ in range(25):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        frame = av.AudioFrame.from_ndarray(TONE[None], "fltp", "mono")
        frame.sample_rate = RATE
        out.mux(sound.encode(frame))
        for stream in (video, sound):
            out.mux(stream.encode(None))
    assert pitch(load_audio(tmp_path / "a.mp4")[2000:14000]) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_truncated_gives_what_is_there(tmp_path, name):
    soundfile.write(tmp_path / name, np.tile(TONE, 6) + np.tile(NOISE, 8) / 4, RATE)  # noise, so that the file has many pages
    data = (tmp_path / name).read_bytes()
    (tmp_path / f"cut-{name}").write_bytes(data[: len(data) // 2])
    x = load_audio(tmp_path / f"cut-{name}")
    assert RATE < len(x) < 5 * RATE and pitch(x[2000:14000]) == pytest.approx(440, abs=3)


def test_wav_that_lies_about_its_length(tmp_path):
    save_wav(tmp_path / "a.wav", TONE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    for size in (0xFFFFFFFF, 0x7FFFFFFE, 0):   # ffmpeg and others write these while a recording runs
        data[40:44] = struct.pack("<I", size)
        (tmp_path / "b.wav").write_bytes(data)
        if size:
            assert len(load_audio(tmp_path / "b.wav")) == RATE


# ---- one clear line ----

def test_what_is_no_sound(tmp_path):
    refused(tmp_path / "gone.wav", "no audio file 'gone.wav'")
    refused(tmp_path, "not a file")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "empty")
    (tmp_path / "text.wav").write_text("Dear diary, " * 500)
    refused(tmp_path / "text.wav", "not an audio file")
    save_wav(tmp_path / "a.wav", TONE)
    (tmp_path / "header.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:44])
    refused(tmp_path / "header.wav", "no samples")
    (tmp_path / "half.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20])
    refused(tmp_path / "half.wav", "no samples|not an audio file|no sound")


def test_picture_is_refused(tmp_path):
    from PIL import Image
    for name in ("a.png", "a.jpg", "a.gif"):
        Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / name)
        refused(tmp_path / name, "no sound|not an audio file|no samples")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_nan_is_refused(tmp_path, bad, rate):
    x = TONE.copy()
    x[500] = bad
    soundfile.write(tmp_path / "a.wav", x, rate, subtype="FLOAT")
    refused(tmp_path / "a.wav", "NaN or infinite")
    with pytest.raises(AudioError, match="NaN or infinite"):
        audio_features(x)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    save_wav(tmp_path / "a.wav", TONE)
    (tmp_path / "a.wav").chmod(0)
    refused(tmp_path / "a.wav", "permissions")


@given(data=st.binary(max_size=400), kind=st.sampled_from([b"", b"RIFF\xff\0\0\0WAVEfmt ", b"fLaC\0\0\0\x22", b"ID3\x03\0\0\0\0\0\0", b"OggS\0\x02", b"\xff\xfb\x90\x00"]))
def test_random_bytes_never_crash(tmp_path_factory, data, kind):
    path = tmp_path_factory.getbasetemp() / "random.wav"
    path.write_bytes(kind + data)
    try:
        x = load_audio(path)
        assert len(x) and np.isfinite(x).all() and np.abs(x).max() <= 1
    except AudioError as e:
        assert "\n" not in str(e)


# ---- writing ----

def test_saved_is_16_bit_mono(tmp_path):
    save_wav(tmp_path / "a.wav", np.r_[TONE, [2.0, -2.0]])
    with wave.open(str(tmp_path / "a.wav")) as f:
        assert f.getparams()[:4] == (1, 2, RATE, RATE + 2)
    assert load_audio(tmp_path / "a.wav")[-2:] == pytest.approx([1, -1], abs=1e-3)
    assert stat.S_IMODE((tmp_path / "a.wav").stat().st_mode) == 0o644


def test_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(AudioError, match="can't write"):
        save_wav(tmp_path / "no" / "a.wav", TONE)
    (tmp_path / "taken").mkdir()
    with pytest.raises(AudioError, match="can't write"):
        save_wav(tmp_path / "taken", TONE)
    with pytest.raises(AudioError, match="NaN"):
        save_wav(tmp_path / "a.wav", np.array([0.1, np.nan]))
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("bad, match", [(np.zeros((3, 2)), "one channel"), (np.zeros(3, np.int16), "divide"), (np.float32(1), "one channel")])
def test_samples_are_checked(bad, match):
    with pytest.raises(AudioError, match=match):
        check_samples(bad)


# ---- streaming equals offline, bit for bit ----

def pushed(stream, samples, cuts):
    edges = [0, *sorted(min(c, len(samples)) for c in cuts), len(samples)]
    return np.concatenate([stream.push(samples[a:b]) for a, b in zip(edges, edges[1:])] + [stream.flush()])


@given(length=st.integers(0, len(NOISE)), cuts=st.lists(st.integers(0, len(NOISE)), max_size=30))
def test_any_cut_gives_the_same_features(length, cuts):
    x = NOISE[:length]
    np.testing.assert_array_equal(pushed(FeatureStream(), x, cuts), audio_features(x))
    rows = pushed(LogMelStream(), x, cuts)
    assert len(rows) == -(-length // 320)
    np.testing.assert_array_equal(rows[: length // 320], log_mel(x))


@given(st.integers(1, 36), st.integers(0, 2**32 - 1))
def test_the_future_changes_nothing(row, seed):
    x = NOISE.copy()
    x[row * 320:] = np.random.default_rng(seed).normal(size=len(x) - row * 320)
    np.testing.assert_array_equal(log_mel(x)[:row], log_mel(NOISE)[:row])


@given(st.integers(0, 6000), st.integers(0, 6000))
def test_a_restored_stream_goes_on(first, second):
    one, two = FeatureStream(), FeatureStream()
    one.push(NOISE[:first])
    state = one.snapshot()
    want = np.concatenate([one.push(NOISE[first : first + second]), one.flush()])
    two.push(NOISE[:77])
    two.restore(state)
    np.testing.assert_array_equal(np.concatenate([two.push(NOISE[first : first + second]), two.flush()]), want)


def test_features_hold_two_rows_a_frame():
    rows, features = log_mel(NOISE), audio_features(NOISE, 18)
    np.testing.assert_array_equal(features, np.concatenate([rows[0:36:2], rows[1:36:2]], 1))
    assert (audio_features(np.zeros(640, np.float32), 3) == -1).all() and audio_features(NOISE, 0).shape == (0, 80)


def test_against_librosa():
    import librosa
    power = librosa.feature.melspectrogram(y=np.r_[np.zeros(192, np.float32), NOISE], sr=RATE, n_fft=512, hop_length=320, n_mels=40, center=False)
    np.testing.assert_allclose(log_mel(NOISE), ((np.log10(power.T + 1e-6) + 2.5) / 3.5)[: len(NOISE) // 320], atol=1e-5)
