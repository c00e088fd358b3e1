"""Make the faces that ship with the project (runtime/faces/), from the generator: nobody's photograph.

    python docs/pictures/make_demo_faces.py                                writes runtime/faces/*.jpg
    python docs/pictures/make_demo_faces.py --sheet look.jpg --seeds 0:96  a numbered contact sheet to choose seeds from

Needs the `openvino` extra; fetches the generator when it is not there yet. A face is one seed:
z = numpy.random.default_rng(seed).standard_normal(512), w = mapping(z) pulled towards the mean w by psi.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import openvino
from fid.runtime import assets
from fid.runtime.labels.provenance import Note
from fid.runtime.media.images import write_image
from fid.runtime.weights.catalogue import ensure

PSI = 0.8
SIDE = 256  # px
FACES = {  # file name in runtime/faces, without its ending: seed
    "identity-ada": 21,
    "identity-ben": 29,
    "identity-carl": 49,
    "identity-dave": 114,
    "identity-eve": 122,
    "attributes-aside": 66,
    "attributes-laughing": 16,
    "attributes-outdoors": 75,
    "attributes-shade": 79,
    "attributes-speaking": 44,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=assets.FACES)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here, and nothing else")
    parser.add_argument("--seeds", default="0:96", help="FIRST:END for the sheet")
    options = parser.parse_args()
    face = open_generator()
    if options.sheet:
        first, end = map(int, options.seeds.split(":"))
        write_image(options.sheet, contact_sheet(face, range(first, end)))
        return
    options.output.mkdir(exist_ok=True)
    for name, seed in FACES.items():
        write_image(options.output / f"{name}.jpg", face(seed), Note("random-face", "2021.7.21.1", "sample"))
        print(f"{name}.jpg from seed {seed}")


def open_generator() -> Callable[[int], np.ndarray]:
    """Return a function from a seed to a face, RGB uint8 [SIDE, SIDE, 3]."""
    folder = ensure("generator")
    core = openvino.Core()
    core.set_property({"INFERENCE_NUM_THREADS": 1})
    mapping = core.compile_model(folder / "MappingNetwork.xml", "CPU")
    synthesis = core.compile_model(folder / "SynthesisNetwork.xml", "CPU")

    def latent(seed: int) -> np.ndarray:
        z = np.random.default_rng(seed).standard_normal((1, 512)).astype(np.float32)
        return np.asarray(mapping(z)[0])

    mean_w = np.mean([latent(1_000_000 + i) for i in range(1000)], axis=0)

    def face(seed: int) -> np.ndarray:
        w = mean_w + PSI * (latent(seed) - mean_w)
        image = np.asarray(synthesis(w)[0])[0].transpose(1, 2, 0)  # RGB, -1..1
        full = np.rint((image.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
        return cv2.resize(full, (SIDE, SIDE), interpolation=cv2.INTER_AREA)

    return face


def contact_sheet(face: Callable[[int], np.ndarray], seeds: range, columns: int = 12) -> np.ndarray:
    """Return small numbered pictures of the seeds, RGB uint8."""
    tiles = []
    for seed in seeds:
        tile = cv2.resize(face(seed), (144, 144), interpolation=cv2.INTER_AREA)
        tiles.append(cv2.putText(tile, str(seed), (3, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 0), 1))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


if __name__ == "__main__":
    main()
