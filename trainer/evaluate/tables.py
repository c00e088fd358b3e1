"""The tables of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .compare import AXES

PAPER = "Nitzan et al. 2020"
JUDGES = ("ArcFace", "HopeNet", "6DRepNet", "pose network", "dlib", "SFace", "face mesh")  # the first knows least of us


@dataclass(frozen=True)
class Table:
    """A table, its cells ready to print. A row whose first cell stands in asterisks is quoted from elsewhere."""

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Return the table in Markdown, with its notes as a list."""
        lines = [f"## {self.title}", "", _line(self.header), _line(["---"] * len(self.header))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """Return all tables of an evaluation's figures, as in the JSON file."""
    found = [_table_1(figures), _identity(figures), _attributes(figures), _table_2(figures)]
    if "groups" in figures.get("photos", {}):
        found.append(_groups("Photographs by group of people, each from one photo", figures["photos"]["groups"]))
    if "refined" in figures:
        found.append(_refined(figures["refined"]))
        for kind in ("straight", "personalised"):
            if "groups" in figures["refined"][kind]:
                title = f"The same people by group, {kind}"
                found.append(_groups(title, figures["refined"][kind]["groups"]))
    if "ablations" in figures:
        found.append(_table_3(figures))
    found.append(_w_space(figures))
    if "clips" in figures:
        found.append(_clips(figures))
    return found


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    intro = f"# Evaluation of {figures['evaluated']}\n\n" + "".join(f"- {line}\n" for line in setting_lines(figures))
    return "\n".join([intro, *(table.markdown() for table in tables(figures))])


def setting_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines of what was measured on what."""
    config, judges = figures["configuration"], figures["judges"]
    lines = [
        f"Generated pairs: {config['pairs']}, psi {config['psi']}, seed {config['seed']}, {figures['resolution']} px, "
        f"generator: {figures['generator']}. Pictures are judged as 8-bit crops of 256 px.",
    ]
    if "photos" in figures:
        photos = figures["photos"]
        skipped = f", {len(photos['skipped'])} photos skipped" if photos["skipped"] else ""
        lines.append(
            f"Photographs: {photos['photos']} of {photos['people']} people, {photos['pairs']} pairs of different "
            f"people{skipped}."
        )
    lines.append(
        f"{judges.get('encoder', 'SFace')} and the face mesh were part of training, so they flatter; dlib's networks "
        "were not. dlib's cosines are high for all: its measure is the distance, and 0.6 or less counts as one person."
    )
    lines += [f"Not measured: {name} ({how})." for name, how in judges["not_measured"].items()]
    return lines


def _settings(figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found = [("generated pairs", figures["generated"])]
    return [*found, ("photographs", figures["photos"])] if "photos" in figures else found


def _best(measured: Mapping[str, Any]) -> str:
    """The judge among those that measured who knows least of training."""
    return next(name for name in JUDGES if name in measured)


def _cosine_judge(measured: Mapping[str, Any]) -> str:
    return "ArcFace" if "ArcFace" in measured else "SFace"


def _table_1(figures: Mapping[str, Any]) -> Table:
    quoted = [
        ["*LORD (quoted)*", "23.08", "0.20 ± 0.11", "0.085 ± 0.018", "13.34 ± 15.00"],
        ["*FSGAN (quoted)*", "8.90", "0.35 ± 0.19", "0.013 ± 0.013", "6.73 ± 13.62"],
        [f"*{PAPER} (quoted)*", "4.28", "0.60 ± 0.09", "0.017 ± 0.019", "9.74 ± 13.16"],
    ]
    rows, notes = [], []
    for name, part in _settings(figures):
        judge, points, pose = _cosine_judge(part["identity"]), _best(part["expression"]), _best(part["pose"])
        distance = part["frechet_distance"]
        rows.append(
            [
                f"fid, {name}",
                _significant(distance["output"]),
                _spread(part["identity"][judge]["output"]["cosine"], 2),
                _spread(part["expression"][points]["output"], 3),
                _spread(part["pose"][pose]["output"], 2),
            ]
        )
        notes.append(
            f"fid, {name}: cosine by {judge}; points by {points}; angles from {POSE_BY.get(pose, pose)}; Frechet "
            f"distance of {distance['n']} face crops, floor of two such sets {_significant(distance['floor'])}."
        )
    notes += [
        "Quoted rows: 10,000 pairs of FFHQ photographs, ArcFace, dlib's points, Inception features (FID), StyleGAN at "
        "256 px. Ours are other images and, where named, other networks: compare the orders of magnitude only.",
        f"Our features: {figures['judges']['features']}. The two scales of Frechet distances have nothing in common; "
        "ours depends on the number of crops.",
    ]
    return Table(
        "Table 1: identity, expression, pose",
        ["method", "Frechet distance ↓", "identity ↑", "expression ↓", "pose, degrees ↓"],
        [*quoted, *rows],
        notes,
    )


POSE_BY = {"dlib": "dlib's points by solvePnP", "face mesh": "a rigid fit of the face mesh"}  # others by their name


def _identity(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, part in _settings(figures):
        same = figures["photos"].get("same_person", {}) if name == "photographs" else {}
        for judge in part["identity"]:
            kinds = {**part["identity"][judge], **({"same": same[judge]} if judge in same else {})}
            for measure in ("cosine", "distance", "accept"):
                if measure in kinds["output"]:
                    cells = [_value(kinds.get(kind), measure) for kind in ("output", "leak", "random", "same")]
                    unit = {"cosine": "cosine ↑", "distance": "distance ↓", "accept": "one person at 0.6, share"}
                    rows.append([f"{name}, {judge} {unit[measure]}", *cells])
        if "dlib" in figures["judges"]["not_measured"]:
            missing = figures["judges"]["not_measured"]["dlib"]
            rows.append([f"{name}, dlib", f"not measured: {missing}", "", "", ""])
    return Table(
        "Identity: output against its two inputs",
        ["pairs, judge", "identity image", "attribute image (leak)", "two random people", "same person, two photos"],
        rows,
        [
            "The first column should be near the last, the second near the third.",
            f"{figures['judges'].get('encoder', 'SFace')} took part in training; dlib's and ArcFace's never did.",
        ],
    )


def _attributes(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, part in _settings(figures):
        for network in part["pose"]:
            points, pose = part["expression"].get(network), part["pose"][network]
            rows.append(
                [
                    f"{name}, {network}",
                    *((_spread(points[kind], 4) for kind in ("output", "random")) if points else ("", "")),
                    f"{points['output']['mean'] / points['random']['mean']:.2f}" if points else "",
                    _spread(pose["output"], 1),
                    _spread(pose["random"], 1),
                    *(_number(pose[axis], 2) for axis in AXES[:2]),
                ]
            )
    return Table(
        "Attributes: output against attribute image",
        [
            *("pairs, judge", "points, share of side ↓", "random pair", "ratio ↓", "pose, degrees ↓", "random pair"),
            *("pitch corr. ↑", "yaw corr. ↑"),
        ],
        rows,
        [
            "dlib: 68 points; face mesh: those of the inner face. Mean distance of the points, divided by 256 px.",
            "Pose: Euclidean distance of (pitch, yaw, roll); by dlib from 13 points by solvePnP, by the face mesh "
            "from a rigid fit of 27 points in 3-D. Roll is taken out by the alignment.",
        ],
    )


def _table_2(figures: Mapping[str, Any]) -> Table:
    quoted = [
        ["*ALAE (quoted)*", "0.192", "14.90", "", "0.300", "", "0.014", "6.92"],
        ["*pSp (quoted)*", "0.095", "21.00", "", "0.821", "", "0.008", "4.53"],
        [f"*{PAPER} (quoted)*", "0.202", "14.16", "", "0.600", "", "0.013", "6.94"],
    ]
    rows = []
    for name, part in _settings(figures):
        r = part["reconstruction"]
        judge, points, pose = _cosine_judge(r["identity"]), _best(r["expression"]), _best(r["pose"])
        accept = f"{r['identity']['dlib']['accept']:.2f}" if "dlib" in r["identity"] else "not measured"
        rows.append(
            [
                f"fid, {'generated faces' if name.startswith('gen') else name} ({r['n']})",
                _spread(r["rmse"], 3),
                _spread(r["psnr"], 2),
                _spread(r["lpips"], 3),
                f"{_spread(r['identity'][judge]['cosine'], 3)} ({judge})",
                accept,
                f"{_spread(r['expression'][points], 3)} ({points})",
                f"{_spread(r['pose'][pose], 2)} ({pose})",
            ]
        )
    return Table(
        "Table 2: reconstruction, the same image gives identity and attributes",
        [
            *("method", "RMSE ↓", "PSNR, dB ↑", "LPIPS ↓", "identity ↑", "one person by dlib ↑", "expression ↓"),
            "pose, degrees ↓",
        ],
        [*quoted, *rows],
        [
            "Quoted rows: 5,000 photographs of CelebA-HQ, methods trained on FFHQ, ArcFace, dlib's points.",
            "RMSE of the whole aligned crop, pixels in 0..1; LPIPS v0.1 with AlexNet, which the paper does not give.",
        ],
    )


def _refined(refined: Mapping[str, Any]) -> Table:
    rows = []
    kinds = {
        "straight": f"straight from the mapper ({refined['pairs']} pairs)",
        "personalised": f"personalised ({refined['pairs']} pairs)",
        "ceiling": f"photo inverted ({refined['ceiling']['n']} photos)",
    }
    for kind, name in kinds.items():
        part, pairs = refined[kind], kind != "ceiling"
        identity = {judge: values["output"] if pairs else values for judge, values in part["identity"].items()}
        points, pose = part["expression"][_best(part["expression"])], part["pose"][_best(part["pose"])]
        dlib = identity.get("dlib")
        judge = _cosine_judge(identity)
        rows.append(
            [
                name,
                _spread(identity[judge]["cosine"], 2),
                _spread(part["identity"][judge]["leak"]["cosine"], 2) if pairs else "",
                *((_spread(dlib["distance"], 2), f"{dlib['accept']:.2f}") if dlib else ("not measured", "")),
                _spread(points["output"] if pairs else points, 3),
                _spread(pose["output"] if pairs else pose, 2),
            ]
        )
    return Table(
        "Personalised people: photographs straight from the mapper, personalised, and inverted",
        [
            *("method", "identity ↑", "leak ↓", "distance by dlib ↓", "one person by dlib ↑", "expression ↓"),
            "pose, degrees ↓",
        ],
        rows,
        [
            f"{refined['people']} people, one photo of each, with the attributes of photos of others. Inverted: w "
            "is optimised for the photo alone, its own attributes kept; no mapper can be expected to do better.",
        ],
    )


def _groups(title: str, report: Mapping[str, Any]) -> Table:
    """A row for each group and kind of pair, and the worst of the groups, column by column."""
    parts = [*report["groups"], report["mean"], *report["kinds"]]
    judges = [judge["judge"] for judge in report["mean"]["judges"]]

    def cells(part: Mapping[str, Any]) -> list[float | None]:
        accepted = [value for judge in part["judges"] for value in (judge["similarity"], judge["accepted"])]
        retrieved = [judge["retrieved"] for judge in part["judges"]]
        rest = ("dlib_accepted", "sex_kept", "age_shift", "skin_shift", "landmark_error")
        return [*accepted, *retrieved, *(part[name] for name in rest)]

    digits = [2] * (3 * len(judges) + 2) + [1, 1, 4]
    lower = [False] * (3 * len(judges) + 2) + [True, True, True]
    columns = list(zip(*(cells(part) for part in report["groups"]), strict=True))
    known = [[value for value in column if value is not None] for column in columns]
    extremes = [(max if low else min)(values) if values else None for values, low in zip(known, lower, strict=True)]
    rows = [
        [f"{part['name']} ({part['people']})", *(_number(v, d) for v, d in zip(cells(part), digits, strict=True))]
        for part in parts
    ]
    rows.insert(len(report["groups"]), ["worst group", *(_number(v, d) for v, d in zip(extremes, digits, strict=True))])
    return Table(
        title,
        [
            "people",
            *(text for judge in judges for text in (f"{judge} ↑", "accepted ↑")),
            *(f"found by {judge} ↑" for judge in judges),
            *("dlib at 0.6 ↑", "sex kept ↑", "age, years ↓", "skin ↓", "landmarks ↓"),
        ],
        rows,
        [
            "By judge: mean cosine to the photo (dlib: minus the distance), and the share accepted at FAR 0.1 %, with "
            "the threshold of each group from its own strangers. Found: the photo is the nearest of all. Sex and age "
            "by faceres, sex of people whose photo it reads rightly. Skin: colour difference (CIE76) of the cheeks "
            "with the photo's own attributes, so in its light. Landmarks: distance to the attribute photo's, as a "
            "fraction of the crop.",
        ],
    )


def _table_3(figures: Mapping[str, Any]) -> Table:
    rows = [
        ["*LORD (quoted)*", "", "0.20 ± 0.11", "", "", "0.085 ± 0.018", "13.34 ± 15.00"],
        [f"*{PAPER} without landmarks (quoted)*", "", "0.63 ± 0.08", "", "", "0.023 ± 0.017", "13.90 ± 13.36"],
        [f"*{PAPER} without D_W (quoted)*", "6.96", "", "", "", "", ""],
        [f"*{PAPER} (quoted)*", "4.28", "0.60 ± 0.09", "", "", "0.017 ± 0.019", "9.74 ± 13.16"],
    ]
    for name, part in {"fid": figures["generated"], **figures["ablations"]}.items():
        judge, points, pose = _cosine_judge(part["identity"]), _best(part["expression"]), _best(part["pose"])
        dlib = part["identity"].get("dlib")
        rows.append(
            [
                name,
                _significant(part["frechet_distance"]["output"]),
                _spread(part["identity"][judge]["output"]["cosine"], 2),
                _spread(part["identity"][judge]["leak"]["cosine"], 2),
                f"{dlib['output']['accept']:.2f}" if dlib else "not measured",
                _spread(part["expression"][points]["output"], 3),
                _spread(part["pose"][pose]["output"], 2),
            ]
        )
    return Table(
        "Table 3: ablations, on the same generated pairs through the same generator",
        [
            *("method", "Frechet distance ↓", "identity ↑", "leak ↓", "one person by dlib ↑", "expression ↓"),
            "pose, degrees ↓",
        ],
        rows,
        ["Judges as in Table 1. Ablations that were trained for different times do not compare."],
    )


def _w_space(figures: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            str(cloud["n"]),
            *(f"{cloud['mean'][k]:+.2f} ± {cloud['std'][k]:.2f}" for k in range(2)),
            f"{cloud['deviation']:.2f}",
        ]
        for name, cloud in figures["w_space"]["clouds"].items()
    ]
    factors = figures["w_space"].get("factors", {"n": 0, "shares": {}})
    for name, shares in factors["shares"].items():
        rows.append([f"variance of ours by {name}", str(factors["n"]), *(f"{value:.0%}" for value in shares)])
    share = " and ".join(f"{value:.0%}" for value in figures["w_space"]["axes_share"])
    return Table(
        "Fig. 9: where w lies in W",
        ["w of", "n", "first axis", "second axis", "all 512, standard deviations"],
        rows,
        [
            f"Axes: PCA of the generator's w at the same psi ({share} of its variance), in its standard deviations. "
            "The paper has a picture and no figures: its w lie where StyleGAN's do, without D_W elsewhere.",
            "A deviation below the generator's means outputs nearer the mean face.",
        ],
    )


def _clips(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, clip in figures["clips"].items():
        driving = clip["driving"]
        judges = list(driving["identity_drift"])
        judge = _best(driving["identity_drift"])
        points, agree = "face mesh", driving["pose_agreement"]
        rows.append(
            [
                f"{name}: driving clip",
                *(_drift(driving, "SFace"), _drift(driving, judge) if judge in judges else ""),
                _number(driving["jitter"][points], 2),
                *(_number(agree.get(axis), 2) for axis in AXES),
                *[""] * 5,
            ]
        )
        for person, part in clip["people"].items():
            identity = part["identity"][_cosine_judge(part["identity"])]
            rows.append(
                [
                    f"{name}: {person}",
                    *(_drift(part, "SFace"), _drift(part, judge)),
                    _number(part["jitter"][points], 2),
                    *(_number(part["pose_correlation"][points][axis], 2) for axis in AXES),
                    *(_number(part[f"{what}_correlation"], 2) for what in ("mouth", "eyes", "gaze")),
                    f"{identity['output']['cosine']['mean']:.2f}",
                    f"{identity['leak']['cosine']['mean']:.2f}",
                ]
            )
    spreads = [clip["driving"]["pose_spread"]["face mesh"] for clip in figures["clips"].values()]
    moved = "; ".join(
        f"{name}: " + ", ".join(f"{axis} {spread[axis]:.1f}" for axis in AXES)
        for name, spread in zip(figures["clips"], spreads, strict=True)
    )
    counts = "; ".join(f"{name}: {clip['faces']} of {clip['frames']}" for name, clip in figures["clips"].items())
    judged = _best(next(iter(figures["clips"].values()))["driving"]["identity_drift"])
    return Table(
        "Figs 13 and 15: identity and attributes along a driving clip",
        [
            *(
                "clip, identity",
                "drift by SFace ↓",
                f"drift by {judged} ↓",
                "jitter, px ↓",
                "pitch ↑",
                "yaw ↑",
                "roll ↑",
            ),
            *("mouth ↑", "eyes ↑", "gaze ↑", "identity cosine ↑", "leak cosine ↓"),
        ],
        rows,
        [
            "Every frame is aligned and composed on its own, without smoothing. Drift: 1 - cosine to the mean code of "
            "the clip, mean over frames (largest). Jitter: mean length of the landmarks' second difference in time, in "
            "px of the 256 px crop.",
            "Pitch, yaw, roll, mouth (gap between the lips), eyes (gap between the lids), gaze (sidelong, by "
            "MediaPipe's iris network): correlation with the driving frames, by the face mesh. "
            f"Standard deviation of the driving pose in degrees: {moved}. What hardly moves cannot be followed. "
            "In the rows of the driving clips: the face mesh against dlib on the driving frames themselves.",
            f"Frames with a usable face: {counts}. The paper gives pictures and no figures here.",
        ],
    )


def _drift(part: Mapping[str, Any], judge: str) -> str:
    value = part["identity_drift"][judge]
    return f"{value['mean']:.3f} ({value['max']:.3f})"


def _value(kind: Mapping[str, Any] | None, measure: str) -> str:
    if kind is None:
        return ""
    return f"{kind['accept']:.2f}" if measure == "accept" else _spread(kind[measure], 3)


def _spread(value: Mapping[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _significant(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
