"""How far do --pose and --expression change what they should, and how much of the rest comes along?

    python benchmarks/controls.py --photos DIR --pairs 24 -o record.json --sheet sheet.jpg

People and attribute photos of a folder are paired by chance and composed with several scales. The face mesh reads pose
and expression off every composition. `follows` is the slope of what is found over what the same pairs have at 1: 1 as
far, 0 not at all. A control that separates moves its own numbers and leaves the others near 1. `identity_cosine` is
that of the identity encoder between a composition and the same at 1.
"""

import json
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from fid.runtime import Composer
from fid.runtime.controls import AS_IT_IS, Controls
from fid.runtime.media.images import find_photos
from fid.trainer.controls import expression_of
from fid.trainer.evaluate.measures import head_pose
from fid.trainer.networks.facemesh import FaceMesh
from fid.trainer.pixels import from_uint8
from machine import machine_record

SCALES = (AS_IT_IS, *(Controls(x, 1.0) for x in (0.0, 0.5, 1.5)), *(Controls(1.0, x) for x in (0.0, 0.5, 1.5)))
NUMBERS = ("pitch", "yaw", "lip_gap", "mouth_width", "mouth_corners", "eyes", "brows_inner", "brows_middle", "chin")


def slope(at_one: np.ndarray, now: np.ndarray) -> float:
    """How far one number follows over all pairs, by least squares."""
    a, b = at_one - at_one.mean(), now - now.mean()
    return float((a * b).sum() / (a * a).sum())


def figures(numbers: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """Figures of numbers [S, N, 9] and identity codes [S, N, D] of all scales, the first as it is."""
    found = {}
    for controls, now, who in zip(SCALES, numbers, codes, strict=True):
        each = zip(NUMBERS, numbers[0].T, now.T, strict=True)
        own: dict[str, Any] = {"follows": {name: round(slope(*pair), 2) for name, *pair in each}}
        own["yaw_mean_deg"] = round(float(np.abs(now[:, 1]).mean()), 2)
        own["pitch_spread_deg"] = round(float(now[:, 0].std()), 2)
        own["lip_gap_mean"] = round(float(now[:, 2].mean()), 4)
        own["identity_cosine"] = round(float((who * codes[0]).sum(-1).mean()), 3)
        found[f"pose {controls.pose:g}, expression {controls.expression:g}"] = own
    return found


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--pairs", default=24, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Picture: attribute photo, then all scales.")
@torch.no_grad()
def main(photos: Path, bundle: Path | None, pairs: int, output: Path | None, sheet: Path | None) -> None:
    torch.set_num_threads(1)
    composer, mesh = Composer(bundle, engine="onnxruntime", threads=1, refine=0), FaceMesh.load()
    crops = [composer.crop(path) for path in find_photos([photos])]
    chosen = np.linspace(0, len(crops) - 1, pairs).round().astype(int)
    partner = np.random.default_rng(3).permutation(len(crops))
    rows, numbers, codes = [], [], []
    for index in chosen:
        who = composer.identity_of(crops[partner[index]])
        made = [composer.image(composer.w(who, composer.attribute_code(crops[index], c))) for c in SCALES]
        points = mesh(from_uint8(np.stack(made))).numpy()
        numbers.append(np.hstack([head_pose(points)[:, :2], expression_of(points)]))
        codes.append([composer.identity_code(image) for image in made])
        rows.append(np.hstack([crops[index], *made]))
    found = figures(np.stack(numbers, axis=1), np.stack(codes, axis=1))
    result = {"benchmark": "controls", "pairs": pairs, "scales": found, "machine": machine_record()}
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    if sheet:
        cv2.imwrite(str(sheet), np.vstack(rows)[..., ::-1])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
