"""A slider over pictures that were drawn beforehand: it needs no kernel, so it also moves on the book's web page. `from _frames import slider`."""
import base64
import hashlib
import io
import json

PAGE = """<div style="max-width:46rem"><label>{title}: <input type="range" min="0" max="{last}" value="{start}" style="width:40%"
 oninput="var n=JSON.parse(this.dataset.names),p=document.getElementById('{key}').children;
 for(var i=0;i<p.length;i++)p[i].style.display=i==this.value?'block':'none';document.getElementById('{key}t').textContent=n[this.value]"
 data-names='{names}'></label> <b id="{key}t">{name}</b><div id="{key}">{pictures}</div></div>"""


def png(figure):
    "A figure as the text of a PNG; closes it."
    import matplotlib.pyplot as plt
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def slider(figures, title="", start=None):
    "HTML with a slider over {name: matplotlib figure}; shows the last one first unless `start` names another."
    from IPython.display import HTML
    names, key = list(figures), "f" + hashlib.sha256(repr([title, *figures]).encode()).hexdigest()[:8]
    first = len(names) - 1 if start is None else names.index(start)
    image = '<img alt="{}" style="width:100%;display:{}" src="data:image/png;base64,{}">'
    pictures = "".join(image.format(n, "block" if i == first else "none", png(f)) for i, (n, f) in enumerate(figures.items()))
    return HTML(PAGE.format(title=title, last=len(names) - 1, start=first, key=key, name=names[first], pictures=pictures,
                            names=json.dumps(names).replace("'", "&#39;")))
