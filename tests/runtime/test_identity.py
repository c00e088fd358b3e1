"""An identity is a unit code and nothing else; whatever is no identity file is refused."""

import dataclasses
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fid.runtime.errors import InputError
from fid.runtime.identity import FORMAT, Identity, average, fingerprint, mapper_name
from fid.runtime.weights.bundle import Bundle


def unit(seed: int, size: int = 128) -> np.ndarray:
    code = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    return code / np.linalg.norm(code)


def person(seed: int, **more: object) -> Identity:
    return Identity(**{"code": unit(seed), "encoder": "sface", **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("offset", [None, np.linspace(-1, 1, 3 * 512, dtype=np.float32).reshape(3, 512)])
def test_what_is_saved_is_loaded(tmp_path: Path, offset: np.ndarray | None) -> None:
    mapper = None if offset is None else "sha256:5a"
    saved = person(1, sources=3, w_plus_offset=offset, mapper=mapper)
    saved.save(tmp_path / "me.npz")
    loaded = Identity.load(tmp_path / "me.npz")
    np.testing.assert_array_equal(loaded.code, saved.code)
    assert (loaded.encoder, loaded.sources, loaded.mapper) == ("sface", 3, mapper)
    assert (loaded.w_plus_offset is None) == (offset is None)
    if offset is not None:
        np.testing.assert_array_equal(loaded.w_plus_offset, offset)
    assert [file.name for file in tmp_path.iterdir()] == ["me.npz"]


def test_a_file_of_format_1_has_one_offset_for_every_style(tmp_path: Path) -> None:
    offset = np.linspace(-1, 1, 512, dtype=np.float32)
    (tmp_path / "old.npz").write_bytes(npz(format=np.array(1), w_offset=offset, mapper=np.array("sha256:5a")))
    loaded = Identity.load(tmp_path / "old.npz")
    np.testing.assert_array_equal(loaded.w_plus_offset, offset[None])
    assert loaded.mapper == "sha256:5a"


def test_the_file_holds_a_few_numbers_and_no_photo(tmp_path: Path) -> None:
    person(1).save(tmp_path / "me.npz")
    assert (tmp_path / "me.npz").stat().st_size < 3000
    with np.load(tmp_path / "me.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"format", "code", "encoder", "sources"}


def test_saving_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.npz"):
        person(1).save(tmp_path / "me.png")
    with pytest.raises(InputError, match="does not exist; create it first"):
        person(1).save(tmp_path / "nowhere" / "me.npz")


def npz(**arrays: object) -> bytes:
    whole: dict[str, object] = {
        "format": np.array(FORMAT),
        "code": unit(1),
        "encoder": np.array("sface"),
        "sources": np.array(1),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **{k: v for k, v in {**whole, **arrays}.items() if v is not None})  # type: ignore[arg-type]
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("code.npy", b"\0" * 50_000_000)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, unit(1))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "broken or of another kind"),
        (b"not a zip at all", "broken or of another kind"),
        (npy(), "broken or of another kind"),
        (npz()[:200], "broken or of another kind"),
        (b"x" * (1 << 21), "larger than 1 MB"),
        (bomb(), "unpacks to more than 1 MB"),
        (npz(code=np.array([object()])), "broken or of another kind"),  # a pickle inside is not read
        (npz(format=None), "not written by fid"),
        (npz(code=None), "not written by fid"),
        (npz(format=np.array(99)), "format 99; this fid reads 1 to 2"),
        (npz(format=np.array(0)), "format 0; this fid reads 1 to 2"),
        (npz(code=unit(1) * 2), "no unit vector"),
        (npz(code=np.full(128, np.nan, np.float32)), "no unit vector"),
        (npz(code=unit(1).astype(np.float64)), "no unit vector"),
        (npz(code=unit(1)[None]), "no unit vector"),
        (npz(encoder=np.array(5)), "description cannot be read"),
        (npz(sources=np.array("many")), "description cannot be read"),
        (npz(w_plus_offset=np.full((3, 512), np.inf, np.float32)), "offset in W\\+"),
        (npz(w_plus_offset=np.zeros(512, np.float32)), "offset in W\\+"),
        (npz(w_plus_offset=np.zeros((3, 512), np.float32), mapper=np.array(5)), "description cannot be read"),
    ],
)
def test_what_is_no_identity_file(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "me.npz").write_bytes(content)
    with pytest.raises(InputError, match=words):
        Identity.load(tmp_path / "me.npz")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Identity.load(tmp_path / "me.npz")
    with pytest.raises(InputError, match="is not a file"):
        Identity.load(tmp_path)


def test_the_average_is_the_unit_mean() -> None:
    mean = average([person(1), person(2), person(3)])
    expected = unit(1) + unit(2) + unit(3)
    np.testing.assert_allclose(mean.code, expected / np.linalg.norm(expected), atol=1e-6)
    assert mean.sources == 3
    np.testing.assert_allclose(average([average([person(1), person(2)]), person(3)]).code, mean.code, atol=0.05)


def test_one_is_its_own_average() -> None:
    one = person(1)
    assert average([one]) is one


def test_offsets_are_averaged_too() -> None:
    first, second = (
        person(1, w_plus_offset=np.full((styles, 512), value, np.float32), mapper="m")
        for styles, value in ((3, 1.0), (1, 3.0))  # one style stands for all of them
    )
    mean = average([first, second])
    np.testing.assert_allclose(mean.w_plus_offset, np.full((3, 512), 2.0))
    assert mean.mapper == "m"
    with pytest.raises(InputError, match="personalise all photos together"):
        average([first, person(1)])
    with pytest.raises(InputError, match="personalised for different bundles"):
        average([first, person(1, w_plus_offset=np.zeros((3, 512), np.float32), mapper="other")])


def test_a_fingerprint_is_of_names_and_of_numbers_as_fp16() -> None:
    weights = {"a": np.linspace(-1, 1, 5, dtype=np.float32), "b": np.ones(2, np.float32)}
    name = fingerprint(weights)
    assert name == fingerprint(dict(reversed(weights.items())))
    assert name == fingerprint({key: value.astype(np.float16) for key, value in weights.items()})
    assert name == fingerprint(weights | {"count": np.array(7)})  # counters are no weights
    assert name != fingerprint(weights | {"a": weights["a"] + 0.01})
    assert name != fingerprint({"a": weights["b"], "b": weights["a"]})


def test_the_mapper_is_named_by_its_weights(toy_bundle: Path, tmp_path: Path) -> None:
    name = mapper_name(Bundle.load(toy_bundle))
    assert name == mapper_name(Bundle.load(toy_bundle))
    other = tmp_path / "other"
    shutil.copytree(toy_bundle, other)
    content = bytearray((other / "weights.bin").read_bytes())
    content[1025] ^= 8  # in the tensor `bias`, which the mapper reads
    (other / "weights.bin").write_bytes(bytes(content))
    assert mapper_name(dataclasses.replace(Bundle.load(toy_bundle), folder=other)) != name


def test_what_cannot_be_averaged() -> None:
    with pytest.raises(InputError, match="different encoders"):
        average([person(1), person(2, encoder="other")])
    with pytest.raises(InputError, match="cancel each other"):
        average([person(1), Identity(-unit(1), "sface")])
