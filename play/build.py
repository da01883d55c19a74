"""`make play`: the page, its player and the graphs of pico and nano into play/dist, complete or not at all. Needs npm (onnxruntime-web, pinned)."""
import argparse
import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
root = here.parent
PAGE = ("index.html", "about.html", "style.css", "page.js", "worker.js", "stream.js", "capture.js")
SHARED = root / "liveavatar_nb" / "demo" / "js" / "crop.js"     # the demo chooses a picture's square in the same way
OFFLINE = "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH"
FACES = ("ada", "robo", "tama", "ember")


class Offline(SystemExit):
    "npm's registry can't be reached."


def runtime(folder):
    "onnxruntime-web from npm; the player's program is packed, any static server then sends a quarter of the bytes."
    if not shutil.which("npm"):
        sys.exit("make play needs npm (it comes with Node.js): install it, or use the demo, which needs none")
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(here / name, scratch)
        done = subprocess.run(["npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=scratch, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            kind = Offline if re.search(OFFLINE, done.stderr) else SystemExit
            raise kind(f"make play: npm could not fetch onnxruntime-web ({' '.join(done.stderr.split())[:300]})")
        source = Path(scratch) / "node_modules" / "onnxruntime-web"
        folder.mkdir()
        for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs"):
            shutil.copy(source / "dist" / name, folder)
        (folder / "ort-wasm-simd-threaded.wasm.gz").write_bytes(gzip.compress((source / "dist" / "ort-wasm-simd-threaded.wasm").read_bytes(), 9, mtime=0))
        version = json.loads((source / "package.json").read_text())["version"]
        (folder / "README.txt").write_text(f"onnxruntime-web {version}, MIT licence, https://github.com/microsoft/onnxruntime\n")


def models(folder, presets, bits, given):
    "The graphs, and the sample portraits' latents beside them."
    import torch
    from liveavatar_nb.serve.export import export_onnx, ours
    from liveavatar_nb.stream.avatar import LiveAvatar
    from liveavatar_nb.train.vae import to_video
    for preset in presets:
        ready = Path(given) / preset if given else None
        if ready and ours(ready):
            shutil.copytree(ready, folder / preset)
        else:
            report = export_onnx(folder / preset, preset, bits=bits)
            print(f"{preset}: {report['bytes'] / 1e6:.1f} MB, within {report['largest_difference']:.1e} of PyTorch")
        avatar = LiveAvatar.from_pretrained(preset)
        with torch.inference_mode():
            latents = {f: avatar.vae.encode(to_video(avatar.portrait(root / "data" / "samples" / f"{f}.png")[None]))[0, :, 0].numpy() for f in FACES}
        text = json.dumps(dict(latents={f: base64.b64encode(x.astype("<f4").tobytes()).decode() for f, x in latents.items()}))
        (folder / preset / "faces.json").write_text(text)


def build(out, presets=("pico", "nano"), bits="auto", given=None):
    "Everything into a folder beside `out`, then in its place."
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made.chmod(0o755)
        for name in PAGE:
            shutil.copy(here / name, made)
        shutil.copy(SHARED, made)
        shutil.copy(root / "data" / "samples" / "hello.wav", made)
        (made / "faces").mkdir()
        for f in FACES:
            shutil.copy(root / "data" / "samples" / f"{f}.png", made / "faces")
        runtime(made / "ort")
        (made / "models").mkdir()
        models(made / "models", presets, bits, given)
        old = made.with_name(made.name + ".old")
        if out.exists():
            os.replace(out, old)
        os.replace(made, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    print(f"{out}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB. Serve it: python play/serve.py")


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=Path, default=here / "dist")
    args.add_argument("--bits", default="auto", help="weights on the wire: 8, 16 or auto (as small as loses nothing)")
    args.add_argument("--models", help="a folder with exports PRESET/ to take instead of making them")
    a = args.parse_args()
    build(a.out.resolve(), bits=int(a.bits) if a.bits.isdigit() else a.bits, given=a.models)
