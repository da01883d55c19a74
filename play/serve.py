"""A static server for play/dist on this computer alone, with the two headers that give the page its threads (`--plain`: without them)."""
import argparse
import functools
import http.server
import sys
from pathlib import Path

ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".gz": "application/octet-stream"}
    headers_too = ISOLATED

    def end_headers(self):
        for name, value in {**self.headers_too, "Cache-Control": "no-cache"}.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_): pass


def server(folder, port=0, plain=False):
    "A server that is not running yet; its port is `.server_address[1]`."
    handler = type("Handler", (Handler,), dict(headers_too={} if plain else ISOLATED))
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(handler, directory=str(folder)))


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent / "dist")
    args.add_argument("--port", type=int, default=8870)
    args.add_argument("--plain", action="store_true", help="without the headers: one thread")
    a = args.parse_args()
    if not (a.folder / "index.html").exists():
        sys.exit(f"{a.folder} holds no page: make play")
    try:
        s = server(a.folder, a.port, a.plain)
    except (OSError, OverflowError) as e:
        sys.exit(f"port {a.port} can't be used ({e}): choose another with --port")
    print(f"http://127.0.0.1:{s.server_address[1]}/ (Ctrl+C ends it)", flush=True)
    try:
        s.serve_forever()
    except KeyboardInterrupt:
        pass
