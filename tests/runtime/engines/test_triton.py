"""A session on a Triton server computes what the same graph computes here; `stand_in_triton` answers in its place."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toy
from fid.export.triton import LARGEST_BATCH, write_repository
from fid.runtime.composer import Composer
from fid.runtime.engines import triton
from fid.runtime.engines.open import open_session, satisfies
from fid.runtime.engines.table import is_remote
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights.bundle import Bundle

from ..commands.test_photos import ADA, LAUGHING, fid_run
from ..test_sample import write_bundle_with_mapping

pytest.importorskip("tritonclient")
pytest.importorskip("grpc")
import stand_in_triton

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:grpc", "ignore::DeprecationWarning:tritonclient")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle_with_mapping(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> stand_in_triton.Repository:
    folder = tmp_path_factory.mktemp("models") / "repository"
    write_repository(bundle, folder)
    return stand_in_triton.Repository(folder)


@pytest.fixture(params=["triton", "triton+http"])
def address(request: pytest.FixtureRequest, repository: stand_in_triton.Repository) -> Iterator[str]:
    serve = stand_in_triton.over_grpc if request.param == "triton" else stand_in_triton.over_http
    with serve(repository) as host:
        yield f"{request.param}://{host}"


def test_every_graph_gives_what_it_gives_here(bundle: Bundle, address: str, rng: np.random.Generator) -> None:
    for name in bundle.graphs:
        here, there = (open_session(bundle.graph_path(name), engine=e) for e in ("onnxruntime", address))
        assert [t.name for t in there.inputs] == [t.name for t in here.inputs]
        arrays = {}
        for tensor in here.inputs:
            shape = [2 if isinstance(side, str) else side for side in tensor.shape]
            values = rng.integers(0, 256, shape) if tensor.dtype == "uint8" else rng.normal(size=shape)
            arrays[tensor.name] = values.astype(tensor.dtype)
        expected, found = here.run(**arrays), there.run(**arrays)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)  # the same engine computes both
            assert found[key].dtype == value.dtype
        assert there.provider == f"triton {address.partition('://')[2]}"
        assert satisfies(there.provider, "triton")
        assert there.fallback is None


def test_more_than_a_batch_goes_in_several_requests(
    bundle: Bundle, address: str, repository: stand_in_triton.Repository, rng: np.random.Generator
) -> None:
    session = open_session(bundle.graph_path("synthesis"), engine=address)
    w_plus = rng.normal(size=(LARGEST_BATCH + 3, toy.N_STYLES, 512)).astype(np.float32)
    repository.calls.clear()
    image = session.run(w_plus=w_plus)["image"]
    assert [size for _, size in repository.calls] == [LARGEST_BATCH, 3]
    assert image.shape == (LARGEST_BATCH + 3, 256, 256, 3)
    with pytest.raises(ValueError, match="w_plus must have shape"):
        session.run(w_plus=w_plus[:, :1])


def test_the_ensemble_is_the_whole_way(bundle: Bundle, repository: stand_in_triton.Repository) -> None:
    composer = Composer(bundle)
    crop = composer.crop(LAUGHING)
    who = composer.identify(ADA)
    offset = np.zeros((1, toy.N_STYLES, 512), np.float32) if who.w_plus_offset is None else who.w_plus_offset[None]
    arrays = {"crop": crop[None], "identity": who.code[None], "w_plus_offset": offset}
    image = repository.infer("fid_compose", {k: np.ascontiguousarray(v, v.dtype) for k, v in arrays.items()})["image"]
    np.testing.assert_array_equal(image[0], composer.image(composer.w(who, composer.attribute_code(crop))))


def test_compose_through_a_server_is_compose(bundle: Bundle, address: str, tmp_path: Path) -> None:
    arguments = ("compose", "--bundle", str(bundle.folder), "--identity", ADA, "--attributes", LAUGHING, "-o")
    fid_run(*arguments, str(tmp_path / "here.png"), "--engine", "onnxruntime")
    said = fid_run(*arguments, str(tmp_path / "there.png"), "--engine", address, "--require", "triton").stdout
    assert f"on triton {address.partition('://')[2]}" in said
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_a_server_that_is_gone_is_a_sentence_and_one_that_comes_back_is_found_again(
    bundle: Bundle, repository: stand_in_triton.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "OPEN_S", 1.0)
    with stand_in_triton.over_grpc(repository) as host:
        session = open_session(bundle.graph_path("mapper"), engine=f"triton://{host}")
        arrays = {t.name: np.zeros((1, *t.shape[1:]), np.float32) for t in session.inputs}
        first = session.run(**arrays)["w"]
    with pytest.raises(FidError, match=f"the Triton server at {host} does not answer .*another --engine"):
        session.run(**arrays)
    with stand_in_triton.over_grpc(repository, int(host.rpartition(":")[2])):
        np.testing.assert_array_equal(session.run(**arrays)["w"], first)
    for scheme in ("triton", "triton+http"):
        with pytest.raises(FidError, match="does not answer"):
            open_session(bundle.graph_path("mapper"), engine=f"{scheme}://127.0.0.1:9")


def test_a_server_with_another_bundle_is_refused(bundle: Bundle, address: str, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "other")
    weights = tmp_path / "other" / "weights.bin"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    with pytest.raises(FidError, match="holds another mapper than this bundle"):
        open_session(tmp_path / "other" / "mapper.onnx", engine=address)
    shutil.copy(bundle.graph_path("mapper"), tmp_path / "other" / "strange.onnx")
    with pytest.raises(FidError, match=r"refused fid_strange: .*not found"):
        open_session(tmp_path / "other" / "strange.onnx", engine=address)


def test_addresses() -> None:
    assert all(map(is_remote, ("triton://gpu:8001", "triton+http://10.0.0.1:8000")))
    assert not any(map(is_remote, ("triton", "triton://", "http://gpu:8001", "auto")))


def test_without_its_client_it_is_one_sentence(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(FidError, match=r"pip install 'fid-face\[triton\]'"):
        open_session(bundle.graph_path("mapper"), engine="triton://127.0.0.1:9")


def test_a_repository_is_written_into_a_new_folder_only(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is there already"):
        write_repository(bundle, tmp_path)


def test_plans_take_the_place_of_graphs(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "repository", {"mapper": b"plan"})
    assert (tmp_path / "repository/fid_mapper/1/model.plan").read_bytes() == b"plan"
    assert 'platform: "tensorrt_plan"' in (tmp_path / "repository/fid_mapper/config.pbtxt").read_text()
    assert not (tmp_path / "repository/fid_mapper/1/model.onnx").exists()
