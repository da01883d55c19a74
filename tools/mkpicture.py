"""The moving picture of the front page, assets/hello.webp, made by the shipped weights; a note beside it keeps their hashes. `--check` only compares these, for CI.

    python tools/mkpicture.py [--preset nano] [--seconds 4]"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
picture, note = root / "assets" / "hello.webp", root / "assets" / "hello.json"
FACES = dict(ada="a person, calm, smiling", robo="a robot, calm", tama="a cat, happy", ember="a fire spirit, happy")


def hashes(preset):
    "Short hashes of the weights that draw the picture."
    folder = root / "liveavatar_nb" / "weights"
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest()[:12] for f in sorted(folder.glob("*.safetensors")) if f.stem in (f"{preset}_student", f"{preset}_vae", "nano_vae")}


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--preset", default="nano"); args.add_argument("--seconds", type=float, default=4.); args.add_argument("--check", action="store_true")
    args = args.parse_args()
    if args.check:
        made = json.loads(note.read_text()) if note.exists() else {}
        if not picture.exists() or made.get("weights") != hashes(made.get("preset", args.preset)): sys.exit("assets/hello.webp is older than the weights: run `python tools/mkpicture.py` and commit")
        return
    import numpy as np
    from PIL import Image

    from liveavatar_nb.data.audio import load_audio
    from liveavatar_nb.stream.avatar import LiveAvatar
    avatar, voice = LiveAvatar.from_pretrained(args.preset), load_audio(root / "data/samples/hello.wav")[:int(args.seconds * 16000)]
    films = []
    for name, prompt in FACES.items():
        stream = avatar.stream(root / f"data/samples/{name}.png", prompt=prompt, seed=0)
        films.append(np.concatenate([c.frames for c in (*stream.push(voice), *stream.flush())])[::2])
    rows = [Image.fromarray(np.concatenate(f, 1)) for f in zip(*films)]
    frames = [f.resize((768, 768 * f.height // f.width), Image.LANCZOS) for f in rows]
    frames[0].save(picture, save_all=True, append_images=frames[1:], duration=80, loop=0, quality=80, method=4)
    note.write_text(json.dumps(dict(preset=args.preset, seconds=args.seconds, weights=hashes(args.preset)), indent=1) + "\n")
    print(f"wrote assets/{picture.name}: {picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
