"""Files that ship with fid: faces of people who do not exist, the default bundle, graph skeletons, the page."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
FACES = ROOT / "faces"  # of people who do not exist; made by docs/pictures/make_demo_faces.py
BUNDLE = ROOT / "bundles" / "default"
SKELETONS = ROOT / "graphs"
PARTS = SKELETONS / "parts.onnx"  # tells hair from face and neck; made by `fid-train parts`
PEOPLE = SKELETONS / "people.onnx"  # finds people; made by `python -m fid.trainer.people`
STAND_INS = SKELETONS / "stand_ins.npz"  # synthetic people, measured; made by benchmarks/traits.py
WEB = ROOT / "web"
MODELS = ROOT / "models.toml"


def shipped_faces(kind: str) -> dict[str, Path]:
    """Return the faces that ship with fid, by name; `kind` is "identity" or "attributes"."""
    return {path.stem.partition("-")[2]: path for path in sorted(FACES.glob(f"{kind}-*.jpg"))}


def installed_version(distribution: str = "fid-face") -> str | None:
    """Return the version of an installed distribution, None where it is not installed."""
    from importlib import metadata  # here: takes 30 ms

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
