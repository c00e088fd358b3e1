"""Clips of filmed heads: how steadily identity stays and how closely pose and expression follow."""

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.engines.open import open_detector
from ...runtime.errors import InputError
from ...runtime.media.video import open_clip, read_frames
from . import measures
from .compare import AXES, identity_measures
from .compose import EvaluateConfig, Networks, Report, compose_crops, tile
from .judges import Judges, Seen
from .measures import summary
from .photos import aligned


@dataclass(frozen=True)
class Clip:
    """The aligned faces of a driving clip."""

    name: str
    crops: np.ndarray  # uint8 [T, 256, 256, 3], RGB
    numbers: np.ndarray  # [T], of the frames; frames without a usable face are missing
    frames: int  # that were read


def read_clip(path: Path, frames: int) -> Clip:
    """Return the first `frames` frames of a video file, each aligned on its own. Raises InputError for what is no video
    or shows no usable face, and FidError when PyAV is missing."""
    detector = open_detector()
    crops, numbers, count = [], [], 0
    with closing(read_frames(open_clip(path))) as video:
        for count, (_, frame) in enumerate(islice(video, frames), start=1):
            with suppress(InputError):
                crops.append(aligned(detector, frame, path.name))
                numbers.append(count - 1)
    if len(crops) < 3:
        raise InputError(f"{path} shows a usable face in {len(crops)} of {count} frames and at least 3 are needed.")
    return Clip(path.stem, np.stack(crops), np.array(numbers), count)


def measure_clip(
    networks: Networks,
    judges: Judges,
    clip: Clip,
    people: Sequence[tuple[str, Seen]],
    config: EvaluateConfig,
    report: Report,
) -> dict[str, Any]:
    """Figs 13 and 15: how steady the identity is along a clip, and how well pose and mouth follow it."""
    frozen = judges.frozen
    driving = judges.look(clip.crops)
    shown = np.linspace(0, len(driving) - 1, 8).round().astype(int)
    blank = np.full_like(clip.crops[0], 255)
    rows = [[blank, *clip.crops[shown]]]
    figures: dict[str, Any] = {
        "frames": clip.frames,
        "faces": len(driving),
        "driving": {
            **sequence_measures(driving, clip.numbers),
            "pose_agreement": pose_agreement(driving),
            "series": _series(driving),
        },
        "people": {},
    }
    for name, person in people:
        code = torch.from_numpy(person.codes[judges.encoder]).to(frozen.w_mean.device).expand(len(driving), -1)
        _, crops = compose_crops(
            networks, frozen, code, clip.crops, np.repeat(person.crops[:1], len(driving), axis=0), config.batch
        )
        output = judges.look(crops)
        figures["people"][name] = {
            **sequence_measures(output, clip.numbers),
            **following_measures(output, driving),
            "identity": {
                judge: {
                    "output": identity_measures(judge, codes, person.codes[judge]),
                    "leak": identity_measures(judge, codes, driving.codes[judge]),
                }
                for judge, codes in output.codes.items()
            },
            "series": _series(output),
        }
        rows.append([person.crops[0], *crops[shown]])
    report.pictures[f"Clip {clip.name}"] = tile(rows)
    return figures


def pose_agreement(seen: Seen) -> dict[str, float]:
    """Return how the face mesh's pose correlates with dlib's on the same frames: how far correlations can be believed.

    Nothing without dlib.
    """
    if "dlib" not in seen.poses:
        return {}
    mesh, other = seen.poses["face mesh"], seen.poses["dlib"]
    return {axis: measures.correlation(mesh[:, k], other[:, k]) for k, axis in enumerate(AXES)}


def sequence_measures(seen: Seen, numbers: np.ndarray) -> dict[str, Any]:
    """Return identity drift by every recogniser, landmark jitter in px of the crop, spread of the pose in degrees."""
    drifts = {judge: measures.drift(codes) for judge, codes in seen.codes.items()}
    return {
        "identity_drift": {judge: {**summary(d), "max": float(d.max())} for judge, d in drifts.items()},
        "jitter": {name: measures.jitter(points, numbers) for name, points in seen.points.items()},
        "pose_spread": {name: dict(zip(AXES, p.std(axis=0).tolist(), strict=True)) for name, p in seen.poses.items()},
    }


def following_measures(output: Seen, driving: Seen) -> dict[str, Any]:
    """Return the correlation of pose, of the lips' and the lids' gaps and of sidelong gaze between outputs and driving
    frames, and the distances of Table 1."""
    return {
        "pose_correlation": {
            name: {axis: measures.correlation(output.poses[name][:, k], angles[:, k]) for k, axis in enumerate(AXES)}
            for name, angles in driving.poses.items()
        },
        "pose_error": {
            name: summary(measures.pose_distance(output.poses[name], angles)) for name, angles in driving.poses.items()
        },
        "expression": {
            name: summary(measures.point_distance(output.points[name], points, 256))
            for name, points in driving.points.items()
        },
        "mouth_correlation": measures.correlation(output.mouth, driving.mouth),
        "eyes_correlation": measures.correlation(output.eyes, driving.eyes),
        "gaze_correlation": measures.correlation(output.gaze[:, 0], driving.gaze[:, 0]),
    }


def _series(seen: Seen) -> dict[str, list[float]]:
    """What the page draws over the frames of a clip."""
    judge = "dlib" if "dlib" in seen.codes else "SFace"
    columns = {
        f"drift by {judge}": measures.drift(seen.codes[judge]),
        **{axis: seen.poses["face mesh"][:, k] for k, axis in enumerate(AXES)},
        "mouth": seen.mouth,
    }
    return {name: [round(float(value), 4) for value in values] for name, values in columns.items()}
