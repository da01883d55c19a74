"""A talking avatar for LiveKit's agents (1.x): the agent's sound goes in, pictures and the same sound in step come out, `clear_buffer` is honoured.

    session.output.audio = QueueAudioOutput(sample_rate=16000)          # from livekit.agents.voice.avatar
    runner = AvatarRunner(room, audio_recv=session.output.audio, video_gen=LiveAvatarVideo(avatar, "ada.png"), options=options(avatar))
    await runner.start()

Chapter 73 explains the bridge inside. Needs livekit-agents in the environment: pip install 'liveavatar-nb[livekit]'."""
import asyncio

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from liveavatar_nb.serve.plugs import Bridge, Resampled
from liveavatar_nb.serve.session import Session


def options(avatar):
    "What an `AvatarRunner` must know: the avatar's size, 25 pictures a second, 16 kHz mono."
    height, width = avatar.preset.size
    return AvatarOptions(video_width=width, video_height=height, video_fps=25., audio_sample_rate=16000, audio_channels=1)


class LiveAvatarVideo(VideoGenerator):
    "`avatar`: a LiveAvatar; `image`, `prompt` and `options` as for `Session`. One iteration at a time; `aclose` ends the session."

    def __init__(self, avatar, image, prompt="a person, calm, still", **options):
        self._make = lambda: Session(avatar, image, prompt, **options)
        self._bridge, self._starting = None, asyncio.Lock()
        self._resampled, self._open, self._cleared = Resampled(), False, 0

    async def _session(self):
        async with self._starting:
            if self._bridge is None:
                self._bridge = Bridge(await asyncio.to_thread(self._make))
        return self._bridge.session

    async def push_audio(self, frame):
        "An `AudioFrame` of any rate, or the end of the segment. ValueError: more than ten minutes wait to be said."
        cleared, session = self._cleared, await self._session()
        if cleared != self._cleared:
            return                                                  # it waited for the session to begin, and isn't wanted any more
        if isinstance(frame, AudioSegmentEnd):
            return self._end(session)
        if not self._open:
            session.say(np.zeros(0, np.float32), mark="segment", more=True, replace=False)
            self._open = True
        session.feed(self._resampled(bytes(frame.data), frame.sample_rate, frame.num_channels))

    def _end(self, session):
        if not self._open:
            return
        if self._resampled.rate is not None:
            session.feed(self._resampled(b"", self._resampled.rate, last=True))
        self._open = False
        session.end()

    def clear_buffer(self):
        "Be silent now: nothing of what was pushed comes out any more."
        self._resampled, self._open, self._cleared = Resampled(), False, self._cleared + 1
        if self._bridge is not None:
            self._bridge.session.interrupt()

    async def __aiter__(self):
        "Each 40 ms a picture, and before it its sound while the avatar speaks; `AudioSegmentEnd` behind a segment that was said to its end."
        await self._session()
        async for piece in self._bridge.pieces():
            if piece.speech:
                sound = (piece.samples.clip(-1, 1) * 32767).astype("<i2").tobytes()
                yield rtc.AudioFrame(sound, 16000, 1, len(piece.samples))
            height, width = piece.frame.shape[:2]
            yield rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, piece.frame.tobytes())
            for _ in piece.ends:
                yield AudioSegmentEnd()

    async def aclose(self):
        "End the session and its thread."
        if self._bridge is not None:
            await self._bridge.close()
