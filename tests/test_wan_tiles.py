"""The decoder in tiles: cuts, equality with the whole, streaming, the seam, memory."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from liveavatar_nb.bench import peak_growth
from liveavatar_nb.data.world import idle_motion, random_identity, render, split_seed
from liveavatar_nb.model.presets import load_weights
from liveavatar_nb.model.vae import VAEConfig, VideoVAE
from liveavatar_nb.train.vae import to_video
from liveavatar_nb.wan.tiles import TiledVAE, cuts, fades, seam


@given(length=st.integers(1, 300), tile=st.integers(1, 90), overlap=st.integers(0, 89))
def test_cuts_cover_everything(length, tile, overlap):
    if overlap >= tile:
        with pytest.raises(ValueError, match="overlap from 0 to"): cuts(length, tile, overlap)
        return
    starts = cuts(length, tile, overlap)
    if tile >= length: assert starts == [0]; return
    assert starts[0] == 0 and starts[-1] + tile == length
    assert all(0 < b - a and a + tile - b >= overlap for a, b in zip(starts, starts[1:]))
    assert len(starts) < 2 + (length - overlap) / (tile - overlap), "not more pieces than needed"
    rows = fades(starts, tile)
    assert rows.shape == (len(starts), 8 * tile) and rows.min() > 0 and rows.max() <= 1

@pytest.fixture(scope="module")
def vae():
    return load_weights("nano_vae")

@pytest.fixture(scope="module")
@torch.inference_mode()
def latents(vae):
    faces = [render(random_identity(split_seed("heldout", i)), idle_motion(13, i, mood="happy", manner="lively"), 128) for i in range(2)]
    return vae.encode(to_video(np.concatenate(faces, 2)))      # 16 x 32 cells

@torch.inference_mode()
def test_one_tile_is_the_plain_decoder(vae, latents):
    tiled = TiledVAE(vae, (16, 32), 4)
    assert torch.equal(tiled.decode(latents), vae.decode(latents)) and tiled.config is vae.config

@torch.inference_mode()
def test_any_cut_in_time_gives_the_same_film(vae, latents):
    tiled = TiledVAE(vae, (12, 20), 8)
    want, parts, state = tiled.decode(latents), [], None
    for piece in latents.split([1, 1, 2], 2):
        video, state = tiled.decode_chunk(piece, state); parts.append(video)
    assert (torch.cat(parts, 2) - want).abs().max() < 1e-4 and all(torch.is_tensor(s) for s in state)

@torch.inference_mode()
def test_overlap_hides_the_seam(vae, latents):
    whole, found = vae.decode(latents), {}
    for overlap, width in ((0, 16), (8, 20)):
        t = TiledVAE(vae, (16, width), overlap)
        found[overlap] = seam(whole, t.decode(latents), t.boxes(16, 32)[1], width)
    assert 0 < found[8]["at_cut"] < found[0]["at_cut"] / 2 and found[8]["at_cut"] < 2 and abs(found[8]["step"]) < .5

@torch.inference_mode()
def test_wan_structure_in_tiles():
    torch.manual_seed(0)
    vae, z = VideoVAE(VAEConfig.tiny_golden()).eval(), torch.randn(1, 16, 2, 6, 14)
    tiled = TiledVAE(vae, (6, 8), 4)
    assert tiled.decode(z).shape == vae.decode(z).shape == (1, 3, 5, 48, 112)

@torch.inference_mode()
def test_less_memory_at_a_time(vae, latents):
    tiled = TiledVAE(vae, (16, 16), 4)
    growth = []
    for v in (vae, tiled):
        state = v.decode_chunk(latents[:, :, :1])[1]
        growth.append(peak_growth(lambda: v.decode_chunk(latents[:, :, 1:4], state)))
    assert growth[1] < .9 * growth[0]

def test_wrong_numbers_are_one_line(vae):
    with pytest.raises(ValueError, match="tiles of 8 cells with an overlap of 8"): TiledVAE(vae, (8, 8), 8)
