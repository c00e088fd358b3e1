"""The page and the API as an application of Ray Serve: replicas by load, on as many machines as the cluster has.

    serve run fid.runtime.serve.ray_app:build max_replicas=8 threads=2 token=A-TOKEN-OF-YOURS

Each replica is a server of its own, with its composer, its queue and its live videos. The media of a live video go
straight to the replica that answered its offer, so it stays there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..composer import Composer
from ..errors import FidError, InputError
from ..weights.records import convert
from .app import Server, warm_up
from .guard import Access
from .metrics import merged
from .worker import Limits

if TYPE_CHECKING:
    from ray.serve import Application

NO_SERVE = "Ray Serve is not installed: `pip install 'fid-face[ray,web]'`."


@dataclass(frozen=True)
class Options:
    """What `serve run` takes as NAME=VALUE."""

    bundle: str | None = None
    engine: str = "auto"
    threads: int = 1  # CPU threads, and CPUs of the cluster, of each replica
    gpus: float = 0.0  # of the cluster, of each replica
    min_replicas: int = 1
    max_replicas: int = 4
    target: float = 2.0  # requests at a time in a replica, for which replicas are added or taken away
    queue: int = 16  # requests at a time that a replica takes at most
    sessions: int = 2  # live videos of a replica
    token: str | None = None  # that is asked for, of 16 characters or more; "none": it answers on loopback only
    allow_host: str = ""  # further host names, with commas between


def parse_options(arguments: dict[str, Any]) -> Options:
    """Return what was given as `Options`, numbers read from text. `InputError` for what cannot be."""
    known = {field.name: field for field in fields(Options)}
    for name in arguments:
        if name not in known:
            raise InputError(f"there is no option {name}; known are {', '.join(known)}.")
    kinds = {"int": int, "float": float}
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        kind = kinds.get(str(known[name].type), str)
        try:
            values[name] = kind(value) if isinstance(value, str) else value
        except ValueError:
            raise InputError(f"{name}={value} is not understood; give a number.") from None
    return convert(values, Options, lambda why: InputError(f"the options of Ray Serve {why}."))


def build(arguments: dict[str, Any]) -> Application:
    """Return the application for `serve run`, or for a config file of Ray Serve. Raises `FidError` without Ray Serve,
    `InputError` for unknown options."""
    try:
        from ray import serve
    except ImportError as error:
        raise FidError(NO_SERVE) from error
    options = parse_options(arguments)
    if options.token is None:
        raise InputError("give token=TOKEN, which is asked for, or token=none for a server on loopback only.")
    token = None if options.token == "none" else options.token
    names = tuple(filter(None, options.allow_host.split(",")))
    access = Access("127.0.0.1" if token is None else "0.0.0.0", token, names)

    def app() -> Any:
        """In the replica: its server, with everything open."""
        own = serve.get_replica_context().replica_id.unique_id
        composer = Composer(options.bundle, engine=options.engine, threads=options.threads)
        server = Server(composer, access, Limits(queue=options.queue, sessions=options.sessions))
        text = server.metrics.text
        server.metrics.text = lambda: merged([(own, text())], "replica")  # type: ignore[method-assign]
        warm_up(server)
        return server.app()

    class Replica:
        """A replica; what it answers is the application above."""

    Replica.__name__ = "fid"
    deployment = serve.deployment(
        serve.ingress(app)(Replica),
        max_ongoing_requests=options.queue,
        ray_actor_options={"num_cpus": options.threads, "num_gpus": options.gpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target,
        },
    )
    return deployment.bind()
