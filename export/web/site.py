"""Write the static site: the page of `fid-run serve`, what computes in its place, the graphs, a list of all files."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.assets import WEB, installed_version, shipped_faces
from ...runtime.composer import Composer
from ...runtime.errors import InputError
from ...runtime.identity import FORMAT as IDENTITY_FORMAT
from ...runtime.identity import attributes_name, encoder_name
from ...runtime.labels.provenance import inserted_note
from ...runtime.weights import catalogue
from ...runtime.weights.bundle import LIGHT, Bundle
from ...runtime.weights.cache import new_folder, plain_disk_errors, sha256
from .graphs import DETECT, GRAPHS, web_graph
from .onnxruntime_web import BUILDS, COMPRESSED, FILES, LICENCE, PACKAGE, VERSION, onnxruntime_web

PAGE = Path(__file__).parent / "page"
SHARED = (
    "page.css",
    "page.js",
    "check.js",
    "faces.js",
    "keep.js",
    "note.js",
    "videos.js",
    "icon.svg",
)  # with `fid-run serve`
RECORD = "site.json"
KINDS = ("composition", "interpolation", "reenactment")
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
"""Of the page: what it loads and where it may send anything to, which is the site itself."""

FRAMED = "; frame-ancestors 'none'"  # only a header may say it


@dataclass(frozen=True)
class Site:
    """What was written."""

    folder: Path
    total: int  # bytes of all files
    first_picture: int  # bytes that a visitor loads up to the first picture on WASM, compressed as hosts do
    live: int  # and up to live pictures


def write_site(bundle: Bundle, target: Path, progress: Callable[[str], None] = lambda what: None) -> Site:
    """Write the site of a bundle to the folder `target`, in the place of a former one; return its figures.

    `progress` hears what is being done. Raises InputError when `target` holds something else, the bundle makes pictures
    that a page cannot or its mapper answers in W+; FidError when something cannot be fetched or written. The folder
    appears whole or not at all.
    """
    target = Path(target)
    _check_target(target)
    if bundle.maps_to_w_plus:
        raise InputError(f"the bundle {bundle.name} maps into W+, and the page computes with mappers into W.")
    progress(f"fetching {PACKAGE} {VERSION}")
    runtime = onnxruntime_web()
    with plain_disk_errors("writing the site", target.parent), new_folder(target) as folder:
        for name in SHARED:
            shutil.copyfile(WEB / name, folder / name)
        for path in sorted((*PAGE.glob("*.js"), PAGE / "apache-2.0.txt")):
            shutil.copyfile(path, folder / path.name)
        (folder / "index.html").write_text(_page((WEB / "index.html").read_text(encoding="utf-8")), encoding="utf-8")
        (folder / "licences.txt").write_text(_licences(bundle), encoding="utf-8")
        (folder / "ort").mkdir()
        for name in FILES:
            shutil.copyfile(runtime / name, folder / "ort" / name)
        graphs = _write_graphs(bundle, folder, progress)
        progress("encoding the faces that ship")
        record = _record(bundle, folder, graphs)
        now = [path.name for path in folder.iterdir() if path.is_file() and path.name != "sw.js"]
        _write_lists(folder, record, [*now, RECORD])
        sizes = {path.relative_to(folder).as_posix(): _compressed(path) for path in folder.rglob("*") if path.is_file()}
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    first = _first_load(sizes, graphs, ("mapper", LIGHT if LIGHT in graphs else "synthesis"))
    live = _first_load(sizes, graphs, ("mapper", LIGHT if LIGHT in graphs else "synthesis", "attributes", DETECT))
    return Site(target, total, first, live)


def _check_target(target: Path) -> None:
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / RECORD).is_file()):
        raise InputError(f"{target} holds something else than a site; give the name of a new folder.")
    if not target.absolute().parent.is_dir():
        raise InputError(f"the folder {target.absolute().parent} does not exist; create it first.")


def _page(html: str) -> str:
    """Return the shared page, told that this browser computes, with its policy and a link to the licences inside."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return (
        html.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}')
        .replace('<body data-source="server">', '<body data-source="device">')
        .replace("device.</span>\n", 'device. <a href="licences.txt">Licences</a></span>\n')
    )


def _write_graphs(bundle: Bundle, folder: Path, progress: Callable[[str], None]) -> dict[str, str]:
    """Write the graphs; return the file of each."""
    (folder / "graphs").mkdir()
    files = {}
    for name in (DETECT, *(name for name in GRAPHS if name in bundle.graphs)):
        progress(f"writing the graph {name}")
        files[name] = f"graphs/{name}.onnx"
        (folder / files[name]).write_bytes(web_graph(bundle, name))
    return files


def _record(bundle: Bundle, folder: Path, graphs: dict[str, str]) -> dict[str, Any]:
    """What the page knows: the bundle, the faces that ship and their codes, notes for pictures, pictures to check."""
    composer = Composer(bundle, engine="onnxruntime")
    (folder / "faces").mkdir()
    faces: dict[str, list[dict[str, Any]]] = {"identity": [], "attributes": []}
    people, codes = [], []
    for kind, listed in faces.items():
        for name, path in shipped_faces(kind).items():
            shutil.copyfile(path, folder / "faces" / path.name)
            entry: dict[str, Any] = {"name": name, "picture": f"faces/{path.name}"}
            crop = composer.crop(path)
            if kind == "identity":
                people.append(composer.identity_of(crop))
                appearance = people[-1].appearance
                entry |= {"code": _base64(people[-1].code)}
                entry |= {"appearance": None if appearance is None else _base64(appearance)}
            else:
                codes.append(composer.attribute_code(crop))
                entry["code"] = _base64(codes[-1])
            listed.append(entry)
    w = composer.w(people[0], codes[0])
    checks = {}
    for name in ("synthesis", LIGHT):
        if name in graphs:
            checks[name] = {"w": [float(value) for value in w], "picture": f"graphs/{name}-check.rgb"}
            picture = composer.image(w, light=name == LIGHT)
            (folder / checks[name]["picture"]).write_bytes(picture.tobytes())
    return {
        "version": installed_version() or "unknown",
        "bundle": {
            "name": bundle.name,
            "version": bundle.version,
            "resolution": bundle.resolution,
            "takesAppearance": bundle.takes_appearance,
            "encoder": encoder_name(bundle),
            "attributes": attributes_name(bundle),
            "identityFormat": IDENTITY_FORMAT,
        },
        "graphs": graphs,
        "runtimes": {
            name: {"script": f"ort/{script}", "wasm": f"ort/{program}"} for name, (script, program) in BUILDS.items()
        },
        "check": checks,
        "notes": {kind: inserted_note(composer.note(kind)) for kind in KINDS},
        "faces": faces,
    }


def _write_lists(folder: Path, record: dict[str, Any], at_once: list[str]) -> None:
    """Write `site.json`, with size and SHA-256 of every file, and the service worker, with those and its own."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "sw.js"
    }
    (folder / RECORD).write_text(json.dumps({**record, "files": files}, indent=1) + "\n")
    listed = {name: [facts["sha256"], name in at_once or not _large(name)] for name, facts in files.items()}
    listed[RECORD] = [sha256(folder / RECORD), True]
    worker = (folder / "sw.js").read_text(encoding="utf-8").replace('"__FILES__"', f"'{json.dumps(listed)}'")
    (folder / "sw.js").write_text(worker.replace("__POLICY__", POLICY + FRAMED), encoding="utf-8")


def _large(name: str) -> bool:
    """Whether a file waits until it is needed."""
    return name.startswith("graphs/") or name.endswith(".wasm")


def _first_load(sizes: dict[str, int], graphs: dict[str, str], names: tuple[str, ...]) -> int:
    """Bytes of the small files, WASM and these graphs."""
    small = sum(size for name, size in sizes.items() if not _large(name))
    return small + sizes[f"ort/{BUILDS['wasm'][1]}"] + sum(sizes[graphs[name]] for name in names)


def _compressed(path: Path) -> int:
    """Size as most hosts send it: text and programs compressed, weights and pictures as they are."""
    if path.name in COMPRESSED:
        return COMPRESSED[path.name]
    data = path.read_bytes()
    return len(data) if path.suffix in (".onnx", ".rgb", ".jpg") else len(gzip.compress(data, 6))


def _base64(code: np.ndarray) -> str:
    return base64.b64encode(code.astype("<f4").tobytes()).decode()


def _licences(bundle: Bundle) -> str:
    """Where everything on the site comes from, and under which licence."""
    lines = [
        "What this site is made of, and under which licences.",
        "",
        "fid, the page: MIT",
        f"{PACKAGE} {VERSION}, by Microsoft: {LICENCE}",
        *(
            f"{entry.what} (package {entry.package} {entry.version}): {entry.licence}"
            for entry in map(catalogue.model, ("sface", "yunet"))
        ),
        f"bundle {bundle.name} {bundle.version}:",
        *(f"  {line}" for line in json.dumps(bundle.provenance.get("licences", {}), indent=1).splitlines()),
        "",
        "The shipped weights descend from NVIDIA's StyleGAN2, trained on FFHQ, by way of MobileStyleGAN. Treat them,",
        "and what you make with them, as non-commercial unless you have taken advice.",
        "",
        "The Apache License 2.0, of SFace and of the bundle's weights, is in apache-2.0.txt beside this file.",
        "",
        (PAGE / "mit.txt").read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)
