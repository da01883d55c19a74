"""The server of chapter 71 on many machines: its sessions as a Ray Serve deployment, behind the same websocket messages.

    ray start --head                                        # on the first machine; `ray start --address FIRST:6379` on the others
    python integrations/ray_serve.py --preset nano --replicas 4 --limit 8

A connection stays on the replica that accepted it. A replica takes `limit` sessions; when all are full, or when a replica dies, those whom
it concerns get one `error` message that ends their session, and nobody else notices. Chapter 73 explains it. Needs Ray in the environment
of each machine: pip install 'liveavatar-nb[ray]'."""
import asyncio
import secrets
import sys
import threading

import torch
import typer
from ray import cloudpickle, serve
from ray.serve.config import HTTPOptions, ProxyLocation
from starlette.middleware import Middleware

from liveavatar_nb.serve.plugs import LastWords
from liveavatar_nb.serve.server import House, make_app
from liveavatar_nb.stream.avatar import LiveAvatar

cloudpickle.register_pickle_by_value(sys.modules[__name__])         # the other machines need the package, not this file


def application(make_avatar, token: str = None, replicas: int = 2, limit: int = 8, cpus: float = 1., gpus: float = 0., per_node: int = None,
                **options):
    """The application and its token, for `start`. `make_avatar()` gives a LiveAvatar, in each replica; `limit`: sessions in a replica;
    `cpus`, `gpus`: what a replica reserves; `per_node`: most replicas on a machine; `options`: as for `House` (idle, stall, brain, ...)."""
    token = secrets.token_urlsafe(16) if token is None else token

    class Avatars:
        house = None                                                # one process, one house

        def __init__(self):
            Avatars.house = House(make_avatar(), token, limit, **options).warm()

        async def check_health(self):
            "Ray asks every ten seconds, and replaces a replica whose threads or device don't answer."
            device = Avatars.house.avatar.device
            await asyncio.wrap_future(Avatars.house.pool.submit(lambda: float(torch.ones(1, device=device))))

    served = serve.ingress(lambda: make_app(Avatars.house))(Avatars)
    return serve.deployment(served, num_replicas=replicas, max_ongoing_requests=limit, max_replicas_per_node=per_node,
                            ray_actor_options=dict(num_cpus=cpus, num_gpus=gpus)).bind(), token


def start(app, host: str = "127.0.0.1", port: int = 8870, patience: float = 10., every_node: bool = True):
    """Serve an `application` on the cluster that this process is connected to; a proxy on every machine, or only on the first. Where Serve
    runs already it keeps its port and its options, and `LastWords` is left out (Ray warns of it): `serve shutdown` first."""
    serve.start(ProxyLocation.EveryNode if every_node else ProxyLocation.HeadOnly,
                HTTPOptions(host=host, port=port, middlewares=[Middleware(LastWords, patience=patience)]))
    serve.run(app, name="liveavatar", route_prefix="/")


def main(preset: str = "nano", host: str = "127.0.0.1", port: int = 8870, token: str = None, replicas: int = 2, limit: int = 8, cpus: float = 1.,
         gpus: float = 0., weights: str = None):
    "Serve sessions from a Ray cluster until Ctrl+C."
    app, token = application(lambda: LiveAvatar.from_pretrained(preset, weights=weights), token, replicas, limit, cpus, gpus)
    start(app, host, port)
    print(f"ws://{host}:{port}/v1/session  token: {token}  page: http://{host}:{port}/docs", flush=True)
    try:
        threading.Event().wait()
    finally:
        serve.shutdown()


if __name__ == "__main__":
    typer.run(main)
