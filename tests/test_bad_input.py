"""Pictures and sentences as people (and attackers) really bring them. Sound files: tests of data.audio."""
import struct
import time
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from liveavatar_nb.data.portrait import DRAWN_LIMIT, GREY, UPRIGHT, PortraitError, clean_prompt, load_portrait, read_portrait

SIZE = 32


def face(h=96, w=128):
    "A colour ramp with a mark in the top left corner of the middle square."
    y, x = np.mgrid[0:h, 0:w]
    out = np.stack([80 + 100 * x / w, 60 + 120 * y / h, 150 + 0 * x], -1).astype(np.uint8)
    side, left, top = min(h, w), (w - min(h, w)) // 2, (h - min(h, w)) // 2
    out[top : top + side // 4, left : left + side // 4] = (250, 20, 20)
    return out


TRUTH = load_portrait(face(), SIZE).astype(int)


def close(picture, to=TRUTH, tolerance=4):
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - to).mean() < tolerance, np.abs(picture.astype(int) - to).mean()


def refused(path, match):
    with pytest.raises(PortraitError, match=match) as e:
        load_portrait(path, SIZE)
    assert "\n" not in str(e.value)


def test_square_in_the_middle():
    assert tuple(TRUTH[2, 2]) == pytest.approx((250, 20, 20), abs=12)
    assert TRUTH[2, -3, 0] < 200 and TRUTH[-3, 2, 0] < 200


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "A.JPEG"])
def test_formats(tmp_path, name):
    Image.fromarray(face()).save(tmp_path / name)
    close(load_portrait(tmp_path / name, SIZE))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_every_mode_is_usable(tmp_path, mode):
    rgb = Image.fromarray(face())
    grey = np.asarray(rgb.convert("L"))
    picture = {"I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257), "I": lambda: Image.fromarray(grey.astype(np.int32)),
               "F": lambda: Image.fromarray(grey.astype(np.float32))}.get(mode, lambda: rgb.convert(mode))()
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.png" if mode in ("1", "L", "LA", "P", "RGBA", "I;16") else "a.tiff")
    picture.save(path)
    want = load_portrait(np.asarray(rgb.convert("L")), SIZE).astype(int) if mode in ("1", "L", "LA", "I;16", "I", "F") else TRUTH
    close(load_portrait(path, SIZE), want, tolerance=40 if mode == "1" else 12)


def test_see_through_becomes_grey(tmp_path):
    pixels = np.dstack([face(), np.zeros((96, 128), np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (load_portrait(tmp_path / "a.png", SIZE) == GREY).all()
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 255, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert (load_portrait(tmp_path / "p.png", SIZE) == GREY).all()


def test_animation_gives_its_first_picture(tmp_path):
    later = [Image.new("RGB", (128, 96), (0, 255, 0))] * 3
    for name in ("a.gif", "a.webp", "a.png"):
        Image.fromarray(face()).save(tmp_path / name, save_all=True, append_images=later, duration=40)
        close(load_portrait(tmp_path / name, SIZE), tolerance=10)


def test_turned_photo_is_set_upright(tmp_path):
    for code, turn in {3: Image.ROTATE_180, 6: Image.ROTATE_90, 8: Image.ROTATE_270}.items():
        exif = Image.Exif()
        exif[0x0112] = code
        Image.fromarray(face()).transpose(turn).save(tmp_path / "a.jpg", exif=exif, quality=95)
        close(load_portrait(tmp_path / "a.jpg", SIZE))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_huge_picture_is_cheap(tmp_path, name):
    Image.fromarray(face(200, 20_000)).save(tmp_path / name)
    start = time.process_time()
    picture = load_portrait(tmp_path / name, SIZE)
    assert time.process_time() - start < 5
    close(picture, load_portrait(face(200, 20_000)[:, 9900:10100], SIZE).astype(int))


def test_bomb_is_refused_unopened(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(data + chunk(b"IDAT", zlib.compress(bytes(10_000_000))) + chunk(b"IEND", b""))
    start = time.process_time()
    refused(tmp_path / "bomb.png", "million pixels")
    assert time.process_time() - start < 1
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000)))  # small file, 80 MB of "text" inside
    (tmp_path / "text.png").write_bytes(data[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)) + text + chunk(b"IEND", b""))
    refused(tmp_path / "text.png", "picture")


def test_what_is_no_portrait(tmp_path):
    refused(tmp_path / "gone.png", "no such")
    refused(tmp_path, "not a file")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty")
    (tmp_path / "sound.png").write_bytes(b"RIFF\x24\0\0\0WAVEfmt " + bytes(100))
    refused(tmp_path / "sound.png", "not a picture")
    for size in [(1, 1), (15, 400), (400, 1)]:
        Image.new("RGB", size).save(tmp_path / "tiny.png")
        refused(tmp_path / "tiny.png", "too small")
    with pytest.raises(PortraitError, match="uint8"):
        load_portrait(np.zeros((64, 64, 3), np.float32), SIZE)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif"])
def test_truncated_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for share in (0.02, 0.3, 0.8):
        (tmp_path / f"cut-{name}").write_bytes(data[: int(len(data) * share)])
        refused(tmp_path / f"cut-{name}", "picture")


@given(data=st.binary(max_size=300), kind=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF\x10\0\0\0WEBP", b"II*\0"]))
@pytest.mark.filterwarnings("ignore")
def test_random_bytes_never_crash(tmp_path_factory, data, kind):
    path = tmp_path_factory.getbasetemp() / "random.png"
    path.write_bytes(kind + data)
    try:
        picture = load_portrait(path, SIZE)
        assert picture.shape == (SIZE, SIZE, 3)
    except PortraitError as e:
        assert "\n" not in str(e)


# ---- the sentence ----

@pytest.mark.parametrize("text, want", [
    ("", ""), (None, ""), ("   \n\t ", ""), ("calm, smiling", "calm, smiling"), ("a\x00b\x07c\x7fd", "a b c d"), ("line\r\nbreak\u2028here", "line break here"),
    ("微笑的女孩", "微笑的女孩"), ("smile 🙂 👩‍🚀", "smile 🙂 👩‍🚀"), ("cafe\u0301", "caf\u00e9"), ("\ufefftext\u202e", "text"), ("bad \udc80 byte", "bad byte"),
])
def test_sentences(text, want):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean_prompt(text) == want


def test_long_text_is_cut_with_a_warning():
    for letter in ("a", "é", "微", "🙂"):
        with pytest.warns(UserWarning, match="only the first 48 are used"):
            short = clean_prompt(letter * 5000)
        assert set(short) == {letter} and 44 < len(short.encode()) <= 48


def test_not_a_sentence():
    with pytest.raises(ValueError, match="expected a sentence"):
        clean_prompt(7)


@given(st.text(alphabet=st.characters(), max_size=80))
def test_any_text_is_clean_and_stays_clean(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clean = clean_prompt(text)
    assert len(clean.encode("utf-8")) <= 48 and clean == clean.strip()
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in clean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean_prompt(clean) == clean


# ---- which square, and is it a face we know? ----

def drawn(seed, size=128):
    from liveavatar_nb.data.world import random_identity, render_portrait
    return render_portrait(random_identity(seed), size)


@pytest.mark.parametrize("code", range(1, 9))
@given(left=st.integers(0, 60), top=st.integers(0, 30), side=st.integers(16, 64))
def test_crop_is_in_the_upright_picture(tmp_path_factory, code, left, top, side):
    undo = {6: Image.ROTATE_90, 8: Image.ROTATE_270}.get(code, UPRIGHT.get(code))
    picture = Image.fromarray(face())
    exif = Image.Exif()
    exif[0x0112] = code
    path = tmp_path_factory.getbasetemp() / f"turned{code}.png"
    (picture if undo is None else picture.transpose(undo)).save(path, exif=exif)
    got = read_portrait(path, 16, f"{left},{top},{side}")
    want = np.asarray(picture.crop((left, top, left + side, top + side)).resize((16, 16), Image.LANCZOS)).astype(int)
    assert (got.crop.left, got.crop.top, got.crop.side, got.size) == (left, top, side, (128, 96))
    assert np.abs(got.pixels - want).mean() < 4


def test_crop_of_a_large_jpeg(tmp_path):
    big = Image.fromarray(face()).resize((4096, 3072))
    big.save(tmp_path / "a.jpg")
    got = read_portrait(tmp_path / "a.jpg", SIZE, "512,0,3072")
    assert str(got.crop) == "512,0,3072"
    close(got.pixels, tolerance=6)


@pytest.mark.parametrize("crop", ["", "1,2", "0,0,97", "-1,0,40", "0,0,9", "left,top", "1e3,0,50"])
def test_wrong_crop(crop):
    with pytest.raises(PortraitError, match="crop"):
        read_portrait(face(), SIZE, crop)


def test_drawn_faces_are_known_and_others_are_not():
    import skimage.data
    assert max(read_portrait(drawn(s), 64).strange for s in range(9000, 9030)) < DRAWN_LIMIT
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        assert not read_portrait(getattr(skimage.data, name)(), 64).drawn, name
    assert not read_portrait(np.full((80, 80, 3), 90, np.uint8), 64).drawn


def test_tall_pictures_keep_their_heads():
    import skimage.data
    photo = skimage.data.astronaut()[:, 100:350]                                       # the face is at about row 100 of 512, 250 wide
    got = read_portrait(np.concatenate([photo, np.full((400, 250, 3), 80, np.uint8)]), 64)
    assert got.crop.how == "face" and got.crop.top < 100 < got.crop.top + got.crop.side < 300
    unknown = read_portrait(np.random.default_rng(0).integers(0, 60, (600, 200, 3), np.uint8), 64)
    assert unknown.crop.how in ("top", "face") and unknown.crop.top <= 100
    tall = np.concatenate([np.full((64, 128, 3), 90, np.uint8), drawn(9001), np.full((64, 128, 3), 90, np.uint8)])
    assert read_portrait(tall, 64).crop.how == "middle"                                # a drawn face in the middle stays there


@pytest.mark.parametrize("kind", [np.float32, np.int32])
@pytest.mark.parametrize("white", [1, 255, 65535, 2e9])
def test_deep_grey(tmp_path, kind, white):
    if white == 1 and kind is np.int32: return
    ramp = np.tile(np.linspace(0, white, 64), (64, 1)).astype(kind)
    Image.fromarray(ramp).save(tmp_path / "a.tiff")
    got = load_portrait(tmp_path / "a.tiff", SIZE, "middle")[16, :, 0].astype(int)
    assert (np.diff(got) >= 0).all() and got[0] < 12 and got[-1] > 243


def test_pillow_picture_is_a_portrait():
    close(load_portrait(Image.fromarray(face()), SIZE))
