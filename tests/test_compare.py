"""Films side by side (integrations/compare.py): sizes, captions, length and sound of what moviepy composes."""
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("moviepy", reason="pip install 'liveavatar-nb[compose]'")
root = Path(__file__).resolve().parents[1]
if not (root / "integrations").is_dir():
    pytest.skip("no sources here", allow_module_level=True)
import typer  # noqa: E402

from liveavatar_nb.stream.film import read_video  # noqa: E402
from liveavatar_nb.stream.writer import VideoWriter  # noqa: E402

sys.path.insert(0, str(root / "integrations"))
from compare import compare  # noqa: E402


def film(path, size, seconds, colour, tone):
    "A film of one colour and one tone."
    writer = VideoWriter(path, (size, size))
    writer.write(np.full((round(25 * seconds), size, size, 3), colour, np.uint8), (.3 * np.sin(2 * np.pi * tone * np.arange(round(16_000 * seconds)) / 16_000)).astype(np.float32))
    writer.close()
    return path


def test_two_films_with_captions(tmp_path):
    small, large = film(tmp_path / "small.mp4", 64, 1.2, (200, 40, 40), 300), film(tmp_path / "large.mp4", 128, 2., (40, 40, 200), 900)
    compare([small, large], tmp_path / "both.mp4", ["a small one", "a large one"])
    frames, sound = read_video(tmp_path / "both.mp4")
    assert frames.shape[1:] == (128 + 16, 256, 3) and abs(len(frames) - 30) <= 1
    middle = frames[len(frames) // 2].astype(int)
    assert np.abs(middle[60:120, 20:100] - (200, 40, 40)).max() < 25 and np.abs(middle[60:120, 150:240] - (40, 40, 200)).max() < 25
    for strip in (middle[:14, :126], middle[:14, 130:]): assert strip.max() > 230 and strip.min() < 110       # dark letters on white
    loud = np.abs(np.fft.rfft(sound[:16_000]))
    assert abs(int(loud.argmax()) * 16_000 / min(16_000, len(sound)) - 300) < 20                              # the first film's


@pytest.mark.parametrize("names, captions, says", [(["a.mp4"], ["one", "two"], "2 captions for 1 films"), (["a.mp4"], [], "no such film")])
def test_refused_in_one_line(tmp_path, names, captions, says):
    with pytest.raises(typer.BadParameter, match=says): compare([tmp_path / n for n in names], tmp_path / "out.mp4", captions)
    assert not (tmp_path / "out.mp4").exists()
