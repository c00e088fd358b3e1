"""Content Credentials (C2PA): a signed manifest in a picture or video that says how it was made, and reading one.

The signature is made with the user's own certificate and key, offline, as the last thing that is done to a file: any
change after it, a note added for instance, breaks it. Inputs are named as ingredients and never contained: thumbnails,
which the library would make of them, are switched off.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FidError, InputError

MISSING = "c2pa-python is not installed, which signs and checks pictures: `pip install 'fid-face[c2pa]'`."
ALGORITHMS = ("es256", "ps256", "ed25519", "es384", "es512", "ps384", "ps512")  # tried in turn: the key knows its own
QUIET = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}
SIGNED = ("jpeg", "png", "webp", "gif", "mp4")  # kinds of file that can be signed


@dataclass(frozen=True)
class Signer:
    """The user's certificate and key."""

    certificate: bytes  # PEM: the certificate, then those that signed it
    key: bytes  # PEM, PKCS#8, without a password
    algorithm: str  # one of `ALGORITHMS`

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Signer:
        """Read both and try them. Raises `InputError` in a sentence when they do not make a signature, `FidError`
        when c2pa-python is missing."""
        parts = []
        for path in (certificate, key):
            try:
                parts.append(path.read_bytes())
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        c2pa, complaints = _c2pa(), {}
        for algorithm in ALGORITHMS:
            own = cls(parts[0], parts[1], algorithm)
            try:
                own._open(c2pa).close()
                own.sign(_SPECK, "png", "test", "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia")
            except (c2pa.C2paError, FidError) as error:
                complaints[algorithm] = str(error).rstrip(".")
            else:
                return own
        named = [text for text in complaints.values() if "private key" not in text] or list(complaints.values())
        raise InputError(f"{certificate} and {key} cannot sign for Content Credentials: {named[0]}.")

    @classmethod
    def given(cls, certificate: Path | None, key: Path | None) -> Signer | None:
        """Load what a user gave as sign_cert and sign_key; None for neither. Raises `InputError` for one without the
        other, and as `load` does."""
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            raise InputError("the certificate to sign with (sign-cert) and its key (sign-key) belong together.")
        return cls.load(certificate, key)

    def sign(self, data: bytes, kind: str, title: str, source_type: str, inputs: tuple[Path, ...] = ()) -> bytes:
        """Return the bytes of a finished file of a kind in `SIGNED` with a manifest; see `sign_stream`."""
        result = io.BytesIO()
        self.sign_stream(io.BytesIO(data), result, kind, title, source_type, inputs)
        return result.getvalue()

    def sign_stream(
        self, source: Any, result: Any, kind: str, title: str, source_type: str, inputs: tuple[Path, ...] = ()
    ) -> None:
        """Copy a finished file from one stream to another with a manifest: action "created" with an IPTC source type.

        `inputs`: files to name as ingredients; what credentials they have is carried over. `FidError` when it fails.
        """
        c2pa = _c2pa()
        action = {"action": "c2pa.created", "digitalSourceType": source_type}
        manifest = {
            "claim_generator_info": [{"name": "fid", "version": _version()}],
            "title": title,
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        try:
            context = c2pa.Context(settings=c2pa.Settings.from_dict(QUIET))
            with c2pa.Builder(manifest, context) as builder, self._open(c2pa) as signer:
                for path in inputs:
                    own = kind_of(path.read_bytes()[:16])
                    if own is not None:
                        with path.open("rb") as file:
                            told = {"title": path.name, "relationship": "inputTo"}
                            builder.add_ingredient(json.dumps(told), f"{_family(own)}/{own}", file)
                builder.sign(signer, f"{_family(kind)}/{kind}", source, result)
        except (c2pa.C2paError, OSError) as error:
            raise FidError(f"{title} could not be signed: {str(error).rstrip('.')}.") from error

    def _open(self, c2pa: Any) -> Any:
        info = c2pa.C2paSignerInfo(self.algorithm.encode(), self.certificate, self.key, None)
        return c2pa.Signer.from_info(info)


@dataclass(frozen=True)
class Credentials:
    """What the Content Credentials of a file say."""

    state: str  # "valid" (untouched, signer not on a list of trust), "trusted", "invalid"
    generator: str  # the program that made the claim
    signer: str  # whom the certificate names; "" where it says nothing
    source_type: str  # IPTC digital source type of the action "created"; "" without
    ingredients: int  # how many
    complaints: tuple[str, ...]  # codes of what does not hold


def read_credentials(file: BinaryIO) -> Credentials | None:
    """Return the Content Credentials of an open file; None where it holds none. `FidError` when c2pa-python is
    missing."""
    c2pa, kind = _c2pa(), kind_of(file.read(16))
    file.seek(0)
    if kind is None:
        return None
    try:
        reader = c2pa.Reader(f"{_family(kind)}/{kind}", file, None, c2pa.Context.from_dict(QUIET))
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        return Credentials("invalid", "", "", "", 0, (str(error),))
    with reader:
        told, state = json.loads(reader.json()), str(reader.get_validation_state() or "invalid").lower()
    manifest = told["manifests"].get(told.get("active_manifest"), {})
    generator = next((info.get("name", "") for info in manifest.get("claim_generator_info", [])), "")
    actions = [
        action
        for assertion in manifest.get("assertions", [])
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    made = next((action.get("digitalSourceType", "") for action in actions if action["action"] == "c2pa.created"), "")
    complaints = tuple(one["code"] for one in told.get("validation_status", []))
    signer = manifest.get("signature_info", {}).get("common_name", "")
    return Credentials(state, generator, signer, made, len(manifest.get("ingredients", [])), complaints)


def kind_of(head: bytes) -> str | None:
    """Which of `SIGNED` a file is, by its first 16 bytes; None for any other."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG"):
        return "png"
    if head.startswith(b"GIF8"):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "mp4" if head[4:8] == b"ftyp" else None


def _family(kind: str) -> str:
    return "video" if kind == "mp4" else "image"


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise FidError(MISSING) from error
    return c2pa


def _version() -> str:
    from ..assets import installed_version

    return installed_version() or "unknown"


_SPECK = bytes.fromhex(  # a PNG of one grey pixel, to try a certificate on
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6368000000820081dd436af40000000049454e44ae426082"
)
