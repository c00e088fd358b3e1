"""The page and the API as an application of Ray Serve: replicas by load, on as many machines as the cluster has.

    serve run fid.runtime.serve.ray_app:build max_replicas=8 threads=2 token=A-TOKEN-OF-YOURS

Each replica is a server of its own, with its composer, its queue and its live videos. The media of a live video go
straight to the replica that answered its offer, so it stays there. Uploaded videos lie in a folder that all share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ..composer import Composer
from ..errors import FidError, InputError
from ..face.detect import MIN_SCORE
from ..labels.credentials import Signer
from .app import Server, warm_up
from .guard import Access
from .metrics import merged
from .picture import Labelling
from .worker import VIDEOS, Limits

if TYPE_CHECKING:
    from ray.serve import Application

NO_SERVE = "Ray Serve is not installed: `pip install 'fid-face[ray,web]'`."


@dataclass(frozen=True)
class Options:
    """What `serve run` takes as NAME=VALUE. Those that `fid-run serve` has, too, have its names and defaults."""

    bundle: str | None = None
    engine: str = "auto"
    require: str | None = None
    resolution: int | None = None
    min_confidence: float = MIN_SCORE
    refine: int | None = None
    threads: int = 1  # CPU threads, and CPUs of the cluster, of each replica
    gpus: float = 0.0  # of the cluster, of each replica
    min_replicas: int = 1
    max_replicas: int = 4
    target: float = 2.0  # requests at a time in a replica, for which replicas are added or taken away
    queue: int = 16  # requests at a time that a replica takes at most
    sessions: int = 2  # live videos of a replica
    upload_mb: float = 12.0
    megapixels: float = 50.0
    videos: str | None = None  # a folder that all replicas reach, for uploaded videos; without it none are taken
    video_mb: float = 100.0
    provenance: bool = True
    mark: bool = True
    badge: bool = False
    sign_cert: str | None = None
    sign_key: str | None = None
    token: str | None = None  # that is asked for, of 16 characters or more; "none": it answers on loopback only
    allow_host: str = ""  # further host names, with commas between
    root_path: str = ""

    def access(self) -> Access:
        """Return who may ask. Raises `InputError` where nobody said whether there is a token, and as `Access` does."""
        if self.token is None:
            raise InputError("give token=TOKEN, which is asked for, or token=none for a server on loopback only.")
        token = None if self.token == "none" else self.token
        names = tuple(filter(None, self.allow_host.split(",")))
        return Access("127.0.0.1" if token is None else "0.0.0.0", token, names, self.root_path)

    def limits(self) -> Limits:
        """Return what one replica takes on; of uploaded videos, what all together do. Raises as `Limits` does."""
        video_mb = 0.0 if self.videos is None else self.video_mb
        videos = VIDEOS * self.max_replicas
        return Limits(self.upload_mb, self.megapixels, self.sessions, video_mb, self.queue, videos)

    def label(self) -> Labelling:
        """Return what pictures say of themselves. Raises as `Signer.given` does."""
        certificate, key = (None if path is None else Path(path) for path in (self.sign_cert, self.sign_key))
        return Labelling(self.provenance, self.mark, self.badge, Signer.given(certificate, key))

    def composer(self) -> Composer:
        """Open the bundle."""
        more = {"threads": self.threads, "min_confidence": self.min_confidence, "refine": self.refine}
        return Composer(self.bundle, engine=self.engine, require=self.require, resolution=self.resolution, **more)


KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def parse_options(arguments: dict[str, Any]) -> Options:
    """Return what was given as `Options`, numbers and truth read from text. `InputError` for what cannot be."""
    import msgspec

    kinds = get_type_hints(Options)
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in kinds:
            raise InputError(
                f"there is no option {name}; known are {', '.join(field.name for field in fields(Options))}."
            )
        try:
            values[name] = msgspec.convert(value, kinds[name], strict=False)
        except msgspec.ValidationError:
            wanted = next((text for kind, text in KINDS.items() if kinds[name] in (kind, kind | None)), "a text")
            raise InputError(f"{name}={value} is not understood; give {wanted}.") from None
    return Options(**values)


def build(arguments: dict[str, Any]) -> Application:
    """Return the application for `serve run`, or for a config file of Ray Serve. Raises `FidError` without Ray Serve,
    `InputError` for unknown options."""
    try:
        from ray import serve
    except ImportError as error:
        raise FidError(NO_SERVE) from error
    options = parse_options(arguments)
    access, limits, label = options.access(), options.limits(), options.label()
    videos = None if options.videos is None else Path(options.videos)

    def app() -> Any:
        """In the replica: its server, with everything open."""
        own = serve.get_replica_context().replica_id.unique_id
        server = Server(options.composer(), access, limits, label, videos=videos)
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
