"""The first StyleGAN in every published layout makes the pictures that its makers' own code makes; what fid does not
read is named, and broken and malicious files are one sentence.

`stylegan_golden.json` holds pixels of the makers' code, given the weights of `tiny_stylegan` and the z of `Z`:
NVlabs/stylegan 1e0d5c7 (`G_style`, `randomize_noise=False`) and YotamNitzan/ID-disentanglement 342a782 (`StyleGAN_G`)
by TensorFlow 2.15.1, their convolutions of NCHW maps done through NHWC since a CPU has no others;
rosinality/style-based-gan-pytorch 07fa60b (`StyledGenerator`, alpha 1) with the noise of `from_stylegan`. Kept are the
first numbers of w and 16 places of every channel.
"""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer.weights.generator import read_generator
from safetensors.torch import save_file
from tiny_stylegan import (
    rosinality_names,
    variables,
    widths_of,
    write_keras,
    write_rosinality,
    write_tensorflow,
)

GOLDEN = json.loads(Path(__file__).with_name("stylegan_golden.json").read_text())
Z = torch.from_numpy(np.random.RandomState(11).standard_normal((2, 512)).astype(np.float32))
SMALL = widths_of(32, 128, 12)  # channels

NVIDIA = {"nvidia-256": (256, 1024, 16), "nvidia-512": (512, 2048, 24), "nvidia-1024": (1024, 2048, 16)}
ROSINALITY = {
    "rosinality-256": ((16, 16, 12, 8, 8, 8, 6, 4), 7),  # of a training that ended at 256 px
    "rosinality-1024": ((16, 16, 16, 12, 12, 8, 8, 6, 4), 9),
}


def write(name: str, folder: Path) -> Path:
    if name in ROSINALITY:
        return write_rosinality(folder / "g.pt", rosinality_names(*ROSINALITY[name]))
    if name == "keras-256":
        return write_keras(folder / "g.h5", variables(widths_of(256, 1024, 16)))
    sizes = (1024, 8192, 512) if name.endswith("published") else NVIDIA[name]
    return write_tensorflow(folder / "g.pkl", variables(widths_of(*sizes)), resolution=sizes[0])


@pytest.mark.parametrize(
    "name",
    [
        *("nvidia-256", "keras-256", "rosinality-256"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in GOLDEN if not name.endswith("-256")),
    ],
)
def test_pictures_are_those_of_the_makers_own_code(name, tmp_path):
    if name == "keras-256":
        pytest.importorskip("h5py")
    golden = GOLDEN[name]
    generator = read_generator(write(name, tmp_path))
    side = int(name.split("-")[1])
    assert generator.origin["native_resolution"] == generator.synthesis.resolution == side
    with torch.no_grad():
        w = generator.mapping(Z[: len(golden["pixels"]) // 3])
        image = generator.synthesis(w)
    torch.testing.assert_close(w[0, :8], torch.tensor(golden["w"]), atol=2e-5, rtol=1e-5)
    y, x = np.random.RandomState(1).randint(0, side, (16, 2)).T
    apart = (image[:, :, y, x].flatten(0, 1) - torch.tensor(golden["pixels"])).abs() / golden["std"]
    # float32 through up to 18 layers, relative to the deviation of these pictures of random weights
    assert apart.max() < 1e-4, f"max {apart.max():.2g}, mean {apart.mean():.2g}"


@pytest.fixture(scope="module")
def small():
    return variables(SMALL)


def test_keras_and_tensorflow_hold_the_same(small, tmp_path):
    pytest.importorskip("h5py")
    one = read_generator(write_tensorflow(tmp_path / "g.pkl", small))
    other = read_generator(write_keras(tmp_path / "g.h5", small))
    for a, b in ((one.mapping, other.mapping), (one.synthesis, other.synthesis)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert one.origin["layout"] == "NVIDIA, TensorFlow"
    assert other.origin["layout"] == "Keras, ID-disentanglement"
    assert one.origin["kind"] == other.origin["kind"] == "StyleGAN"


def test_resolution_and_noise_are_chosen(small, tmp_path):
    path = write_tensorflow(tmp_path / "g.pkl", small)
    generator = read_generator(path, 16, noise=False)
    assert generator.synthesis(Z).shape == (2, 3, 16, 16)
    assert generator.origin["noise"] == "none"
    assert read_generator(path).origin["noise"] == "constant"
    with pytest.raises(InputError, match="makes images of 32 px, which cannot be averaged down to 256 px"):
        read_generator(path, 256)
    drawn = read_generator(write_rosinality(tmp_path / "g.pt", rosinality_names((12, 8), 2)))
    assert drawn.origin["noise"] == "drawn"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_size": 10}, "wants a class label"),
        ({"use_pixel_norm": True}, "is a StyleGAN with use_pixel_norm True, and fid reads those with False"),
        ({"blur_filter": [1, 3, 3, 1]}, "is a StyleGAN with blur_filter"),
        ({"nonlinearity": "relu"}, "is a StyleGAN with nonlinearity relu"),
        ({"mapping_lrmul": "much"}, "has an option that is no number"),
    ],
)
def test_other_generators_are_named(small, options, sentence, tmp_path):
    with pytest.raises(FidError, match=sentence):
        read_generator(write_tensorflow(tmp_path / "g.pkl", small, **options))


def test_one_that_grows_and_one_with_labels_are_named(small, tmp_path):
    with pytest.raises(InputError, match="still growing"):
        read_generator(write_tensorflow(tmp_path / "g.pkl", {**small, "synthesis/lod": np.ones((), np.float32)}))
    labels = {**small, "mapping/LabelConcat/weight": np.zeros((10, 512), np.float32)}
    with pytest.raises(InputError, match="wants a class label"):
        read_generator(write_tensorflow(tmp_path / "g.pkl", labels))
    third = {"mapping.fc0.weight": torch.zeros(512, 512), "synthesis.input.weight": torch.zeros(512, 512)}
    save_file(third, tmp_path / "third.safetensors")
    with pytest.raises(InputError, match="holds StyleGAN3"):
        read_generator(tmp_path / "third.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("synthesis/8x8/Conv1/bias", None, r"it lacks synthesis\.b8\.conv1\.bias"),
        ("synthesis/8x8/Conv1/bias", np.zeros(3, np.float32), r"it has synthesis\.b8\.conv1\.bias as \[3\]"),
        ("synthesis/8x8/Conv1/bias", np.full(12, np.nan, np.float32), "numbers that are not finite"),
        ("synthesis/8x8/Conv1/weight", np.zeros((0, 0, 0, 0), np.float32), "is broken: it holds arrays of shapes"),
        ("mapping/Dense0/weight", np.zeros((64, 512), np.float32), "fid works with 512 numbers"),
        ("synthesis/ToRGB_lod0/weight", np.zeros((1, 1, 8, 1), np.float32), r"expected \[3, 8, 1, 1\]"),
    ],
)
def test_weights_that_do_not_fit(small, name, value, sentence, tmp_path):
    changed = {key: array for key, array in {**small, name: value}.items() if array is not None}
    with pytest.raises(FidError, match=sentence) as raised:
        read_generator(write_tensorflow(tmp_path / "g.pkl", changed))
    assert "\n" not in str(raised.value)


class Attack:
    """Runs a command when unpickled by Python."""

    def __reduce__(self):
        return os.system, ("touch OWNED",)


def test_malicious_files_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = rosinality_names((8, 8), 2, depth=1)
    torch.save({"g_running": names, "args": Attack()}, tmp_path / "a.pt")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps((None, Attack(), None)))
    for path in (tmp_path / "a.pt", tmp_path / "b.pkl"):
        with pytest.raises(FidError, match="is refused: it"):
            read_generator(path)
    assert not (tmp_path / "OWNED").exists()


def test_broken_files_are_one_sentence(tmp_path):
    pytest.importorskip("h5py")
    few = variables((8, 8), depth=1)
    random = np.random.default_rng(0)
    for path in (
        write_tensorflow(tmp_path / "g.pkl", few),
        write_keras(tmp_path / "g.h5", few),
        write_rosinality(tmp_path / "g.pt", rosinality_names((8, 8), 2, depth=1)),
    ):
        whole = path.read_bytes()
        for end in [0, 7, 60, *random.integers(64, len(whole), 6), len(whole) - 1]:
            path.write_bytes(whole[:end])
            with pytest.raises(FidError) as raised:
                read_generator(path)
            assert "\n" not in str(raised.value)


def test_an_hdf5_file_that_points_elsewhere_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    secret = write_keras(tmp_path / "secret.h5", {"synthesis/4x4/Const/const": np.ones((1, 8, 4, 4), np.float32)})
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["StyleMod"] = h5py.ExternalLink(str(secret), "/")
    with pytest.raises(FidError, match="points elsewhere"):
        read_generator(tmp_path / "link.h5")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("StyleMod", (64,), "f4", external=[(str(secret), 0, 256)])
    with pytest.raises(FidError, match="not in the file itself"):
        read_generator(tmp_path / "raw.h5")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("StyleMod", (1 << 30,), "f4", chunks=(1 << 16,), compression="gzip")
    with pytest.raises(FidError, match="more numbers than it has bytes"):
        read_generator(tmp_path / "bomb.h5")
