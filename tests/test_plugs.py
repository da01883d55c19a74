"""Plugs into other programs (integrations/): the bridge on a loop, pipecat with its own test helper, and ComfyUI's node contract."""
import asyncio
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar_nb.serve.plugs import Bridge, Resampled
from liveavatar_nb.serve.session import Session
from liveavatar_nb.stream.avatar import untrained

root = Path(__file__).resolve().parents[1]
if not (root / "integrations").is_dir():
    pytest.skip("no sources here", allow_module_level=True)


@pytest.fixture(scope="module")
def avatar():
    torch.set_num_threads(1)
    return untrained("pico", levels=(1., .5, 0.), policy="timestep", solver="renoise")


FACE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
VOICE = (.3 * np.sin(np.arange(16000 * 2) / 9)).astype(np.float32)


# the bridge

def test_a_broken_session_is_told_to_the_loop(avatar):
    async def main():
        bridge = Bridge(Session(avatar, FACE))
        bridge.session.sounds.take = lambda urgent: 1 / 0
        with pytest.raises(ZeroDivisionError):
            async for _ in bridge.pieces():
                pass
        await bridge.close()
        assert not bridge.thread.is_alive() and bridge.session.stream is None
    asyncio.run(main())


def test_a_loop_that_is_gone_ends_the_session(avatar):
    async def main():
        return Bridge(Session(avatar, FACE))
    bridge = asyncio.run(main())
    bridge.thread.join(60)
    assert not bridge.thread.is_alive() and bridge.session.closed


def test_half_a_sample_is_refused():
    with pytest.raises(ValueError, match="no whole number of 16-bit samples"):
        Resampled()(b"abc", 16000)


# ComfyUI

@pytest.fixture(scope="module")
def comfy():
    "As ComfyUI imports a folder of custom_nodes."
    path = root / "integrations" / "comfyui" / "__init__.py"
    spec = importlib.util.spec_from_file_location("custom_nodes_liveavatar", path, submodule_search_locations=[str(path.parent)])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(comfy, name, **inputs):
    "One node as ComfyUI's executor calls it: inputs by the names that INPUT_TYPES promised, outputs as many as RETURN_TYPES."
    node = comfy.NODE_CLASS_MAPPINGS[name]
    wanted = node.INPUT_TYPES()
    assert set(inputs) == set(wanted["required"]) | (set(inputs) & set(wanted.get("optional", {})))
    out = getattr(node(), node.FUNCTION)(**inputs)
    values = out["result"] if isinstance(out, dict) else out
    assert isinstance(values, tuple) and len(values) == len(node.RETURN_TYPES)
    return out


def test_the_nodes_keep_comfyuis_contract(comfy):
    assert set(comfy.NODE_CLASS_MAPPINGS) == set(comfy.NODE_DISPLAY_NAME_MAPPINGS)
    for node in comfy.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION)) and node.CATEGORY and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        for kind in node.INPUT_TYPES().values():
            for declared in kind.values():      # ("TYPE",) or ("TYPE", options) or ([choices],)
                assert isinstance(declared, tuple) and isinstance(declared[0], (str, list)) and all(isinstance(o, dict) for o in declared[1:])
    assert [n for n, c in comfy.NODE_CLASS_MAPPINGS.items() if getattr(c, "OUTPUT_NODE", False)] == ["LiveAvatarSave"]


def test_a_voice_becomes_a_film_and_a_file(comfy, avatar, tmp_path, monkeypatch):
    "Stereo at 24 kHz and a batch of pictures with alpha go in; IMAGE, AUDIO and an mp4 with both come out."
    import av
    monkeypatch.chdir(tmp_path)
    t = np.arange(int(24000 * 1.3)) / 24000
    voice = dict(waveform=torch.from_numpy(np.stack([.4 * np.sin(2000 * t), 0 * t])).float()[None], sample_rate=24000)
    image = torch.rand(2, 90, 70, 4)
    image[..., 3] = 1
    images, audio, fps = run(comfy, "LiveAvatarStream", avatar=avatar, image=image, audio=voice, prompt="calm", seed=3, steps=0)
    assert images.shape == (33, 64, 64, 3) and images.dtype == torch.float32 and 0 <= images.min() <= images.max() <= 1 and fps == 25
    assert audio["sample_rate"] == 16000 and audio["waveform"].shape == (1, 1, 20800) and audio["waveform"].abs().max() == pytest.approx(.2, abs=.02)
    again = run(comfy, "LiveAvatarStream", avatar=avatar, image=image, audio=voice, prompt="calm", seed=3, steps=0)[0]
    other = run(comfy, "LiveAvatarStream", avatar=avatar, image=image, audio=voice, prompt="calm", seed=4, steps=0)[0]
    assert torch.equal(images, again) and not torch.equal(images, other)
    for number in (1, 2):
        out = run(comfy, "LiveAvatarSave", images=images, audio=audio, filename_prefix="films/ada", fps=25.0)
        assert out["result"][0] == f"output/films/ada_{number:05}_.mp4" and out["ui"]["images"][0]["subfolder"] == "films"
    with av.open(out["result"][0]) as film:
        assert sum(1 for _ in film.decode(video=0)) == 33
    with av.open(out["result"][0]) as film:
        assert sum(f.samples for f in film.decode(audio=0)) / 48000 == pytest.approx(1.32, abs=.1)


@pytest.mark.parametrize("change, says", [
    (dict(image=torch.rand(64, 64, 3)), r"\(B, H, W, C\)"),
    (dict(audio=dict(waveform=torch.zeros(1, 16000), sample_rate=16000)), r"\(B, C, T\)"),
    (dict(audio=dict(waveform=torch.zeros(1, 1, 0), sample_rate=16000)), "nothing to say"),
])
def test_wrong_tensors_are_refused_in_one_line(comfy, avatar, change, says):
    right = dict(avatar=avatar, image=torch.rand(1, 64, 64, 3), audio=dict(waveform=torch.zeros(1, 1, 16000), sample_rate=16000))
    with pytest.raises(ValueError, match=says) as e:
        run(comfy, "LiveAvatarStream", prompt="calm", seed=0, steps=0, **(right | change))
    assert "\n" not in str(e.value)


# pipecat, where it is installed (it wants an environment of its own)

def sent(avatar, frames, **options):
    "Frames through the service in pipecat's own test pipeline: what comes out below."
    pytest.importorskip("pipecat", reason="pip install 'liveavatar-nb[pipecat]'")
    from pipecat.tests.utils import run_test
    sys.path.insert(0, str(root / "integrations"))
    from pipecat_video import LiveAvatarVideoService
    down, _ = asyncio.run(run_test(LiveAvatarVideoService(avatar, FACE, **options), frames_to_send=frames, start_timeout=120.))
    return down


def crumbs(voice, rate=16000, channels=1, n=9):
    from pipecat.frames.frames import TTSAudioRawFrame
    return [TTSAudioRawFrame(np.repeat((p * 32767).astype("<i2")[:, None], channels, 1).tobytes(), rate, channels) for p in np.array_split(voice, n)]


def heard(frames):
    from pipecat.frames.frames import TTSAudioRawFrame
    return np.frombuffer(b"".join(f.audio for f in frames if isinstance(f, TTSAudioRawFrame)), "<i2") / 32767


def test_pipecat_frames_in_frames_out(avatar):
    pytest.importorskip("pipecat", reason="pip install 'liveavatar-nb[pipecat]'")
    from pipecat.frames.frames import OutputImageRawFrame, TTSAudioRawFrame, TTSStartedFrame, TTSStoppedFrame
    down = sent(avatar, [TTSStartedFrame(), *crumbs(VOICE), TTSStoppedFrame()])
    kinds = [type(f) for f in down]
    begin, end = kinds.index(TTSStartedFrame), kinds.index(TTSStoppedFrame)
    spoken = [k for k, kind in enumerate(kinds) if kind is TTSAudioRawFrame]
    assert begin < spoken[0] and spoken[-1] < end
    assert all(kinds[k + 1] is OutputImageRawFrame and down[k + 1].sync_with_audio for k in spoken)      # each sound with its picture
    sound = heard(down)
    first = next(i for i in range(0, len(sound), 640) if np.abs(sound[i:i + 640]).max() > 0)
    assert np.abs(sound[first:first + len(VOICE)] - VOICE).max() < 1e-4 and not sound[first + len(VOICE):].any()
    image = next(f for f in down if isinstance(f, OutputImageRawFrame))
    assert image.size == (64, 64) and len(image.image) == 64 * 64 * 3 and image.format == "RGB"


def test_pipecat_another_rate_in_stereo_and_no_started_frame(avatar):
    pytest.importorskip("pipecat", reason="pip install 'liveavatar-nb[pipecat]'")
    t = np.arange(24000) / 24000
    sound = heard(sent(avatar, crumbs((.3 * np.sin(2 * np.pi * 300 * t)).astype(np.float32), 24000, 2)))
    voiced = np.flatnonzero(np.abs(sound) > .01)
    assert .95 < (voiced[-1] - voiced[0]) / 16000 < 1.02 and np.abs(sound).max() == pytest.approx(.3, abs=.02)


def test_pipecat_an_interruption_is_honoured(avatar):
    pytest.importorskip("pipecat", reason="pip install 'liveavatar-nb[pipecat]'")
    from pipecat.frames.frames import InterruptionFrame, OutputImageRawFrame, TTSStartedFrame, TTSStoppedFrame
    from pipecat.tests.utils import SleepFrame
    long = np.concatenate([VOICE] * 10)
    down = sent(avatar, [TTSStartedFrame(), *crumbs(long), SleepFrame(sleep=3.), InterruptionFrame(), SleepFrame(sleep=2.),
                         TTSStartedFrame(), *crumbs(VOICE[:16000] / 2), TTSStoppedFrame()])
    at = next(i for i, f in enumerate(down) if isinstance(f, InterruptionFrame))
    begin = next(i for i, f in enumerate(down) if i > at and isinstance(f, TTSStartedFrame))
    assert len(heard(down[:at])) < len(long) and not heard(down[at:begin]).any()     # the twenty seconds are not said to their end
    assert any(isinstance(f, OutputImageRawFrame) for f in down[at:begin])           # the face listens
    after = heard(down[begin:])
    assert np.abs(after).max() == pytest.approx(.15, abs=.01) and np.count_nonzero(after) > 15000
    assert sum(isinstance(f, TTSStoppedFrame) for f in down) == 1
