"""Composing: the identity is set once, then any number of photos give pose, expression and light."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from .assets import PARTS
from .controls import AS_IT_IS, Controls
from .engines.machine import return_freed_memory
from .engines.open import on_cpu, open_detector, open_session, quickest_for_gradients
from .engines.session import Session, checked
from .errors import InputError
from .face.align import Alignment, align
from .face.crop import CROP_SIZE
from .face.detect import DOUBTFUL_SCORE, MIN_SCORE, Choice, Detector, choose_face
from .face.exposure import exposed
from .face.head import HeadPaster
from .face.paste import MASKS, AnyPaster, Paster
from .identity import SUFFIX, Identity, attributes_name, average, encoder_name, mapper_name, refiner_name
from .labels.provenance import MADE_BY_ALGORITHM, Note
from .media.images import find_photos, read_image
from .refine import ROUNDS, View, own_share, w_plus_offset
from .timing import stage
from .weights.bundle import CONTROLS, LIGHT, REFINE, Bundle

PARTS_GRAPH = "parts"
FULL_RESOLUTION = 1024  # px; the full generator, fetched when first asked for

BORDER = 2  # px of generated pictures, which the generator's zero padding tints

Photo = str | os.PathLike[str] | np.ndarray  # a file, or RGB uint8 [height, width, 3], 0..255


class Composer:
    """One bundle on one engine, with one identity at a time. For one thread; several threads take one each.

        composer = Composer()
        composer.set_identity("ann1.jpg", "ann2.jpg")
        image = composer.compose("bob.jpg")  # RGB uint8 [256, 256, 3]

    Sessions are opened, and models fetched, when they are first needed. `timing.collect_timings` tells what each stage
    (read, detect, align, identity, attributes, mapper, refine, synthesis) takes.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str] | None = None,
        *,
        engine: str = "auto",
        require: str | None = None,
        threads: int | None = None,
        resolution: int | None = None,
        refine: int | None = None,
        min_confidence: float | None = None,
        on_choice: Callable[[Choice, bool], None] | None = None,
    ) -> None:
        """`bundle`: one that is loaded, a folder, a .fid file, or None for the one that ships with fid.

        `engine`, `require`, `threads`: see `session.open_session`. `resolution`: px, side of the composed picture; None
        for the bundle's own (256), or 1024 for the full generator. `refine`: rounds that look closer at each identity
        photo (`refine.w_plus_offset`), where the bundle can; 0 for none, None for
        `refine.ROUNDS`. `min_confidence`: how sure the detector has to be of a face, 0.45..1; None for 0.7. `on_choice`
        is told which face of each photo was taken, and whether the photo gives an identity.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(None if bundle is None else Path(bundle))
        own = self.bundle.resolution
        known = (own,) if self.bundle.own_generator else (own, FULL_RESOLUTION)
        if resolution is not None and resolution not in known:
            raise InputError(
                f"there is no resolution {resolution}; this bundle composes at {' or '.join(map(str, known))}."
            )
        rounds = ROUNDS if refine is None else refine
        if rounds < 0:
            raise InputError(f"{rounds} rounds cannot be: give 0 for none, or more.")
        least = MIN_SCORE if min_confidence is None else min_confidence
        if not DOUBTFUL_SCORE <= least <= 1:
            raise InputError(f"a confidence of {least:g} cannot be asked for: give {DOUBTFUL_SCORE} to 1.")
        self.min_confidence = least
        self.on_choice = on_choice
        self.go_on: Callable[[], bool] = lambda: True  # asked before each round of looking closer
        self.resolution = resolution or own
        self.rounds = rounds if REFINE in self.bundle.graphs else 0
        self.identity: Identity | None = None
        self._engine = engine
        self.threads = threads
        self._options = {"engine": engine, "require": require, "threads": threads}
        self._sessions: dict[str, Session] = {}
        self._ahead: dict[str, Future[Session]] = {}  # being opened
        self._openers = ThreadPoolExecutor(2, "open sessions")  # starts no thread before there is something to open
        self._detector: Detector | None = None
        self._mapper: str | None = None

    def set_identity(self, *photos: Photo | Identity) -> Identity:
        """Set whose face to compose from now on: the average of all given photos, identity files and identities.

        Returns the identity, which can be saved. Raises `InputError` for a photo without a usable face.
        """
        if not photos:
            raise InputError("give at least one photo of the person.")
        self.identity = average([self.identify(photo) for photo in photos])
        return self.identity

    def compose(
        self,
        photo: Photo,
        face: int | None = None,
        *,
        paste: bool | None = False,
        mask: str = "head",
        controls: Controls = AS_IT_IS,
    ) -> np.ndarray:
        """Compose the person of `set_identity` with pose, expression and light of `photo`: RGB uint8 [R, R, 3], or
        with `paste` the whole photo with the composed head in it, RGB uint8 [height, width, 3].

        `face`: which face of the photo, counted from 1 by size; None takes the largest. `paste`: None pastes where the
        photo shows more than the head. `mask`: what of the composition is pasted, one of `paste.MASKS`. `controls`:
        how far pose and expression are followed.
        """
        if self.identity is None:
            raise InputError(
                "call set_identity(photo) before compose(photo): it is not known yet whose face to compose."
            )
        image, alignment = self.locate(photo, face)
        crop = alignment.crop(image)
        composed = self.image(self.w(self.identity, self.attribute_code(crop, controls)))
        if not (alignment.is_part_of(image) if paste is None else paste):
            return composed
        with stage("paste"):
            return self.paster(mask, still=True).paste(image, composed, alignment, crop=crop)

    def paster(self, mask: str = "head", *, still: bool = False) -> AnyPaster:
        """Return what pastes heads into frames, or with `still` into single photos; `mask` is one of `paste.MASKS`:
        head and hair, the face alone, or the whole composition with its background. `InputError` for another one."""
        if mask not in MASKS:
            raise InputError(f"there is no mask {mask!r}; known are {', '.join(MASKS)}.")
        if mask == "square":
            return Paster(exact=still)
        return HeadPaster(self.parts, face_only=mask == "face", still=still)

    def parts(self, crops: np.ndarray) -> np.ndarray:
        """Return what is where in aligned crops RGB uint8 [n, 256, 256, 3]: float32 [n, 6, 128, 128], the shares of
        `face.parts.PARTS`, which sum to 1."""
        with stage("parts"):
            return self._session(PARTS_GRAPH).run(crop=crops)["parts"]

    def identify(self, photo: Photo | Identity, face: int | None = None, *, refine: bool = True) -> Identity:
        """Return the identity of one photo, of an identity file (.npz), of a folder with photos of one person, or the
        identity itself, checked against the bundle. `refine`: whether photos are looked closer at."""
        if isinstance(photo, Identity):
            identity = photo
        elif isinstance(photo, (str, os.PathLike)) and Path(photo).is_dir():
            return average([self.identify(one, face, refine=refine) for one in find_photos([Path(photo)], (SUFFIX,))])
        elif isinstance(photo, (str, os.PathLike)) and Path(photo).suffix.lower() == SUFFIX:
            identity = Identity.load(photo)
        else:
            if self.rounds and refine:
                self._begin_to_open(REFINE, PARTS_GRAPH)  # while the face is found
            return self.identity_of(self.crop(photo, face, of_identity=True), refine=refine)
        sizes = (self.bundle.identity_size,), (self.bundle.w_size,)
        offset, styles = identity.w_plus_offset, (1, self.bundle.n_styles)  # 1: the same for every style
        offset_fits = offset is None or (offset.shape[1:] == sizes[1] and offset.shape[0] in styles)
        if identity.encoder != encoder_name(self.bundle) or identity.code.shape != sizes[0] or not offset_fits:
            raise InputError(
                f"this identity was made by the identity encoder {identity.encoder}, and the bundle "
                f"{self.bundle.name} uses {encoder_name(self.bundle)}; make it again from photos."
            )
        if self.bundle.takes_appearance:
            looks = identity.appearance
            fits = looks is not None and looks.shape == (self.bundle.attributes_size,)
            same = identity.w_plus_offset is not None or identity.attributes == attributes_name(self.bundle)
            if not (fits and same):  # with an offset, the mapper's name decides, above
                raise InputError(
                    f"this identity was made with another bundle than {self.bundle.name} {self.bundle.version}, which "
                    "has to see the person's photo once itself; make it again from photos."
                )
        own = identity.w_plus_offset is None or identity.mapper == refiner_name(self.bundle)
        if not own and identity.mapper != self._mapper_name():
            raise InputError(
                f"this identity was personalised for another bundle than {self.bundle.name} {self.bundle.version}; "
                "run fid-train personalize again with this one, or use photos."
            )
        return identity

    def identity_of(self, crop: np.ndarray, *, refine: bool = False) -> Identity:
        """Return the identity of one aligned crop RGB uint8 [256, 256, 3], brought to light if it is dark: what the
        encoders say and, with `refine`, what the composer's rounds find beyond that."""
        crop = exposed(crop)
        attributes = self.attribute_code(crop) if self.bundle.takes_appearance or (refine and self.rounds) else None
        identity = Identity(self.identity_code(crop), encoder_name(self.bundle))
        if self.bundle.takes_appearance:
            identity = replace(identity, appearance=attributes, attributes=attributes_name(self.bundle))
        if not (refine and self.rounds):
            return identity
        assert attributes is not None
        own, mirrored = own_share(self.parts(crop[None])[0]), np.ascontiguousarray(crop[:, ::-1])
        w, mirrored_w = (self.w(identity, codes) for codes in (attributes, self.attribute_code(mirrored)))
        views = (View(crop, own, w), View(mirrored, np.ascontiguousarray(own[:, ::-1]), mirrored_w))
        with stage("refine"):
            session = self._session(REFINE)
            offset = checked(w_plus_offset(session, views, self.rounds, self.go_on), REFINE, session)
        return replace(identity, w_plus_offset=offset, mapper=refiner_name(self.bundle))

    def at(self, resolution: int, *, threads: int | None = None) -> Composer:
        """Return a composer of pictures of another side, in px, of the same bundle on the same engines; `threads`: of
        the sessions that are not open yet, None for as many as this one's."""
        more = {"refine": self.rounds, "min_confidence": self.min_confidence, "on_choice": self.on_choice}
        other = Composer(self.bundle, resolution=resolution, **more, **self._options)
        if threads is not None:
            other.threads = other._options["threads"] = threads
        other._sessions = {graph: s for graph, s in self._sessions.items() if not graph.startswith("synthesis")}
        return other

    def crop(
        self, photo: Photo, face: int | None = None, name: str | None = None, *, of_identity: bool = False
    ) -> np.ndarray:
        """Return the aligned crop RGB uint8 [256, 256, 3] of a photo's largest face, or of face number `face`; a
        complaint calls the photo `name`, and `on_choice` is told whether it gives an identity."""
        image, alignment = self.locate(photo, face, name, of_identity=of_identity)
        with stage("align"):
            return alignment.crop(image)

    def locate(
        self, photo: Photo, face: int | None = None, name: str | None = None, *, of_identity: bool = False
    ) -> tuple[np.ndarray, Alignment]:
        """Return a photo RGB uint8 [height, width, 3] and where its largest face is aligned, or face number `face`; as
        `crop`."""
        image, called = self._open(photo)
        name = name or called
        with stage("detect"):
            faces = self.detector.faces(image)
            chosen = choose_face(faces, face, name, self.min_confidence)
        if self.on_choice is not None:
            self.on_choice(Choice(name, image.shape[1], tuple(faces), chosen, face), of_identity)
        with stage("align"):
            refined = self.detector.refine(image, chosen)
            return image, align(refined.points, CROP_SIZE)

    def identity_code(self, crop: np.ndarray) -> np.ndarray:
        """Compute E_id: aligned crop RGB uint8 [256, 256, 3] -> unit code float32 [identity_size]."""
        with stage("identity"):
            return self._run("identity", "identity", crop=crop)

    def attribute_code(self, crop: np.ndarray, controls: Controls = AS_IT_IS) -> np.ndarray:
        """Compute E_attr: aligned crop RGB uint8 [256, 256, 3] -> float32 [attributes_size], with pose and expression
        as `controlled` scales them."""
        with stage("attributes"):
            return self.controlled(self._run("attributes", "attributes", crop=crop), controls)

    def controlled(self, attributes: np.ndarray, controls: Controls) -> np.ndarray:
        """Return an attribute code float32 [attributes_size] with pose and expression nearer to, or farther from, a
        frontal head with a neutral face. `InputError` when the bundle has no graph for that."""
        if controls == AS_IT_IS:
            return attributes
        if CONTROLS not in self.bundle.graphs:
            raise InputError(
                f"the bundle {self.bundle.name} cannot scale pose and expression: it was made without the graph "
                f"{CONTROLS!r}; add it with fid-export --controls."
            )
        scales = {name: np.array([value], np.float32) for name, value in vars(controls).items()}
        return self._run(CONTROLS, "controlled", attributes=attributes, **scales)

    def w(self, identity: Identity, attributes: np.ndarray) -> np.ndarray:
        """Compute M: identity and attribute code float32 [attributes_size] -> w float32 [w_size], or W+ float32
        [n_styles, w_size] where the mapper answers in it or the identity has an offset."""
        with stage("mapper"):
            space = "w_plus" if self.bundle.maps_to_w_plus else "w"
            w = self._run("mapper", space, attributes=attributes, **self._codes(identity))
        return w if identity.w_plus_offset is None else per_style(w + identity.w_plus_offset, self.bundle.n_styles)

    def _codes(self, identity: Identity) -> dict[str, np.ndarray]:
        """What the mapper takes of an identity, by the names of its inputs."""
        codes = {"identity": identity.code}
        if self.bundle.takes_appearance:
            if identity.appearance is None:
                raise ValueError(f"the bundle {self.bundle.name} wants identities with appearance: use identity_of.")
            codes["appearance"] = identity.appearance
        return codes

    def image(self, w: np.ndarray, *, light: bool = False) -> np.ndarray:
        """Compute G: w float32 [w_size] or W+ [n_styles, w_size] -> RGB uint8 [R, R, 3]; with `light` by the bundle's
        light generator (`has_light`)."""
        with stage("synthesis"):
            (graph,) = _generator(light)
            n_styles = int(self._session(graph).inputs[0].shape[1])
            return self._untinted(self._run(graph, "image", w_plus=per_style(w, n_styles)))

    @property
    def has_light(self) -> bool:
        """Whether the bundle holds a light generator at this resolution: quicker on a CPU, and less exact."""
        return LIGHT in self.bundle.graphs and self.resolution == self.bundle.resolution

    @property
    def wants_light(self) -> bool:
        """Whether live pictures should come from the light generator: there is one, and a CPU computes."""
        return self.has_light and (on_cpu(self._engine) or "CPU" in self._session("attributes").provider.split())

    def reenact(self, crop: np.ndarray, identity: Identity) -> np.ndarray:
        """Compute E_attr, M and G in one call: aligned crop RGB uint8 [256, 256, 3] -> RGB uint8 [256, 256, 3], at the
        bundle's own resolution."""
        if self.resolution != self.bundle.resolution:
            raise ValueError("reenact is for the bundle's own resolution.")
        offset = identity.w_plus_offset
        if offset is None:
            offset = np.zeros((1, self.bundle.w_size), np.float32)
        codes = self._codes(identity) | {"w_plus_offset": per_style(offset, self.bundle.n_styles)}
        with stage("reenact"):
            return self._untinted(self._run("reenact", "image", crop=crop, **codes))

    def _untinted(self, image: np.ndarray) -> np.ndarray:
        """A picture RGB uint8 [R, R, 3] with what is just inside of its border mirrored there, where the generator is
        MobileStyleGAN's, which pads with zeros."""
        if self.bundle.own_generator:
            return image
        inner = image[BORDER:-BORDER, BORDER:-BORDER]
        return cv2.copyMakeBorder(inner, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REFLECT)

    @property
    def detector(self) -> Detector:
        """The face detector, opened when first asked for."""
        if self._detector is None:
            self._detector = open_detector(min(self.min_confidence, MIN_SCORE), self.threads)
        return self._detector

    @property
    def provider(self) -> str:
        """What the sessions opened so far really run on; the generator's is opened if there is none yet."""
        sessions = list(self._sessions.values()) or [self._session("synthesis")]
        return " + ".join(dict.fromkeys(session.provider for session in sessions))

    @property
    def fallbacks(self) -> list[str]:
        """One sentence for each way in which the open sessions are not what was asked for."""
        return list(dict.fromkeys(s.fallback for s in self._sessions.values() if s.fallback is not None))

    def warm_up(self, identity: Identity, *, light: bool = False) -> None:
        """Open the sessions of a frame and run them once, so that the first frame is as quick as the others; `light` as
        in `image`. Closes that of `refine`, which frames do not need and which takes the most memory."""
        self._close(REFINE)
        crop = np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
        self.image(self.w(identity, self.attribute_code(crop)), light=light)
        return_freed_memory()

    def open_ahead(self, *, light: bool | None = None, parts: bool = False) -> None:
        """Begin to open the sessions of photos and frames on threads of their own, while people are looked for on this
        one. `light` as in `image`, None for no generator yet; `parts`: that of `parts`, too. A session that cannot be
        opened says so when it is first used."""
        self._begin_to_open("attributes", "identity", *_generator(light), "mapper", *([PARTS_GRAPH] if parts else []))

    def wait_for_frames(self, *, light: bool = False) -> None:
        """Wait until the sessions of a frame are open; `light` as in `image`."""
        for graph in ("attributes", "mapper", *_generator(light)):
            self._session(graph)

    def _begin_to_open(self, *graphs: str) -> None:
        for graph in graphs:
            if graph not in self._sessions and graph not in self._ahead:
                self._ahead[graph] = self._openers.submit(self._opened, graph)

    def close_identity(self) -> None:
        """Close what looks at identity photos, which frames do without, and free its memory; the next photo opens it
        again."""
        self._close("identity", REFINE)

    def _close(self, *graphs: str) -> None:
        for graph in graphs:
            self._sessions.pop(graph, None)
            self._ahead.pop(graph, None)

    def note(self, kind: str, source_type: str = MADE_BY_ALGORITHM) -> Note:
        """Return the provenance note for a picture of this composer; `kind` as in `provenance.Note`."""
        return Note(self.bundle.name, self.bundle.version, kind, source_type)

    def open_mapping(self) -> Session:
        """Return the mapping network z -> w that belongs to the bundle's generator."""
        return self._session("mapping")

    def _mapper_name(self) -> str:
        if self._mapper is None:
            self._mapper = mapper_name(self.bundle)
        return self._mapper

    def _open(self, photo: Photo) -> tuple[np.ndarray, str]:
        """The pixels, and what to call the photo in a message."""
        if isinstance(photo, (str, os.PathLike)):
            with stage("read"):
                return read_image(photo), str(photo)
        if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            found = f"{photo.dtype} {list(photo.shape)}" if isinstance(photo, np.ndarray) else type(photo).__name__
            raise InputError(f"a photo is a path or an RGB array uint8 [height, width, 3]; this is {found}.")
        if photo.size == 0:
            raise InputError("the photo is an array without pixels.")
        return photo, "The photo"

    def _run(self, graph: str, output: str, **inputs: np.ndarray) -> np.ndarray:
        """One output of a graph for inputs without the axis of the batch; `FidError` when it is not finite."""
        session = self._session(graph)
        return checked(session.run(**{name: array[None] for name, array in inputs.items()})[output][0], graph, session)

    def _session(self, graph: str) -> Session:
        ahead = self._ahead.get(graph)
        if graph not in self._sessions:  # perhaps for two threads, of which one waits before the other asks for it
            self._sessions[graph] = self._opened(graph) if ahead is None else ahead.result()
        return self._sessions[graph]

    def _opened(self, graph: str) -> Session:
        options = self._options
        if graph == PARTS_GRAPH:  # small, and beside the others: a GPU has better to do
            return open_session(PARTS, engine="onnxruntime", threads=options["threads"])
        if graph == CONTROLS:  # two small products
            return open_session(self._graph_path(graph), engine="onnxruntime", threads=1)
        steady = ("crop", "own") if graph == REFINE else ()
        if graph == REFINE and not self._engine.startswith(("onnxruntime", "openvino", "triton")):
            # a second is not worth a build
            options = {"engine": quickest_for_gradients(), "threads": options["threads"]}
        path, fp16 = self._graph_path(graph), self._fp16_graph_path(graph)
        return open_session(path, fp16_graph=fp16, steady=steady, **options)

    def _graph_path(self, graph: str) -> Path:
        full = graph == "synthesis" and self.resolution != self.bundle.resolution
        if not full and not (graph == "mapping" and graph not in self.bundle.graphs):
            return self.bundle.graph_path(graph)
        from .weights.prepare import prepared  # here: composing at 256 px needs nothing of it

        return prepared(f"synthesis-{self.resolution}" if full else graph)

    def _fp16_graph_path(self, graph: str) -> Path | None:
        full = graph == "synthesis" and self.resolution != self.bundle.resolution
        return None if full or graph not in self.bundle.graphs else self.bundle.fp16_graph_path(graph)


def _generator(light: bool | None) -> list[str]:
    return [] if light is None else [LIGHT if light else "synthesis"]


def per_style(w: np.ndarray, n_styles: int) -> np.ndarray:
    """Return W+ float32 [n_styles, w_size] of a w float32 [w_size], or of W+ of one style or more.

    The full generator has the shipped one's styles and more: those follow the last of them.
    """
    w_plus = np.broadcast_to(w, (n_styles, w.shape[-1])) if w.ndim == 1 or len(w) == 1 else w[:n_styles]
    if len(w_plus) < n_styles:
        w_plus = np.concatenate((w_plus, np.repeat(w_plus[-1:], n_styles - len(w_plus), axis=0)))
    return np.ascontiguousarray(w_plus, np.float32)
