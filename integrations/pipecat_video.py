"""A talking avatar for pipecat (1.x): TTS sound goes in, pictures and the same sound in step come out, interruptions are honoured.

    pipeline = Pipeline([transport.input(), stt, llm, tts, LiveAvatarVideoService(avatar, "ada.png"), transport.output()])

Set `video_out_enabled`, `video_out_width` and `video_out_height` of the transport to the avatar's size. Chapter 73 explains the bridge inside.
Needs pipecat-ai in the same environment: pip install 'liveavatar-nb[pipecat]'."""
import asyncio

import numpy as np
from pipecat.frames.frames import (CancelFrame, EndFrame, Frame, InterruptionFrame, OutputImageRawFrame, StartFrame, TTSAudioRawFrame,
                                   TTSStartedFrame, TTSStoppedFrame)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from liveavatar_nb.serve.plugs import Bridge, Resampled
from liveavatar_nb.serve.session import Session


class LiveAvatarVideoService(AIService):
    "`avatar`: a LiveAvatar; `image`, `prompt` and `options` as for `Session` (block_frames, steps, seed, ...). 16 kHz mono comes out."

    def __init__(self, avatar, image, prompt="a person, calm, still", **options):
        super().__init__(settings=ServiceSettings(model=avatar.preset.name))
        self._make = lambda: Session(avatar, image, prompt, **options)
        self._bridge = self._task = None
        self._resampled, self._open, self._said, self._news, self._begun = Resampled(), False, 0, {}, set()
        self._quiet = asyncio.Event()

    def can_generate_metrics(self):
        return False

    async def start(self, frame: StartFrame):
        await super().start(frame)
        self._bridge = Bridge(await asyncio.to_thread(self._make))

    async def stop(self, frame: EndFrame):
        "What is being said is said to its end."
        await super().stop(frame)
        if self._bridge is not None:
            self._end()
            self._quiet.clear()
            await self._quiet.wait()
            await self._close()

    async def cancel(self, frame: CancelFrame):
        await super().cancel(frame)
        await self._close()

    async def cleanup(self):
        await super().cleanup()
        await self._close()

    async def _close(self):
        bridge, task, self._bridge, self._task = self._bridge, self._task, None, None
        self._quiet.set()
        if task is not None:
            await self.cancel_task(task)
        if bridge is not None:
            await bridge.close()

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        if self._bridge is None or isinstance(frame, (StartFrame, EndFrame, CancelFrame)):
            await self.push_frame(frame, direction)
            if isinstance(frame, StartFrame) and self._bridge is not None:
                self._task = self.create_task(self._show())         # after StartFrame: nothing may overtake it
        elif isinstance(frame, TTSAudioRawFrame):
            self._hear(frame)
        elif isinstance(frame, TTSStartedFrame):
            self._begin(frame)
        elif isinstance(frame, TTSStoppedFrame):
            self._end(frame)
        else:
            if isinstance(frame, InterruptionFrame):
                self._interrupt()
            await self.push_frame(frame, direction)

    def _begin(self, frame=None):
        self._end()
        self._said, self._open = self._said + 1, True
        self._news[str(self._said)] = [frame, None]
        self._bridge.session.say(np.zeros(0, np.float32), mark=str(self._said), more=True, replace=False)

    def _hear(self, frame):
        if not self._open:
            self._begin()
        self._bridge.session.feed(self._resampled(frame.audio, frame.sample_rate, frame.num_channels))

    def _end(self, frame=None):
        if not self._open:
            return
        if self._resampled.rate is not None:
            self._bridge.session.feed(self._resampled(b"", self._resampled.rate, last=True))
        self._news[str(self._said)][1] = frame
        self._open = False
        self._bridge.session.end()

    def _interrupt(self):
        self._resampled, self._open, self._news = Resampled(), False, {}
        self._bridge.session.interrupt()

    async def _show(self):
        "Piece by piece: news, sound, picture."
        bridge = self._bridge
        async for piece in bridge.pieces():
            for mark in piece.begins:
                await self._tell(mark, 0)
            if piece.speech:
                await self.push_frame(TTSAudioRawFrame((piece.samples.clip(-1, 1) * 32767).astype("<i2").tobytes(), 16000, 1))
            image = OutputImageRawFrame(piece.frame.tobytes(), (piece.frame.shape[1], piece.frame.shape[0]), "RGB")
            image.sync_with_audio = piece.speech
            await self.push_frame(image)
            for mark in piece.ends:
                await self._tell(mark, 1)
            if not piece.speech and not bridge.session.sounds.queue and not bridge.session.speaking:
                self._quiet.set()
        self._quiet.set()

    async def _tell(self, mark, which):
        "Pass TTSStartedFrame and TTSStoppedFrame on, when they are true on the screen."
        frames = self._news.get(mark)
        if frames and frames[which] is not None:
            await self.push_frame(frames[which])
        if which == 1:
            self._news.pop(mark, None)
