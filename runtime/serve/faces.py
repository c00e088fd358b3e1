"""What a form says about faces becomes identities, attribute codes and pictures: photos, files, and faces that ship."""

from __future__ import annotations

import asyncio
import base64
import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..assets import shipped_faces
from ..composer import Composer
from ..errors import InputError
from ..face.detect import choose_face
from ..identity import Identity, average
from ..interpolate import SPACES, mixed_w
from ..media.decoder import Decoder
from ..media.images import PICTURE_SUFFIXES, TooLargeError, UnknownFormatError, encode_image
from ..read_labels import labels_of
from ..timing import stage
from ..weights import catalogue
from .form import Form, Upload
from .guard import RefusedError
from .picture import Labelling, Settings
from .worker import Limits, Worker

MAX_PHOTOS = 8  # of one person in one request
MAX_CODE_BYTES = 1 << 16  # of an attribute code as .npy; a real one has 2 kB
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
KINDS = {"identities": "identity", "attributes": "attributes"}  # lists of faces that ship, and how their files begin
COMPOSE_FIELDS = (
    "identity", "identity_to", "identity_mix", "identity_face", "attributes", "attributes_to", "attributes_mix", "face",
    "space", "format", "resolution", "pose", "expression",
)  # fmt: skip


class Faces:
    """Reads faces out of forms, and composes pictures of them."""

    def __init__(self, composer: Composer, worker: Worker, limits: Limits, label: Labelling) -> None:
        """`label`: what every picture says about itself."""
        self._composer, self._worker, self._limits, self._label = composer, worker, limits, label
        self._decoder, self._checking = Decoder(), asyncio.Lock()
        self._composers = {composer.resolution: composer}
        self._shipped: dict[str, Any] = {}  # codes of the faces that ship, by file name, made when first asked for

    async def identity(self, form: Form, field: str, face: str) -> Identity:
        """Return the identity under `field`, the average where it is there several times; `face`: the field with the
        number of the face. `RefusedError` or `InputError` names the photo that cannot be used."""
        values = form.values(field)
        if not 1 <= len(values) <= MAX_PHOTOS:
            raise RefusedError(400, f"{field} is needed once to {MAX_PHOTOS} times; it is there {len(values)} times.")
        number, run = form.number(face), self._worker.run
        identities = []
        for at, value in enumerate(values):
            name = _called(field, at, values)
            if isinstance(value, str):
                identities.append(await run(self.shipped_identity, value))
            elif value.data[:2] == b"PK":  # an .npz is a ZIP file
                identities.append(await run(self._known_identity, value.data, name))
            else:
                crop = await self._crop(value.data, name, number)
                identities.append(await run(partial(self._composer.identity_of, crop, refine=True)))
        return average(identities)

    async def settings(self, told: Any, now: Settings) -> Settings:
        """Return settings `now` with what the page told, all or none of it: `RefusedError` or `FidError` for what
        cannot be."""
        if not isinstance(told, dict):
            raise RefusedError(400, "settings are a JSON object.")
        simple = Settings.__dataclass_fields__.keys() - {"people"}
        unknown = told.keys() - simple - {"identity", "identity_to"}
        if unknown:
            raise RefusedError(400, f"there is no setting {min(unknown)[:40]!r}.")
        people = now.people
        if told.keys() & {"identity", "identity_to"}:
            people = await self._worker.run(self._identities, told, people)
        return replace(now, people=people, **{name: value for name, value in told.items() if name in simple})

    def _identities(self, settings: dict[str, Any], people: tuple[Identity, ...]) -> tuple[Identity, ...]:
        """In the worker's thread: who is meant, the others as they were. `identity_to` None takes the second away."""
        first, second = people[:1], people[1:]
        if "identity" in settings:
            first = (self._identity(settings["identity"]),)
        if "identity_to" in settings:
            second = () if settings["identity_to"] is None else (self._identity(settings["identity_to"]),)
        if second and not first:
            raise RefusedError(400, "identity_to needs identity, to go from there.")
        return (*first, *second)

    def _identity(self, value: Any) -> Identity:
        """The name of a face that ships, or {"npz": an identity file in base64}."""
        if isinstance(value, str):
            return self.shipped_identity(value)
        text = value.get("npz") if isinstance(value, dict) else None
        try:
            data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except ValueError:
            data = b""
        if not data:
            raise RefusedError(400, 'an identity is the name of a face that ships, or {"npz": base64}.')
        return self._known_identity(data, "the identity")

    async def places(self, form: Form, field: str) -> dict[str, Any]:
        """Return the faces in the photo under `field`, counted from 1 by size, with their places in parts of the
        photo's sides, and whether each can be used. Raises as `identity` does."""
        values = form.values(field)
        if len(values) != 1 or isinstance(values[0], str):
            raise RefusedError(400, f"{field} is one photo.")
        name = _called(field, 0, values)
        image = await asyncio.to_thread(self._decoded, values[0].data, name)
        found = await self._worker.run(self._composer.detector.faces, image)
        height, width = image.shape[:2]
        told = []
        for number, face in enumerate(found, 1):
            left, top, wide, high = face.box
            box = [round(part, 4) for part in (left / width, top / height, wide / width, high / height)]
            told.append({"number": number, "box": box, "confidence": round(face.score, 3), "problem": None})
            try:
                choose_face(found, number, name)
            except InputError as error:
                told[-1]["problem"] = str(error)
        return {"width": width, "height": height, "faces": told}

    async def labels(self, form: Form, field: str) -> dict[str, Any]:
        """Return which of fid's labels the picture under `field` bears, as `fid-run check --json` tells it. Raises as
        `places` does. One at a time, beside the worker: all sizes of the mark take seconds."""
        values = form.values(field)
        if len(values) != 1 or isinstance(values[0], str):
            raise RefusedError(400, f"{field} is one photo.")
        data, name = values[0].data, _called(field, 0, values)
        image = await asyncio.to_thread(self._decoded, data, name)
        async with self._checking:
            return (await asyncio.to_thread(labels_of, data, values[0].name or name, image)).report()

    async def attributes(self, form: Form, field: str, face: str) -> np.ndarray:
        """Return the attribute code under `field`, float32 [attributes_size]. Raises as `identity` does."""
        values = form.values(field)
        if len(values) != 1:
            raise RefusedError(400, f"{field} is needed once; it is there {len(values)} times.")
        value, name = values[0], _called(field, 0, values)
        if isinstance(value, str):
            return await self._worker.run(self._shipped_attributes, value)
        if value.data[:6] == b"\x93NUMPY":
            return self._known_attributes(value.data, name)
        crop = await self._crop(value.data, name, form.number(face))
        return await self._worker.run(self._composer.attribute_code, crop)

    async def picture(self, form: Form) -> tuple[bytes, str]:
        """Return the bytes and the media type of the picture that a form with `COMPOSE_FIELDS` asks for."""
        suffix = "." + form.text("format", "png")
        if suffix not in PICTURE_SUFFIXES:
            raise RefusedError(400, f"there is no format {suffix[1:41]!r}; there are png, jpeg and webp.")
        space = form.text("space", "w")
        if space not in SPACES:
            raise RefusedError(400, f"there is no space {space[:40]!r}; there are {' and '.join(SPACES)}.")
        s, t, controls = form.mix("identity"), form.mix("attributes"), form.controls()
        composer = await self._worker.run(self._at, form.number("resolution"))
        people = [await self.identity(form, "identity", "identity_face")]
        codes = [await self.attributes(form, "attributes", "face")]
        if s is not None:
            people.append(await self.identity(form, "identity_to", "identity_face"))
        if t is not None:
            codes.append(await self.attributes(form, "attributes_to", "face"))
        note = composer.note("interpolation" if len(people) + len(codes) > 2 else "composition")

        def draw() -> bytes:
            followed = [composer.controlled(code, controls) for code in codes]
            image = composer.image(mixed_w(composer, people, followed, s or 0.0, t or 0.0, space))
            with stage("encode"):
                return encode_image(image, suffix, self._label.note(note))

        return await self._worker.run(draw), MEDIA_TYPES[suffix]

    def _at(self, resolution: int | None) -> Composer:
        """The composer of pictures of that side, in px; the server's own without one."""
        resolution = resolution or self._composer.resolution
        if resolution not in self._composers:
            composer = self._composer.at(resolution)
            if catalogue.status("generator").state != "present" and resolution != composer.bundle.resolution:
                raise InputError(
                    f"the server has no generator for {resolution} px; `fid-run models fetch generator` brings it."
                )
            self._composers[resolution] = composer
        return self._composers[resolution]

    def shipped_identity(self, name: str) -> Identity:
        """Return the identity of a face that ships; in the worker's thread only."""
        path = shipped_face("identities", name)
        if path.name not in self._shipped:
            self._shipped[path.name] = self._composer.identify(path)
        return self._shipped[path.name]

    def _shipped_attributes(self, name: str) -> np.ndarray:
        path = shipped_face("attributes", name)
        if path.name not in self._shipped:
            self._shipped[path.name] = self._composer.attribute_code(self._composer.crop(path))
        return self._shipped[path.name]

    def _known_identity(self, data: bytes, name: str) -> Identity:
        return self._composer.identify(Identity.from_bytes(data, name))

    def _known_attributes(self, data: bytes, name: str) -> np.ndarray:
        """An attribute code that this server gave out before, float32 [attributes_size]."""
        wanted = (self._composer.bundle.attributes_size,)
        try:
            code = np.load(io.BytesIO(data), allow_pickle=False) if len(data) <= MAX_CODE_BYTES else None
        except Exception:  # it evaluates the header as a literal, which fails in a dozen ways
            code = None
        fits = isinstance(code, np.ndarray) and code.dtype == np.float32 and code.shape == wanted
        if code is None or not fits or not np.isfinite(code).all():
            raise InputError(f"{name} is no attribute code of this bundle; send the photo again.")
        return code

    async def _crop(self, data: bytes, name: str, face: int | None) -> np.ndarray:
        """The aligned crop of an uploaded photo, RGB uint8 [256, 256, 3]."""
        with stage("read"):
            image = await asyncio.to_thread(self._decoded, data, name)
        return await self._worker.run(self._composer.crop, image, face, name)

    def _decoded(self, data: bytes, name: str) -> np.ndarray:
        """The pixels of an uploaded photo, decoded in a process that can be ended."""
        try:
            return self._decoder.decode(data, name, max_pixels=int(self._limits.megapixels * 1e6))
        except TooLargeError as error:
            raise RefusedError(413, str(error)) from error
        except UnknownFormatError as error:
            raise RefusedError(415, str(error)) from error

    def close(self) -> None:
        """End what is being decoded."""
        self._decoder.close()


def shipped_face(kind: str, name: str) -> Path:
    """Return the file of a face that ships; `kind` is "identities" or "attributes". `RefusedError` 400 for none."""
    faces = shipped_faces(KINDS[kind])
    if name not in faces:
        raise RefusedError(400, f"{name[:40]!r} is none of the {kind} that ship with fid: {', '.join(faces)}.")
    return faces[name]


def _called(field: str, at: int, values: list[str | Upload]) -> str:
    """What a complaint calls the file at `at` under `field`: by its place where there are several, and by its name."""
    value = values[at]
    place = f"photo {at + 1} of {len(values)} in {field}" if len(values) > 1 else f"the photo in {field}"
    return f"{place} ({value.name})" if isinstance(value, Upload) and value.name else place
