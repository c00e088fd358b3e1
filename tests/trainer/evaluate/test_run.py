"""The evaluation on real frozen networks and mappers whose figures are known beforehand."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from fid.runtime.assets import FACES
from fid.runtime.errors import FidError, InputError
from fid.runtime.media.images import read_image
from fid.runtime.media.video import open_clip, read_frames
from fid.trainer import cli, personalize
from fid.trainer.evaluate import compare, compose, judges
from fid.trainer.evaluate import run as evaluate
from fid.trainer.evaluate.compose import EvaluateConfig
from fid.trainer.evaluate.photos import photo_pairs, refined_pairs
from fid.trainer.evaluate.run import Subject
from fid.trainer.networks.exported import BundleNetworks, BundleSynthesis
from fid.trainer.networks.inception import InceptionV3
from fid.trainer.pixels import as_crops, from_uint8, to_uint8
from onnx import TensorProto, helper
from torch import nn

CONFIG = EvaluateConfig(pairs=4, batch=2, clip_people=1, cloud=50)


def faces(*names: str) -> np.ndarray:
    """Shipped pictures as crops."""
    return np.stack([cv2.resize(read_image(FACES / name), (256, 256), interpolation=cv2.INTER_AREA) for name in names])


class Mixed(nn.Module):
    """A generator that costs nothing: some of the shipped faces, mixed as w says, or as the mean of W+, at 128 px."""

    resolution = 128
    n_styles = 2

    def __init__(self):
        super().__init__()
        crops = faces("identity-ada.jpg", "identity-ben.jpg", "identity-eve.jpg", "attributes-aside.jpg")
        self.faces = F.avg_pool2d(from_uint8(crops), 2)

    def forward(self, w):
        w = w if w.ndim == 2 else w.mean(1)
        shares = torch.softmax(w[:, :4] * 4, dim=-1)
        return torch.einsum("nk,kchw->nchw", shares, self.faces)


@pytest.fixture(scope="module")
def frozen(frozen):
    return replace(frozen, synthesis=Mixed())


@pytest.fixture(scope="module")
def loaded(frozen):
    """The judges that need nothing installed: SFace, face mesh, LPIPS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "find_spec", lambda name: None)
        return judges.Judges.load(frozen)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with two people, one of them twice, in both ways of naming; one file shows nobody."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "eve").mkdir()
    (folder / "ada_1.jpg").write_bytes((FACES / "identity-ada.jpg").read_bytes())
    mirrored = cv2.imread(str(FACES / "identity-ada.jpg"))[:, ::-1]
    cv2.imwrite(str(folder / "ada_2.png"), mirrored)
    (folder / "eve" / "eve.jpg").write_bytes((FACES / "identity-eve.jpg").read_bytes())
    cv2.imwrite(str(folder / "nobody.png"), np.full((300, 300, 3), 200, np.uint8))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six frames of a face that moves through the picture, the third one without it."""
    path = tmp_path_factory.mktemp("clip") / "moving.avi"
    face = cv2.resize(cv2.imread(str(FACES / "identity-ben.jpg")), (256, 256))
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (320, 320))
    for i in range(6):
        frame = np.full((320, 320, 3), 128, np.uint8)
        if i != 2:
            frame[20 : 20 + 256, 5 + 8 * i : 5 + 8 * i + 256] = face
        video.write(frame)
    video.release()
    return path


def follower(frozen, faces):
    """E_attr and M that find the w of the very attribute image: reconstruction is exact, the leak is total."""
    crops, latents = faces.crop, faces.w

    def networks(identity, crop, portrait):
        crop = F.interpolate(crop, crops.shape[-2:], mode="area")
        nearest = torch.cdist(crop.flatten(1), crops.flatten(1)).argmin(1)
        return latents[nearest]

    return networks


def drawn(frozen, config=CONFIG):
    """The attribute images of an evaluation."""
    random = torch.Generator().manual_seed(config.seed)
    frozen.draw(config.pairs, config.psi, random, config.batch)
    return frozen.draw(config.pairs, config.psi, random, config.batch)


def test_everything_of_a_mapper_that_leaks(frozen, loaded, photos, clip):
    networks = follower(frozen, drawn(frozen))
    constant = lambda identity, crop, portrait: frozen.w_mean.expand(len(identity), -1)  # noqa: E731
    report = evaluate.evaluate_all(
        networks,
        loaded,
        CONFIG,
        photos=evaluate.read_photos(photos),
        clips=[evaluate.read_clip(clip, 6)],
        ablations={"constant": constant},
    )
    figures = report.figures
    short = compose.evaluate(networks, frozen, CONFIG)
    assert {name: figures[name] for name in short} == short  # the short figures are among them, to the last digit
    assert figures["judges"]["identity"] == ["SFace"]
    assert figures["judges"]["not_measured"]["dlib"] == "pip install 'fid-face[eval]'"

    generated = figures["generated"]
    identity = generated["identity"]["SFace"]
    assert identity["leak"]["cosine"]["mean"] == pytest.approx(1, abs=0.01)
    assert identity["output"]["cosine"]["mean"] == pytest.approx(identity["random"]["cosine"]["mean"], abs=0.01)
    assert generated["expression"]["face mesh"]["output"]["mean"] < 0.005
    assert generated["pose"]["face mesh"]["output"]["mean"] < 1.5
    assert generated["frechet_distance"]["output"] == pytest.approx(generated["frechet_distance"]["floor"], rel=0.05)
    rebuilt = generated["reconstruction"]
    assert rebuilt["rmse"]["mean"] < 0.01
    assert rebuilt["psnr"]["mean"] > 40
    assert rebuilt["lpips"]["mean"] < 0.01
    assert rebuilt["identity"]["SFace"]["cosine"]["mean"] > 0.98

    assert figures["ablations"]["constant"]["expression"]["face mesh"]["output"]["mean"] > 0.003
    clouds = figures["w_space"]["clouds"]
    assert list(clouds) == list(report.clouds) == ["generator", "ours", "constant"]
    np.testing.assert_allclose(clouds["constant"]["std"], 0, atol=1e-5)
    np.testing.assert_allclose(clouds["generator"]["std"], 1)

    assert figures["photos"]["people"] == 2
    assert figures["photos"]["photos"] == 3
    assert figures["photos"]["pairs"] == 4  # all that show different people
    assert len(figures["photos"]["skipped"]) == 1
    assert "nobody.png" in figures["photos"]["skipped"][0]
    assert figures["photos"]["same_person"]["SFace"]["cosine"]["mean"] > 0.7

    moving = figures["clips"]["moving"]
    assert (moving["frames"], moving["faces"]) == (6, 5)
    assert list(moving["people"]) == ["generated 1", "photograph 1"]
    assert moving["driving"]["identity_drift"]["SFace"]["max"] < 0.05
    assert len(moving["driving"]["series"]["yaw"]) == 5
    for image in report.pictures.values():
        assert image.dtype == np.uint8
        assert image.ndim == 3


class MeanMapper(nn.Module):
    """Answers the mean of W, whatever it is asked."""

    def __init__(self, frozen):
        super().__init__()
        self.w_mean, self.w_std = frozen.w_mean, frozen.w_std

    def forward(self, identity, attributes, appearance):
        return self.w_mean.expand(len(identity), -1)


def test_people_are_refined_and_their_photos_inverted(frozen, loaded, photos, monkeypatch):
    synthesis = nn.Sequential(frozen.synthesis, nn.Upsample(scale_factor=2))
    synthesis.n_styles = Mixed.n_styles
    networks = personalize.Networks(
        MeanMapper(frozen),
        synthesis,
        frozen.identity,
        None,
        frozen.inner_face,
        attributes=lambda crop: torch.zeros(len(crop), 512),
        perceptual=loaded.lpips,
        head=lambda crop: torch.ones_like(crop[:, :1]),
        mapping=frozen.mapping,
    )
    quick = personalize.PersonalizeConfig(steps=6, bank=1, held_out=1, rate=0.5)
    monkeypatch.setattr(personalize, "FROM_NOTHING", quick)
    monkeypatch.setattr(personalize, "INVERSION", quick)
    said = []
    report = evaluate.evaluate_all(
        lambda identity, crop, portrait: frozen.w_mean.expand(len(identity), -1),
        loaded,
        replace(CONFIG, pairs=2, refine=5),
        photos=evaluate.read_photos(photos),
        refinable=networks,
        log=said.append,
    )
    refined = report.figures["refined"]
    assert refined["people"] == 2  # all there are
    assert refined["pairs"] == 2
    assert "personalising ada, 1 of 2" in said
    cosines = {
        kind: part["identity"]["SFace"]["output"]["cosine"]["mean"]
        for kind, part in refined.items()
        if kind in ("straight", "personalised")
    }
    assert cosines["personalised"] > cosines["straight"] + 0.1
    assert refined["ceiling"]["identity"]["SFace"]["cosine"]["mean"] > cosines["straight"] + 0.1
    assert refined["ceiling"]["n"] == 2
    assert report.pictures["Personalised people"].ndim == 3


def test_refining_needs_photos_and_a_checkpoint_its_generator(tmp_path):
    with pytest.raises(InputError, match="--refine is for people of --photos"):
        evaluate.run(None, replace(CONFIG, refine=1))
    with pytest.raises(InputError, match="needs --generator"):
        Subject("run", lambda *codes: codes[0], None).refinable(tmp_path, None, torch.device("cpu"))


def test_refined_pairs_show_different_people():
    people = ["a", "a", "b", "c", "c"]
    assert refined_pairs(people, 2, 8) == [(0, [2, 4]), (3, [1, 2])]
    assert refined_pairs(people, 9, 1) == [(0, [2]), (2, [1]), (3, [1])]


def test_the_same_seed_gives_the_same_figures(frozen, loaded):
    networks = follower(frozen, drawn(frozen))
    config = replace(CONFIG, pairs=2)
    first, second = (evaluate.evaluate_all(networks, loaded, config).figures for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_pairs_of_photos_show_different_people_once():
    people = ["a", "a", "b", "c"]
    index = photo_pairs(people, 100, 1)
    assert len(index) == len({tuple(pair) for pair in index}) == 10
    assert all(people[i] != people[j] for i, j in index)
    np.testing.assert_array_equal(photo_pairs(people, 3, 7), photo_pairs(people, 3, 7))


def test_photos_of_one_person_are_refused(tmp_path):
    (tmp_path / "ada_1.jpg").write_bytes((FACES / "identity-ada.jpg").read_bytes())
    with pytest.raises(InputError, match="usable photos of 1 people and at least 2"):
        evaluate.read_photos(tmp_path)


def test_a_file_that_is_no_video_and_one_without_a_face(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="is not a video"):
        evaluate.read_clip(tmp_path / "text.mp4", 5)
    video = cv2.VideoWriter(str(tmp_path / "grey.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (320, 320))
    for _ in range(2):
        video.write(np.full((320, 320, 3), 128, np.uint8))
    video.release()
    with pytest.raises(InputError, match="usable face in 0 of 2 frames"):
        evaluate.read_clip(tmp_path / "grey.avi", 5)


def test_clips_are_read_as_the_runtime_reads_them(clip, tmp_path):
    """Squeezed to half its width and marked so: the same face as in the original. OpenCV's reader would squeeze it."""
    squeezed = tmp_path / "squeezed.mp4"
    with av.open(str(squeezed), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 160, 320, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for _, image in read_frames(open_clip(clip)):
            narrow = cv2.resize(image, (160, 320), interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(narrow, format="rgb24")))
        container.mux(stream.encode())
    own, other = evaluate.read_clip(clip, 4), evaluate.read_clip(squeezed, 4)
    assert (other.frames, other.numbers.tolist()) == (4, [0, 1, 3])
    difference = np.abs(own.crops.astype(int) - other.crops).mean()
    assert difference < 6, difference  # half of the detail across is lost; with a squeezed face it is 30 and more


def test_pictures_survive_the_way_to_torch_and_back(rng):
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(to_uint8(from_uint8(images)), images)
    assert as_crops(images).shape == (2, 256, 256, 3)


def test_the_shipped_bundle_runs_as_the_runtime_does():
    subject = Subject.read(None, torch.device("cpu"))
    assert subject.name.startswith("bundle default ")
    assert isinstance(subject.networks, BundleNetworks)
    composer = subject.composer
    crop = cv2.resize(read_image(FACES / "attributes-aside.jpg"), (256, 256), interpolation=cv2.INTER_AREA)
    code = composer.identity_code(crop)
    w = subject.networks(torch.from_numpy(code)[None], *[from_uint8(crop[None])] * 2)
    synthesis = subject.generator(None, 256)
    assert isinstance(synthesis, BundleSynthesis)
    expected = composer.image(composer.w(composer.identity_of(crop), composer.attribute_code(crop)))
    np.testing.assert_array_equal(to_uint8(synthesis(w))[0], expected)
    np.testing.assert_array_equal(to_uint8(synthesis(w[:, None].expand(-1, 17, -1)))[0], expected)


def test_a_bundle_with_another_identity_encoder_is_asked_for_its_codes(toy_bundle):
    subject = Subject.read(toy_bundle, torch.device("cpu"))
    encoder = evaluate.bundle_encoder(subject.composer, None)
    crop = faces("identity-ada.jpg")
    np.testing.assert_allclose(encoder.network(from_uint8(crop))[0], subject.composer.identity_code(crop[0]), atol=1e-6)
    assert encoder.name.startswith("sha256:")


def test_command_line(frozen, capsys, monkeypatch, tmp_path):
    """The shipped networks through a generator of 128 px, a page, and the JSON file."""
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    monkeypatch.setattr(evaluate.FrozenNetworks, "load", lambda synthesis, device, **_: frozen)
    cli.main_group.main(
        ["evaluate", "--pairs", "2", "--page", str(tmp_path / "page"), "-o", str(tmp_path / "figures.json")],
        standalone_mode=False,
    )
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["evaluated"].startswith("bundle default")
    assert {"identity_cosine", "leak_cosine", "random_cosine", "landmark_error", "reconstruction_cosine"} <= set(
        figures
    )
    assert "| *Nitzan et al. 2020 (quoted)* | 4.28 | 0.60 ± 0.09 |" in out
    assert "not measured: pip install 'fid-face[eval]'" in out
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"index.html", "tables.md", "evaluate.json"}


def test_a_bad_ablation_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--ablation", "nowhere"])
    assert stop.value.code == 2
    assert "--ablation is NAME=CHECKPOINT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "why"),
    [("groups.json", "is the original itself"), ("none/f.json", "does not exist"), ("f.txt", "must end in .json")],
)
def test_where_figures_cannot_go_is_told_before_the_work(capsys, tmp_path, monkeypatch, output, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "groups.json").write_text("a table")
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--groups", "groups.json", "-o", output])
    assert stop.value.code == 2
    assert why in capsys.readouterr().err
    assert (tmp_path / "groups.json").read_text() == "a table"


@pytest.fixture(scope="module")
def dlib():
    """dlib's networks, where the extra `eval` is installed."""
    pytest.importorskip("dlib")
    return judges.Dlib.load()


def test_dlib_knows_people_apart_and_sees_their_landmarks(dlib):
    crops = faces("identity-ada.jpg", "identity-ben.jpg")
    crops = np.concatenate([crops, crops[:1, :, ::-1]])
    points, codes = dlib.look(crops)
    assert points.shape == (3, 68, 2)
    eyes = points[:, 36:48].mean(axis=1)
    assert np.abs(eyes - [127.5, 120]).max() < 25
    same, other = np.linalg.norm(codes[0] - codes[2]), np.linalg.norm(codes[0] - codes[1])
    assert same < judges.ACCEPT < other


def test_dlib_takes_the_mean_box_where_it_finds_nobody(dlib):
    points, codes = dlib.look(np.full((1, 256, 256, 3), 128, np.uint8))
    assert points.shape == (1, 68, 2)
    assert codes.shape == (1, 128)


def test_judges_with_dlib(frozen, dlib, monkeypatch):
    monkeypatch.setattr(judges.Dlib, "load", lambda: dlib)
    loaded = judges.Judges.load(frozen)
    assert "dlib" not in loaded.absent
    seen = loaded.look(faces("identity-ada.jpg", "attributes-aside.jpg"))
    assert set(seen.codes) == {"SFace", "dlib"}
    assert set(seen.poses) == set(seen.points) == {"face mesh", "dlib"}
    assert np.abs(seen.poses["face mesh"] - seen.poses["dlib"])[:, :2].max() < 12
    assert len(seen[[1]]) == 1
    again = compare.identity_measures("dlib", seen.codes["dlib"], seen.codes["dlib"])
    assert again["accept"] == 1
    assert again["distance"]["mean"] == 0


def arcface(path: Path, side: int = 112) -> Path:
    """An ONNX file with an ArcFace network's border: the mean colour as the code."""
    nodes = [helper.make_node("GlobalAveragePool", ["input.1"], ["m"]), helper.make_node("Flatten", ["m"], ["683"])]
    borders = [
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("683", TensorProto.FLOAT, ["batch", 3])],
    ]
    graph = helper.make_graph(nodes, "arcface", *borders)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def test_arcface_of_the_user(tmp_path):
    crops = np.zeros((2, 256, 256, 3), np.uint8)
    crops[1] = [255, 127, 0]
    codes = judges.ArcFace(arcface(tmp_path / "arcface.onnx")).codes(crops)
    np.testing.assert_allclose(codes, [[-1, -1, -1], [1, -0.004, -1]], atol=1e-3)
    with pytest.raises(FidError, match="no ArcFace network"):
        judges.ArcFace(arcface(tmp_path / "wrong.onnx", side=96))


def test_inception_of_the_user_names_the_features(frozen, monkeypatch):
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    monkeypatch.setattr(InceptionV3, "load", lambda path: InceptionV3())
    loaded = judges.Judges.load(frozen, inception=Path("inception.pth"))
    assert loaded.features_name == "InceptionV3 (inception.pth), 2048-d"
    assert loaded.look(faces("identity-ada.jpg")).features.shape == (1, 2048)
