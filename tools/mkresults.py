"""docs/results.md from the records in results/: every figure with its command, commit, device and date. `--check` only compares, for CI."""
import json
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
page = root / "docs" / "results.md"
EXAM = [("correlation", "mouth", 2), ("lag", "lag", 0), ("identity", "identity", 2), ("retrieval", "found among 64", 2), ("mood", "mood", 2), ("sharpness", "sharpness", 2),
        ("flicker", "flicker", 2), ("variance_head", "head moves", 2), ("frechet", "Fréchet", 1), ("evaluations", "evaluations a block", 0), ("seconds_per_block", "s a block", 2)]
LONG = ["sync", "identity", "distance", "sharpness", "motion"]


def load(name):
    path = root / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)])


def number(value, digits):
    if not isinstance(value, (int, float)) or isinstance(value, bool): return "–"
    return f"{value:.{digits}f}".replace("-", "−") if abs(value) < 1e5 else f"{value:.2g}"


def source(name, record):
    return f"[results/{name}.json](../results/{name}.json), {record.get('date', '')[:10]}, commit `{record.get('commit', '')[:8]}`, {record.get('device', '')}:\n\n```sh\n{record.get('command', '')}\n```"


def exam(name, record):
    "A table of a genbench record; its rows carry their own names."
    result = record["result"]; rows = []
    for r in result["rows"]:
        title = next((str(r[k]) for k in ("name", "row", "what", "title") if k in r), None) or " ".join(str(v) for k, v in r.items() if isinstance(v, str))
        rows.append([title] + [number(r.get(k), d) for k, _, d in EXAM])
    about = f"{result.get('clips', '?')} clips of {number(result.get('seconds'), 1)} s, preset `{result.get('preset', '?')}`."
    return f"### {name}\n\n{about}\n\n{table(['', *(t for _, t, _ in EXAM)], rows)}\n\n{source(name, record)}"


def long_run(name, record):
    "How the last window of a long film compares with the first."
    result = record["result"]; rows = []
    for title, r in result.get("rows", {"": result}).items():
        if "first" in r: rows.append([title or f"`{r.get('preset')}`, {r['seconds']:,.0f} s", *(f"{number(r['first'].get(k), 2)} → {number(r['last'].get(k), 2)}" for k in LONG), number(r.get("colour_moved"), 1)])
    return f"### {name}\n\n{table(['first → last window', *LONG, 'colour moved, ΔE'], rows)}\n\n{source(name, record)}" if rows else None


def speed(name, record):
    r = record["result"]; names = [("fps", "frames/s", 1), ("ttff_s", "first frame, s", 2), ("block_ms_median", "a block, ms", 1), ("block_ms_p95", "p95, ms", 1), ("rss_mb", "memory, MB", 0), ("threads", "threads", 0)]
    return f"### {name}\n\n{table([t for _, t, _ in names], [[number(r.get(k), d) for k, _, d in names]])}\n\n{source(name, record)}"


def build():
    "The text of the page."
    parts, seen = ["# Results", "<!-- built from results/ by tools/mkresults.py: run `make readme` -->",
                   "Everything here is read from the records in `results/` when this page is built. How to read the columns: chapter [50 metrics](../nbs/50_eval.metrics.ipynb). *Mouth* is the correlation "
                   "of the mouth in the film with the true mouth (1 is perfect; the row of the VAE alone is the ceiling), *head moves* the variance of the head against the true one (1 is right)."], set()
    for title, begin, draw in (("The exam", "genbench", exam), ("For ever", "endurance", long_run), ("Speed", "stream", speed)):
        parts.append(f"## {title}")
        for path in sorted((root / "results").glob(f"{begin}_*.json")) + sorted((root / "results").glob(f"{begin}.json")):
            record = load(path.stem)
            try: text = draw(path.stem, record)
            except (KeyError, TypeError, AttributeError): text = None
            if text: parts.append(text); seen.add(path.stem)
    rest = [(p.stem, load(p.stem)) for p in sorted((root / "results").glob("*.json")) if p.stem not in seen]
    parts += ["## All other records", table(["record", "date", "device", "command"], [[f"[{n}](../results/{n}.json)", r.get("date", "")[:10], r.get("device", ""), f"`{str(r.get('command', '')).replace('|', '/')}`"]
                                                                                     for n, r in rest if isinstance(r, dict)])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        if not page.exists() or page.read_text(encoding="utf-8") != build(): sys.exit("docs/results.md is older than the records in results/: run `make readme` and commit")
    else:
        page.parent.mkdir(exist_ok=True); page.write_text(build(), encoding="utf-8"); print("wrote docs/results.md")
