"""A random first StyleGAN of 256 px goes all the way: trained through, exported in FP16, composed with, built by
TensorRT-RTX. Random ones of both kinds go as far with a mapper into W+."""

import json
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner
from fid.export import cli as export_cli
from fid.export.to_tensorrt import build_engines
from fid.runtime.assets import FACES
from fid.runtime.commands.cli import main as run_cli
from fid.runtime.engines.tensorrt.build import Batch, library
from fid.runtime.weights.bundle import Bundle
from fid.trainer.cli import main_group
from fid.trainer.weights.checkpoint import read_record
from tiny_stylegan import variables, widths_of, write_tensorflow
from tiny_stylegan2 import config_channels, random_weights, write_nvidia

QUICK = ("warm_steps=20", "self_batch=4", "cross_batch=2", "probe_weight=0", "probe_faces=32", "augmentation=false")


def invoke(command, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stylegan")
    return write_tensorflow(folder / "karras2019stylegan.pkl", variables(widths_of(256, 1024, 24)), resolution=256)


def trained_and_exported(file, folder, steps, *values, fp16) -> Bundle:
    settings = [part for value in (*QUICK, *values) for part in ("--set", value)]
    invoke(main_group, "fit", "-o", folder / "run", "--generator", file, "--steps", steps, *settings)
    assert read_record(folder / "run")["step"] == steps
    options = *(["--fp16"] if fp16 else []), "--weights", "fp32", "--threads", 1
    invoke(export_cli.command, folder / "run", "--generator", file, "--faces", 24, *options, "-o", folder / "bundle")
    return Bundle.load(folder / "bundle")


@pytest.fixture(scope="module")
def bundle(file, fetched, tmp_path_factory):
    """The exported bundle after 50 steps of training."""
    return trained_and_exported(file, tmp_path_factory.mktemp("run"), 50, fp16=True)


def composed(bundle, tmp_path):
    faces = FACES / "identity-ada.jpg", FACES / "attributes-laughing.jpg"
    arguments = "--bundle", bundle.folder, "--identity", faces[0], "--attributes", faces[1]
    said = invoke(run_cli, "compose", *arguments, "-o", tmp_path / "out.png", "--json")
    assert json.loads(said)["resolution"] == bundle.resolution
    picture = cv2.imread(str(tmp_path / "out.png"))
    assert picture.shape == (bundle.resolution, bundle.resolution, 3)
    assert picture.std() > 5


@pytest.mark.slow
def test_a_random_stylegan_is_trained_through_exported_and_composed_with(bundle, tmp_path):
    origin = bundle.provenance["generator"]
    assert (origin["kind"], origin["layout"], bundle.resolution) == ("StyleGAN", "NVIDIA, TensorFlow", 256)
    assert origin["w_distance"] < 0.05
    assert bundle.n_styles == 14
    assert bundle.graph("synthesis").fp16_graph is not None
    for graph in ("synthesis", "reenact", "mapping"):
        parity = bundle.parity[graph]
        assert parity["max"] <= parity["tolerance"]["max"]
    composed(bundle, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["StyleGAN", "StyleGAN2"])
def test_w_plus_goes_as_far(kind, file, fetched, tmp_path):
    if kind == "StyleGAN2":
        file = write_nvidia(tmp_path / "ffhq-256.pkl", random_weights(config_channels(256, 1024, 24)))
    bundle = trained_and_exported(file, tmp_path, 4, "warm_steps=2", "w_plus=true", fp16=False)
    assert bundle.provenance["generator"]["kind"] == kind
    assert bundle.graph("mapper").outputs[0].shape == ("batch", 14, 512)
    composed(bundle, tmp_path)
    said = invoke(main_group, "evaluate", bundle.folder, "--pairs", 2)
    assert "Table 2" in said


@pytest.mark.slow
@pytest.mark.rtx
def test_tensorrt_rtx_builds_it(bundle, empty_cache):
    pytest.importorskip("tensorrt_rtx")
    library("tensorrt-rtx")
    facts = build_engines(bundle, "tensorrt-rtx", Batch())
    built = {Path(fact.graph).stem for fact in facts}
    assert {"synthesis", "reenact", "attributes", "mapper"} <= built
    assert all(len(fact.engine.plan) > 10_000 for fact in facts)
