"""The identity encoder E_id that a command is told to use: SFace, a file of the user's, or several joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from ..networks.exported import BundleIdentity
from ..networks.sface import SFace
from ..networks.vggface2 import JoinedEncoder, VGGFace2
from .checkpoint import read_record
from .from_vggface2 import read_vggface2

SFACE = "sface"  # what stands for it among files


@dataclass(frozen=True)
class IdentityEncoder:
    """An identity encoder in the place of SFace. Frozen."""

    network: VGGFace2 | JoinedEncoder | BundleIdentity  # crop [N, 3, S, S] in [-1, 1] -> unit codes [N, code_size]
    name: str  # the same name, the same codes
    origin: dict[str, Any]  # what it is made of, for bundle.json


def load_identity_encoder(files: Sequence[Path]) -> IdentityEncoder | None:
    """Return the encoder of a user's file, or several joined in this order, `sface` among them; None for no file and
    for SFace alone.

    Raises InputError and FidError as `read_vggface2`.
    """
    if not files or [str(file) for file in files] == [SFACE]:
        return None
    networks, origins = [], []
    for file in files:
        if str(file) == SFACE:
            networks.append(SFace.load())
            origins.append({"kind": "SFace"})
        else:
            network, origin = read_vggface2(file)
            networks.append(network)
            origins.append(origin)
    name = " + ".join(" ".join((o["kind"], o["sha256"][:16])) if "sha256" in o else o["kind"] for o in origins)
    network = networks[0] if len(networks) == 1 else JoinedEncoder(networks)
    return IdentityEncoder(network, name, {"kind": name, "code_size": network.code_size, "parts": origins})


def check_identity_encoder(checkpoint: Path, encoder: IdentityEncoder | None) -> None:
    """Raise InputError when a run or checkpoint of `fid-train fit` was trained with another identity encoder."""
    before, now = read_record(checkpoint).get("identity_encoder"), None if encoder is None else encoder.name
    if before != now:
        raise InputError(
            f"{checkpoint} was trained with the identity encoder {before or 'SFace'}, not {now or 'SFace'}: name its "
            f"{'file with' if before else 'run without'} --identity-encoder."
        )
