"""Index, lock and playlist of a film that may take several runs. (Streams that go on: chapter 44b, tests of the command line.)"""
import json
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar_nb.stream.film import OutputError, boxes, boxes_of, fragment_ends, is_finished, read_video, write_whole
from liveavatar_nb.stream.segments import Index, Job, init_end, playlist, read_index
from liveavatar_nb.stream.writer import Segment, VideoWriter


def block(b, n=12):
    t = np.arange(b * n * 640, (b + 1) * n * 640) / 16000
    frames = np.stack([np.full((32, 32, 3), 30 + 2 * ((b * n + i) % 90), np.uint8) for i in range(n)])
    return frames, (0.4 * np.sin(2 * np.pi * 300 * t)).astype(np.float32)


def film(path, n, **settings):
    with VideoWriter(path, 32, **settings) as writer:
        for b in range(n): writer.write(*block(b))
    return path.read_bytes()


def run(path, blocks, resume, die_after=None, size=2):
    "Make a film of so many blocks; die (nothing closed) after block `die_after`."
    with Job(path, resume) as job:
        begun = job.begin(dict(seed=1))
        announce = lambda s: s.last or job.save(s, dict(block=torch.tensor(s.first_frame + s.frames)), "calm")
        if begun: assert int(job.state()[0]["block"]) == begun * 12
        writer = VideoWriter.resume(path, 32, begun, lambda b: block(b)[1], segment_blocks=size, announce=announce)
        for b in range(begun, blocks):
            writer.write(*block(b))
            if b == die_after: writer.file.close(); return
        writer.close(); job.finish()


@pytest.mark.parametrize("deaths", [[0], [1], [2], [6], [0, 1, 2, 3, 4, 5, 6], [5, 5]])
def test_killed_anywhere_the_film_has_the_same_bytes(tmp_path, deaths):
    whole = film(tmp_path / "whole.mp4", 7, segment_blocks=2)
    for n, at in enumerate(deaths): run(tmp_path / "a.mp4", 7, n > 0, at)
    run(tmp_path / "a.mp4", 7, True)
    assert (tmp_path / "a.mp4").read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "whole.mp4"]


def test_stopped_by_hand_before_the_first_segment(tmp_path):
    path, whole = tmp_path / "a.mp4", film(tmp_path / "whole.mp4", 5, segment_blocks=4)
    with pytest.raises(KeyboardInterrupt), Job(path) as job:
        job.begin(dict(seed=1))
        with VideoWriter.resume(path, 32, 0, None, segment_blocks=4) as writer:  # closed properly, but not whole
            writer.write(*block(0))
            raise KeyboardInterrupt
    run(path, 5, True, size=4)
    assert path.read_bytes() == whole and sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "whole.mp4"]


def test_killed_between_state_and_index(tmp_path, monkeypatch):
    whole = film(tmp_path / "whole.mp4", 6, segment_blocks=2)
    import liveavatar_nb.stream.segments as segments

    class Kill(BaseException): pass

    def write(path, data):
        if path.name == "index.json" and json.loads(data)["blocks"] == 4: raise Kill
        write_whole(path, data)
    monkeypatch.setattr(segments, "write_whole", write)
    with pytest.raises(Kill): run(tmp_path / "a.mp4", 6, False)
    monkeypatch.undo()
    run(tmp_path / "a.mp4", 6, True)
    assert (tmp_path / "a.mp4").read_bytes() == whole


def test_what_does_not_fit_is_one_line(tmp_path):
    path = tmp_path / "a.mp4"
    run(path, 6, False, 4)
    with Job(path, True) as job:
        with pytest.raises(ValueError, match="another seed"): job.begin(dict(seed=2))
        with pytest.raises(OutputError, match="another run"): Job(path, True)
    path.unlink()
    with Job(path, True) as job:
        with pytest.raises(ValueError, match="is gone"): job.begin(dict(seed=1))


def test_a_whole_film_is_left_alone(tmp_path):
    film(tmp_path / "a.mp4", 2)
    assert is_finished(tmp_path / "a.mp4")
    with Job(tmp_path / "a.mp4", True) as job: assert job.ended
    with Job(tmp_path / "a.mp4", False) as job: assert not job.ended


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda c: st.lists(c, max_size=4) | st.dictionaries(
    st.sampled_from(["settings", "segments", "blocks", "state", "prompt", "x"]), c, max_size=6), max_leaves=12)


@given(json_values)
def test_any_index_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "index.json"
    path.write_text(json.dumps(value))
    try: assert isinstance(read_index(path), Index)
    except ValueError as e: assert "damaged" in str(e) and "\n" not in str(e)


@pytest.mark.parametrize("name", ["a.mp4", "who? #1 ä.mp4"])
def test_playlist_names_the_bytes(tmp_path, name):
    rows = []
    data = film(tmp_path / name, 5, segment_blocks=2, announce=lambda s: rows.append([s.first_frame, s.frames, s.start, s.end]))
    text = playlist(tmp_path / name, rows, ended=True)
    assert text.startswith("#EXTM3U") and text.rstrip().endswith("#EXT-X-ENDLIST") and unquote(text.splitlines()[-2]) == name
    first = init_end(tmp_path / name)
    spans = [tuple(map(int, line.split(":")[1].split("@"))) for line in text.splitlines() if line.startswith("#EXT-X-BYTERANGE")]
    assert [at for _, at in spans] == [first] + [at + n for n, at in spans[:-1]] and sum(spans[-1]) == len(data)
    for k, (n, at) in enumerate(spans):  # the head and one piece are a film of their own
        (tmp_path / "piece.mp4").write_bytes(data[:first] + data[at:at + n])
        assert len(read_video(tmp_path / "piece.mp4")[0]) == rows[k][1]


def test_boxes_and_fragments_of_a_cut_film(tmp_path):
    data = film(tmp_path / "a.mp4", 4)
    assert list(boxes_of(tmp_path / "a.mp4")) == boxes(data)
    ends = fragment_ends(tmp_path / "a.mp4")
    for cut in range(0, len(data), 501):
        (tmp_path / "cut.mp4").write_bytes(data[:cut])
        assert fragment_ends(tmp_path / "cut.mp4") == [e for e in ends if e <= cut]


def test_index_counts_blocks():
    index = Index(dict())
    index.add(Segment(None, 0, 0, 24, 0, 10, (), False))
    index.add(Segment(None, 1, 24, 7, 10, 20, (), True))
    assert index.blocks == 3 and index.segments == [[0, 24, 0, 10], [24, 7, 10, 20]]


def test_a_resumed_run_that_does_nothing_leaves_the_film_unfinished(tmp_path):
    "Killed before its first segment, then resumed and stopped at once: the index must stay, or the torn film would count as whole."
    film = tmp_path / "film.mp4"
    with Job(film) as first:
        first.begin(dict(seed=0))
        film.write_bytes(b"a few frames")
    assert (first.folder / "index.json").exists()
    with Job(film, resume=True) as second: assert second.begin(dict(seed=0)) == 0
    assert (first.folder / "index.json").exists()
    with Job(tmp_path / "other.mp4") as third: third.begin(dict(seed=0))    # but a new run that began no film leaves nothing
    assert not third.folder.exists()
