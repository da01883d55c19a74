"""ComfyUI nodes: load an avatar, stream a voice onto a portrait, save the film. Copy or link this folder into ComfyUI's custom_nodes/.

Needs the package itself in ComfyUI's environment (pip install liveavatar-nb). What it does, and how it is tested: chapter 73 of the book.
ComfyUI's contract, as its own nodes keep it: IMAGE is (B, H, W, C) float32 in [0, 1], AUDIO is dict(waveform=(B, C, T), sample_rate=int)."""
from pathlib import Path

import numpy as np
import torch

CATEGORY = "Live Avatar"
PRESETS = ["nano", "pico", "pico-close"]


def picture(image):
    "The first of a batch (B, H, W, C) in [0, 1] -> a Pillow picture; its square is chosen as for a file."
    from PIL import Image
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"IMAGE has shape {tuple(image.shape)}: (B, H, W, C) with 1, 3 or 4 channels is expected")
    pixels = (image[0].detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def samples(audio):
    "The first of a batch of sounds -> (n,) float32, mono, 16 kHz."
    import soxr
    wave, rate = audio["waveform"], int(audio["sample_rate"])
    if wave.ndim != 3:
        raise ValueError(f"AUDIO's waveform has shape {tuple(wave.shape)}: (B, C, T) is expected")
    mono = wave[0].detach().cpu().float().mean(0).numpy()
    return np.ascontiguousarray(mono if rate == 16000 else soxr.resample(mono, rate, 16000), np.float32)


def host(name):
    "One of ComfyUI's own modules, or None where there is no ComfyUI."
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class LiveAvatarLoad:
    RETURN_TYPES, RETURN_NAMES, FUNCTION, CATEGORY = ("LIVE_AVATAR",), ("avatar",), "load", CATEGORY
    DESCRIPTION = "A drawn talking head with its shipped weights: nano is 128x128, pico 64x64."

    @classmethod
    def INPUT_TYPES(cls):
        return dict(required=dict(preset=(PRESETS,), precision=(["auto", "float32", "bfloat16"],), device=(["auto", "cpu", "cuda"],)))

    def load(self, preset, precision, device):
        from liveavatar_nb.stream.avatar import LiveAvatar
        return (LiveAvatar.from_pretrained(preset, precision=precision, device=device),)


class LiveAvatarStream:
    RETURN_TYPES, RETURN_NAMES, FUNCTION, CATEGORY = ("IMAGE", "AUDIO", "FLOAT"), ("images", "audio", "fps"), "stream", CATEGORY
    DESCRIPTION = "A portrait and a voice become talking frames. A photograph works badly: the shipped weights know drawn faces."

    @classmethod
    def INPUT_TYPES(cls):
        return dict(required=dict(avatar=("LIVE_AVATAR",), image=("IMAGE",), audio=("AUDIO",),
                                  prompt=("STRING", dict(default="a person, calm, still")),
                                  seed=("INT", dict(default=0, min=0, max=2**31 - 1)),
                                  steps=("INT", dict(default=0, min=0, max=50, tooltip="denoising steps a block; 0: as trained"))))

    def stream(self, avatar, image, audio, prompt, seed, steps):
        sound = samples(audio)
        if not len(sound):
            raise ValueError("the sound is empty: there is nothing to say")
        stream = avatar.stream(picture(image), prompt, seed=seed, **(dict(steps=steps) if steps else {}))
        comfy, manager = host("comfy.utils"), host("comfy.model_management")
        size, frames = 640 * stream.features.frames, []
        bar = comfy.ProgressBar(-(-len(sound) // size)) if comfy else None
        for at in range(0, len(sound), size):
            if manager:
                manager.throw_exception_if_processing_interrupted()
            frames += [c.frames for c in stream.push(sound[at:at + size])]
            if bar:
                bar.update(1)
        frames = np.concatenate(frames + [c.frames for c in stream.flush()])
        voice = dict(waveform=torch.from_numpy(sound)[None, None], sample_rate=16000)
        return torch.from_numpy(frames).float() / 255, voice, float(avatar.preset.fps)


class LiveAvatarSave:
    RETURN_TYPES, RETURN_NAMES, FUNCTION, CATEGORY = ("STRING",), ("path",), "save", CATEGORY
    OUTPUT_NODE = True
    DESCRIPTION = "Frames and their sound as an mp4 (H.264, AAC) in ComfyUI's output folder."

    @classmethod
    def INPUT_TYPES(cls):
        return dict(required=dict(images=("IMAGE",), audio=("AUDIO",), filename_prefix=("STRING", dict(default="liveavatar")),
                                  fps=("FLOAT", dict(default=25.0, min=1.0, max=120.0))))

    def save(self, images, audio, filename_prefix, fps):
        from liveavatar_nb.stream.writer import VideoWriter
        folder, name, count, sub, kind = place(filename_prefix, images)
        path = Path(folder) / f"{name}_{count:05}_.mp4"
        frames, sound = (images.cpu().clamp(0, 1) * 255).round().byte().numpy(), samples(audio)
        with VideoWriter(path, images.shape[1:3], fps=round(fps)) as film:
            for i in range(0, len(frames), 12):
                film.write(frames[i:i + 12], sound[round(i * 16000 / fps):round((i + 12) * 16000 / fps)])
        return dict(ui=dict(images=[dict(filename=path.name, subfolder=sub, type=kind)], animated=(True,)), result=(str(path),))


def place(prefix, images):
    "(folder, name, number, subfolder, kind) of a new file: ComfyUI's own choice, or the same without ComfyUI in ./output."
    if paths := host("folder_paths"):
        folder, name, count, sub, _ = paths.get_save_image_path(prefix, paths.get_output_directory(), images.shape[2], images.shape[1])
        return folder, name, count, sub, "output"
    folder = Path("output") / Path(prefix).parent
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(prefix).name
    return folder, name, 1 + sum(1 for _ in folder.glob(f"{name}_*_.mp4")), str(Path(prefix).parent), "output"


NODE_CLASS_MAPPINGS = {c.__name__: c for c in (LiveAvatarLoad, LiveAvatarStream, LiveAvatarSave)}
NODE_DISPLAY_NAME_MAPPINGS = dict(LiveAvatarLoad="Live Avatar: load", LiveAvatarStream="Live Avatar: stream", LiveAvatarSave="Live Avatar: save")
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
