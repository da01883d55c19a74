"""Sheets of drawn characters for the chapters about the world. `from _sheet import show, look, channels`."""
import io

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image


def show(pictures, columns, labels=None, rows=None, inch=.95):
    "A sheet of pictures, with names of columns and rows if they are given."
    n = -(-len(pictures) // columns)
    fig, axes = plt.subplots(n, columns, figsize=(inch * columns, inch * n), squeeze=False, layout="none")
    for i, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[]); ax.spines[:].set_visible(False)
        if i < len(pictures): ax.imshow(pictures[i])
        if labels and i < columns: ax.set_title(labels[i], fontsize=10, pad=2)
        if rows and i % columns == 0: ax.set_ylabel(rows[i // columns].replace("_", "\n"), fontsize=10)
    fig.subplots_adjust((.5 if any("_" in r for r in rows) else .36) / (inch * columns) if rows else 0, 0, 1, 1 - .22 / (inch * n) if labels else 1, .02, .02)
    file = io.BytesIO(); fig.savefig(file, format="jpeg", dpi=90, pil_kwargs=dict(quality=88)); plt.close(fig)
    return Image(file.getvalue(), format="jpeg")


def channels(motion):
    "A motion (T, 15) by the names of its channels, as `Head` wants it."
    from liveavatar_nb.data.world import MOTION_CHANNELS
    return dict(zip(MOTION_CHANNELS, np.asarray(motion, np.float32).T))


def look(draw, seeds, motion=None, size=96, species=0):
    "Paint characters straight from a draw function, on grey."
    from liveavatar_nb.data.cast import Head
    from liveavatar_nb.data.painter import _paint
    from liveavatar_nb.data.world import random_identity, rest_motion
    pictures = []
    for s in seeds:
        h = Head(random_identity(s, species), channels(rest_motion() if motion is None else motion)); draw(h)
        out = np.empty((h.n, size, size, 3), np.uint8)
        _paint(h.table(), np.full((3, size, size), .5, np.float32), out); pictures.append(out[0])
    return pictures
