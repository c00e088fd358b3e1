"""What the commands say: which face was taken, what a wrong file is, numbers with nouns, helps that stand alone."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands import machine, options
from fid.runtime.commands.bench import LEAST_FRAMES
from fid.runtime.commands.cli import main
from fid.runtime.face import detect
from fid.runtime.face.detect import Choice, Face, choose_face
from fid.runtime.identity import Identity
from fid.runtime.media.images import read_image
from fid.runtime.terminal import counted

from ..media.test_video import write_clip
from .test_photos import ADA, BEN, LAUGHING, fid_run, one_line


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: Callable[[str], Path]) -> None:
    fetched("yunet")
    monkeypatch.chdir(tmp_path)


def face(x: float, width: float, score: float) -> Face:
    return Face((x, 10, width, width), np.zeros((5, 2)), score)


def test_remarks_tell_of_other_faces_and_of_doubt() -> None:
    large, left, right = face(450, 100, 0.95), face(10, 60, 0.93), face(900, 50, 0.94)
    choice = Choice("p.jpg", 1000, (large, left, right), large, None)
    assert choice.remarks("--face") == [
        "p.jpg shows 3 faces; the largest, in the middle, was taken "
        "(--face 2 is at the left, --face 3 is at the right)."
    ]
    assert Choice("p.jpg", 1000, (large, left), left, 2).remarks("--face") == []  # it was asked for
    (doubt,) = Choice("cat.jpg", 1000, (face(0, 50, 0.83),), face(0, 50, 0.83), None).remarks("--face")
    assert doubt.startswith("cat.jpg: the detector is only 0.83 sure that this is a face")


def test_faces_below_the_confidence_asked_for_do_not_count() -> None:
    frontal = np.array([[96.0, 120], [160, 120], [128, 159], [98, 186], [158, 186]])
    sure, doubtful = Face((0, 0, 100, 100), frontal, 0.95), Face((0, 0, 200, 200), frontal, 0.8)
    assert choose_face([doubtful, sure], None, "p.jpg", 0.7) is doubtful
    assert choose_face([doubtful, sure], None, "p.jpg", 0.9) is sure
    with pytest.raises(detect.InputError, match=r"only 0\.80 sure of a face, and 0\.9 is asked for"):
        choose_face([doubtful], None, "p.jpg", 0.9)


def test_the_usual_confidence_is_the_detectors() -> None:
    assert (options.DOUBTFUL_SCORE, options.MIN_SCORE) == (detect.DOUBTFUL_SCORE, detect.MIN_SCORE)


def test_a_group_photo_tells_whom_it_took_and_a_drawing_is_doubted(bundle: str) -> None:
    small = cv2.resize(read_image(Path(BEN)), (200, 200), interpolation=cv2.INTER_AREA)
    small = cv2.copyMakeBorder(small, 56, 0, 0, 0, cv2.BORDER_REPLICATE)
    cv2.imwrite("pair.png", np.hstack([read_image(Path(ADA)), small])[..., ::-1])
    arguments = ("compose", "--bundle", bundle, "--refine", "0", "--attributes", "pair.png", "-o", "out.png")
    said = fid_run(*arguments, "--identity", "pair.png", "--face", "2").stderr
    taken = "the largest, at the left, was taken (--identity-face 2 is at the right)."
    assert said == f"fid-run: pair.png shows 2 faces; {taken}\n"
    sketch, _ = cv2.pencilSketch(cv2.imread(str(FACES / "identity-carl.jpg")))
    cv2.imwrite("sketch.png", sketch)
    chosen = (*arguments, "--face", "1", "--identity", "sketch.png")
    assert "sketch.png: the detector is only" in fid_run(*chosen).stderr
    assert "is asked for (--min-confidence)" in one_line(fid_run(*chosen, "--min-confidence", "0.95", exit_code=2))


def test_a_folder_is_one_person(bundle: str) -> None:
    Path("ann").mkdir()
    for photo in (ADA, BEN):
        shutil.copy(photo, "ann")
    arguments = ("compose", "--bundle", bundle, "--attributes", LAUGHING, "-o", "out.png", "--save-identity")
    fid_run(*arguments, "folder.npz", "--identity", "ann")
    fid_run(*arguments, "photos.npz", "--identity", ADA, "--identity", BEN)
    np.testing.assert_array_equal(Identity.load("folder.npz").code, Identity.load("photos.npz").code)
    inside = ("compose", "--bundle", bundle, "--attributes", LAUGHING, "--identity", "ann")
    assert "is the original itself" in one_line(fid_run(*inside, "-o", "ann/identity-ada.jpg", exit_code=2))


def test_a_file_that_is_no_photo_is_called_what_it_is(bundle: str) -> None:
    write_clip(Path("clip.mp4"), [0, 22500])
    fid_run(
        "compose",
        "--bundle",
        bundle,
        "--identity",
        ADA,
        "--attributes",
        LAUGHING,
        "-o",
        "o.png",
        "--save-identity",
        "a.npz",
    )
    Path("scan.pdf").write_bytes(b"%PDF-1.7\n...")
    for name, words in {"clip.mp4": "is a video", "a.npz": "is an identity file", "scan.pdf": "is a PDF"}.items():
        for role in ("--attributes",) if name == "a.npz" else ("--attributes", "--identity"):
            other = "--identity" if role == "--attributes" else "--attributes"
            result = fid_run("compose", "--bundle", bundle, role, name, other, ADA, "-o", "x.png", exit_code=2)
            assert words in one_line(result)


def test_a_resolution_that_is_not_there_is_answered_with_those_that_are(bundle: str) -> None:
    arguments = ("compose", "--bundle", bundle, "--identity", ADA, "--attributes", LAUGHING, "-o", "out.png")
    said = one_line(fid_run(*arguments, "--resolution", "512", exit_code=2))
    assert said.endswith("this bundle composes at 256.")


@pytest.mark.parametrize("record", ["out.txt", "nowhere/out.mp4"])
def test_the_name_of_a_recording_is_checked_before_a_camera_is_looked_for(
    record: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fid.runtime.media.camera_list.find_camera", lambda name: pytest.fail("a camera was looked for")
    )
    assert "cannot be written" in one_line(fid_run("webcam", "--identity", ADA, "--record", record, exit_code=2))


def test_bench_remembers_nothing_from_few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {name: {"p50": 2.0} for name in ("attributes", "mapper", "synthesis")}
    row = {"fps": 1.0, "frame_ms": {"p50": 1.0, "p95": 1.0, "p99": 1.0}, "psnr_db": 99.0, "identity_cosine": 1.0}
    row |= {"stage_ms": stage, "provider": "x"}
    kept: list[object] = []
    monkeypatch.setattr("fid.runtime.engines.machine.remember", lambda *found: kept.append(found))
    for frames in (LEAST_FRAMES, LEAST_FRAMES - 1):
        rows = [row | {"engine": name, "frames": frames} for name in ("onnxruntime", "openvino")]
        monkeypatch.setattr("fid.runtime.commands.bench.bench", lambda *given, rows=rows: rows)
        result = fid_run("bench", "--json")
    assert len(kept) == 1
    assert json.loads(result.stdout)["auto"] == {}
    assert "openvino composed 29 frames in 10 s, and 30 are needed" in result.stderr
    assert machine.counted is counted


def test_numbers_have_their_nouns_and_figures_their_digits() -> None:
    assert [counted(n, "person", "people") for n in (0, 1, 2)] == ["0 people", "1 person", "2 people"]
    assert counted(1, "file") == "1 file"
    told = {"ms": {"read": 21.482193847}, "n": 123456789, "bad": float("nan"), "all": (0.123456789, Path("a"))}
    assert options.json_line(told) == '{"ms": {"read": 21.482}, "n": 123456789, "bad": null, "all": [0.12346, "a"]}'


def all_options(group: click.Group) -> Iterator[tuple[str, click.Option]]:
    """Every option of every command of a group, with the command's name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_options(command)
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield name, parameter


@pytest.mark.parametrize(
    ("command", "option"), [pytest.param(c, o, id=f"{c} {o.opts[0]}") for c, o in all_options(main)]
)
def test_a_help_text_stands_by_itself_and_tells_its_default(command: str, option: click.Option) -> None:
    text = option.help or ""
    assert re.match(r"[A-Z0-9].*", text), f"{command}: {text}"
    assert len(text.split()) >= 3
    assert not re.match(r"The same|Of (?:an?|the) |Only |It ", text), text  # it would lean on the text before
    told = option.required or option.is_flag or option.show_default or "[default: " in text or option.multiple
    needs_none = {"--save-identity", "--files", "--photos", "--record", "--tracks", "--write-tracks", "--preview"}
    needs_none |= {"--require", "--sign-cert", "--sign-key", "--camera", "--certificate", "--driving"}
    assert told or option.opts[0] in needs_none, f"{command} {option.opts}: {text}"
