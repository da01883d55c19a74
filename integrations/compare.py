"""Films side by side, each with a caption, as one film: moviepy composes.

    python integrations/compare.py pico.mp4 nano.mp4 --out both.mp4 --caption "pico, 64 px" --caption "nano, 128 px"

All are brought to the height of the tallest and end with the shortest; the sound is the first one's. What comes out is a new film: the seals
(chapter 47) of those that went in don't seal it. Needs moviepy: pip install 'liveavatar-nb[compose]'."""
from pathlib import Path
from typing import Annotated

import typer
from moviepy import TextClip, VideoFileClip, clips_array


def titled(film, caption: str, height: int):
    "A film of that height, above it its caption on a strip of an eighth of it."
    strip = TextClip(text=caption, font_size=max(8, height // 16), size=(round(film.w * height / film.h), height // 8), color="black", bg_color="white")
    return clips_array([[strip.with_duration(film.duration)], [film.resized(height=height)]])


def compare(films: list[Path], out: Annotated[Path, typer.Option()], caption: Annotated[list[str], typer.Option()] = ()):
    "Write FILMS side by side to OUT; a --caption for each, or their names."
    captions = list(caption) or [f.stem for f in films]
    if len(captions) != len(films): raise typer.BadParameter(f"{len(captions)} captions for {len(films)} films")
    missing = [str(f) for f in films if not f.is_file()]
    if missing: raise typer.BadParameter(f"no such film: {', '.join(missing)}")
    clips = [VideoFileClip(str(f)) for f in films]
    try:
        height, seconds = max(c.h for c in clips) // 16 * 16, min(c.duration for c in clips)
        row = clips_array([[titled(c.subclipped(0, seconds), text, height) for c, text in zip(clips, captions)]])
        sound = clips[0].audio
        row.with_audio(sound and sound.subclipped(0, min(seconds, sound.duration))).write_videofile(str(out), fps=clips[0].fps, logger=None, threads=1)
    finally:
        for c in clips: c.close()


if __name__ == "__main__":
    typer.run(compare)
