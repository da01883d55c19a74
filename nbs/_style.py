"""One look for all figures of the book: colours that colour-blind readers can tell apart (Okabe and Ito), letters that can be read on a phone,
and the few shapes that drawings are made of. `from _style import *` in a chapter."""
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#222222", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#767676")
CYCLE = [BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY]
NOISE = LinearSegmentedColormap.from_list("noise", ["#FFFFFF", "#BBD7EA", "#0072B2", "#08304A"])   # sigma 0 is white, 1 is dark: also right in grey
WIDTH = 6.4   # inches. A page of the book shows it at full width, a phone of 420 px at 60 %

plt.rcParams.update({
    "figure.figsize": (WIDTH, 3.), "figure.dpi": 100, "savefig.dpi": 100, "font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11,
    "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.prop_cycle": plt.cycler(color=CYCLE), "lines.linewidth": 1.8, "figure.constrained_layout.use": True})


def canvas(width=10, height=4, scale=WIDTH / 10):
    "An empty sheet of `width` by `height` units to draw on; one unit is `scale` inches."
    fig = plt.figure(figsize=(width * scale, height * scale), layout="none")
    ax = fig.add_axes([0, 0, 1, 1]); ax.set(xlim=(0, width), ylim=(0, height)); ax.axis("off")
    return ax


def box(ax, x, y, w, h, text="", color=BLUE, fill=.15, size=11, **text_args):
    "A rounded box with its lower left corner at (x, y); returns its centre."
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=.12", fc=(*plt.matplotlib.colors.to_rgb(color), fill), ec=color, lw=1.4))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", size=size, color=INK, **text_args)
    return x + w / 2, y + h / 2


def arrow(ax, a, b, text="", color=INK, bend=0., size=10, style="-|>", dashed=False, above=.13):
    "An arrow from point a to point b, with a word above its middle."
    ax.add_patch(FancyArrowPatch(a, b, arrowstyle=style, mutation_scale=13, color=color, lw=1.4, shrinkA=2, shrinkB=2,
                                 connectionstyle=f"arc3,rad={bend}", linestyle="--" if dashed else "-"))
    if text: ax.text((a[0] + b[0]) / 2, (a[1] + b[1]) / 2 + above, text, ha="center", va="bottom", size=size, color=color)


def note(ax, x, y, text, size=10, color=INK, **args):
    "Words on the sheet."
    ax.text(x, y, text, size=size, color=color, **{"ha": "center", "va": "center", **args})


def shade(sigma):
    "The fill of a noise level in [0, 1] and the colour of letters on it."
    return NOISE(sigma), ("white" if sigma > .45 else INK)


def strip(pictures, titles=None, columns=None, size=1.25):
    "A row (or rows) of pictures (H, W, 3), each under its title."
    columns = columns or len(pictures); rows = -(-len(pictures) // columns)
    fig, axs = plt.subplots(rows, columns, figsize=(size * columns, (size + .28 * bool(titles)) * rows), squeeze=False)
    for ax in axs.flat: ax.axis("off")
    for i, (ax, p) in enumerate(zip(axs.flat, pictures)):
        ax.imshow(p)
        if titles: ax.set_title(titles[i], fontsize=10)
    return fig
