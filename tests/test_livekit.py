"""The plug for LiveKit's agents (integrations/livekit_avatar.py) with LiveKit's own classes, offline: only the room is a stand-in."""
import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("livekit.agents", reason="pip install 'liveavatar-nb[livekit]'")
root = Path(__file__).resolve().parents[1]
if not (root / "integrations").is_dir():
    pytest.skip("no sources here", allow_module_level=True)
from livekit import rtc  # noqa: E402
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput  # noqa: E402

from liveavatar_nb.stream.avatar import untrained  # noqa: E402

sys.path.insert(0, str(root / "integrations"))
from livekit_avatar import LiveAvatarVideo, options  # noqa: E402

FACE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
VOICE = (.3 * np.sin(np.arange(16_000) / 9)).astype(np.float32)


@pytest.fixture(scope="module")
def avatar():
    torch.set_num_threads(1)
    return untrained("pico", levels=(1., 0.), policy="timestep", window_frames=3)


def crumbs(voice, rate=16_000, channels=1, n=9):
    for p in np.array_split((voice * 32767).astype("<i2"), n):
        yield rtc.AudioFrame(np.repeat(p[:, None], channels, 1).tobytes(), rate, channels, len(p))


def heard(frames): return np.concatenate([np.frombuffer(f.data, "<i2") for f in frames if isinstance(f, rtc.AudioFrame)] or [np.zeros(0)]) / 32767


async def until(video, wanted, act=lambda frames: None):
    "What the generator gives until `wanted(frames)`; `act(frames)` after each."
    frames = []
    async for f in video:
        frames.append(f)
        act(frames)
        if wanted(frames): return frames


def ended(frames): return isinstance(frames[-1], AudioSegmentEnd)


@pytest.mark.parametrize("rate, channels", [(16_000, 1), (24_000, 2)])
def test_sound_and_pictures_come_in_step(avatar, rate, channels):
    async def main():
        video = LiveAvatarVideo(avatar, FACE)
        voice = (.3 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)).astype(np.float32)
        for crumb in crumbs(voice, rate, channels): await video.push_audio(crumb)
        await video.push_audio(AudioSegmentEnd())
        frames = await asyncio.wait_for(until(video, ended), 120)
        await video.aclose()
        return voice, frames
    voice, frames = asyncio.run(main())
    kinds = [type(f) for f in frames]
    spoken = [i for i, kind in enumerate(kinds) if kind is rtc.AudioFrame]
    assert all(kinds[i + 1] is rtc.VideoFrame and frames[i].duration == .04 for i in spoken) and kinds.count(AudioSegmentEnd) == 1
    assert np.diff(spoken).tolist() == [2] * (len(spoken) - 1)         # sound, picture, sound, picture
    sound, picture = heard(frames), frames[spoken[0] + 1]
    if rate == 16_000: assert np.abs(sound[:rate] - voice).max() < 1e-4 and not sound[rate:].any()
    assert .97 < np.flatnonzero(np.abs(sound) > .01)[-1] / 16_000 < 1.02 and np.abs(sound).max() == pytest.approx(.3, abs=.02)
    assert (picture.width, picture.height, picture.type, len(picture.data)) == (64, 64, rtc.VideoBufferType.RGB24, 64 * 64 * 3)


def test_a_cleared_buffer_is_silent_at_once_and_the_next_segment_is_whole(avatar):
    async def main():
        video = LiveAvatarVideo(avatar, FACE)
        for crumb in crumbs(np.concatenate([VOICE] * 20)): await video.push_audio(crumb)
        first = await asyncio.wait_for(until(video, lambda f: len(heard(f)) >= 9600), 120)
        video.clear_buffer()
        quiet = await asyncio.wait_for(until(video, lambda f: len(f) >= 20), 120)
        for crumb in crumbs(VOICE / 2): await video.push_audio(crumb)
        await video.push_audio(AudioSegmentEnd())
        second = await asyncio.wait_for(until(video, ended), 120)
        await video.aclose()
        return first, quiet, second
    first, quiet, second = asyncio.run(main())
    assert np.abs(heard(first)).max() > .2 and not heard(quiet).any() and sum(isinstance(f, rtc.VideoFrame) for f in quiet) >= 10
    assert np.abs(heard(second)).max() == pytest.approx(.15, abs=.01) and np.count_nonzero(heard(second)) > 15_000


class Room(rtc.EventEmitter):
    "What an AvatarRunner asks of a room: it is connected and takes tracks."
    def __init__(self): super().__init__(); self.local_participant, self.tracks = self, []
    def isconnected(self): return True
    async def publish_track(self, track, options): self.tracks.append(track.name); return self
    async def wait_for_subscription(self): pass


def test_livekits_own_runner(avatar):
    "A segment is said to its end, another is interrupted; the agent is told both, with how much was heard."
    async def main():
        room, sound, video, told = Room(), QueueAudioOutput(sample_rate=16_000), LiveAvatarVideo(avatar, FACE), asyncio.Queue()
        runner = AvatarRunner(room, audio_recv=sound, video_gen=video, options=options(avatar))
        sound.on("playback_finished", told.put_nowait)
        await runner.start()
        for crumb in crumbs(VOICE): await sound.capture_frame(crumb)
        sound.flush()
        one = await asyncio.wait_for(told.get(), 120)
        for crumb in crumbs(np.concatenate([VOICE] * 20)): await sound.capture_frame(crumb)
        sound.flush()
        while runner._playback_position < .4: await asyncio.sleep(.02)
        sound.clear_buffer()
        two = await asyncio.wait_for(told.get(), 120)
        await runner.aclose()
        await video.aclose()
        return room.tracks, one, two
    tracks, one, two = asyncio.run(main())
    assert tracks == ["avatar_audio", "avatar_video"]
    assert not one.interrupted and 1 <= one.playback_position < 1.5 and two.interrupted and .4 <= two.playback_position < 5
