"""Labels are written, signed last, and found again, alone and together."""

import datetime
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fid.runtime.assets import FACES
from fid.runtime.errors import InputError
from fid.runtime.labels import credentials
from fid.runtime.labels.credentials import Signer, read_credentials
from fid.runtime.labels.provenance import MADE_BY_ALGORITHM, Note, append_note, check_label
from fid.runtime.media.images import read_image, write_image
from fid.runtime.read_labels import check_labels

from .commands.test_photos import fid_run
from .media.test_video import write_clip

NOTE = Note("toy", "1", "composition")
PICTURE = read_image(FACES / "identity-ada.jpg")


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """A key, its certificate, and the one that signed it, made for the test."""
    folder, now = tmp_path_factory.mktemp("keys"), datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("authority", "tester")}
    names = {
        name: x509.Name([x509.NameAttribute(kind, name) for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)])
        for name in keys
    }
    made, above = [], keys["authority"]
    for name, key in keys.items():
        top = name == "authority"
        usage = x509.KeyUsage(not top, False, False, False, False, top, top, False, False)
        builder = x509.CertificateBuilder(
            names["authority"], names[name], key.public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(9))
        builder = builder.add_extension(x509.BasicConstraints(top, None), True).add_extension(usage, True)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key())
        builder = builder.add_extension(identifier, False)
        if not top:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        made.append(builder.sign(above, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "cert.pem").write_bytes(made[1] + made[0])
    form = serialization.PrivateFormat.PKCS8
    pem = keys["tester"].private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    return Signer.load(folder / "cert.pem", folder / "key.pem")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_all_layers_of_a_picture(tmp_path: Path, signer: Signer, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, PICTURE, replace(NOTE, signer=signer))
    labels = check_labels(path)
    assert labels.credentials is not None
    assert (labels.credentials.state, labels.credentials.generator) == ("valid", "fid")
    assert (labels.credentials.signer, labels.credentials.source_type) == ("tester", MADE_BY_ALGORITHM)
    assert labels.note == NOTE
    assert labels.mark.marked
    assert labels.by_fid


@pytest.mark.parametrize(("left", "found"), [({"packet": False, "mark": False}, ""), ({"packet": False}, "mark"),
                                             ({"mark": False}, "note")])  # fmt: skip
def test_each_layer_by_itself(tmp_path: Path, left: dict[str, bool], found: str) -> None:
    path = tmp_path / "a.png"
    write_image(path, PICTURE, replace(NOTE, **left))  # type: ignore[arg-type]
    labels = check_labels(path, sizes=False)
    assert (labels.mark.marked, labels.note is not None) == (found == "mark", found == "note")
    assert labels.by_fid == bool(found)
    assert labels.credentials is None


def test_a_video_is_signed_after_its_note(tmp_path: Path, signer: Signer) -> None:
    path = write_clip(tmp_path / "a.mp4")
    append_note(path, replace(NOTE, signer=signer))
    labels = check_labels(path, sizes=False)
    assert labels.credentials is not None
    assert labels.credentials.state == "valid"
    assert labels.note == NOTE
    append_note(path, NOTE)  # whatever is added later breaks the signature
    with path.open("rb") as file:
        changed = read_credentials(file)
    assert changed is not None
    assert changed.state == "invalid"
    assert not [other for other in tmp_path.iterdir() if other != path]
    with pytest.raises(InputError, match="Matroska files cannot hold Content Credentials"):
        check_label(Path("a.mkv"), replace(NOTE, signer=signer))


def test_inputs_are_named_and_not_contained(tmp_path: Path, signer: Signer) -> None:
    """The library would keep a thumbnail of each; what credentials an input has are carried over."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    write_image(tmp_path / "plain.jpg", noise)
    write_image(tmp_path / "signed.png", noise, replace(NOTE, signer=signer))
    inputs = (tmp_path / "plain.jpg", tmp_path / "signed.png")
    sizes = []
    for number, given in enumerate(((), inputs)):
        path = tmp_path / f"out{number}.png"
        write_image(path, PICTURE, replace(NOTE, signer=signer, inputs=given))
        sizes.append(path.stat().st_size)
        with path.open("rb") as file:
            told = read_credentials(file)
        assert told is not None
        assert (told.state, told.ingredients) == ("valid", len(given))
    assert sizes[1] - sizes[0] < 15_000  # a thumbnail of noise would need 100,000
    assert b"plain.jpg" in path.read_bytes()


def test_a_key_that_does_not_fit_is_refused(tmp_path: Path, signer: Signer) -> None:
    (tmp_path / "cert.pem").write_bytes(signer.certificate)
    (tmp_path / "key.pem").write_bytes(signer.certificate)
    with pytest.raises(InputError, match=r"cannot sign for Content Credentials"):
        Signer.load(tmp_path / "cert.pem", tmp_path / "key.pem")
    with pytest.raises(InputError, match=r"none\.pem cannot be read"):
        Signer.load(tmp_path / "none.pem", tmp_path / "key.pem")


def test_the_command_answers_like_grep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image("made.png", PICTURE, NOTE)
    write_image("other.png", PICTURE)
    assert "made.png: made by fid" in fid_run("check", "made.png").stdout
    report = json.loads(fid_run("check", "made.png", "other.png", "--quick", "--json", exit_code=1).stdout)
    assert [one["made_by_fid"] for one in report] == [True, False]
    assert report[0]["mark"]["found"]
    Path("broken.png").write_bytes(b"no picture")
    assert "broken.png" in fid_run("check", "broken.png", exit_code=2).stderr
    cv2.imwrite("stripped.jpg", cv2.imread("made.png"), [cv2.IMWRITE_JPEG_QUALITY, 60])
    assert "note: none; mark: found" in fid_run("check", "stripped.jpg").stdout


def test_without_the_library_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise credentials.FidError(credentials.MISSING)

    monkeypatch.setattr(credentials, "_c2pa", missing)
    write_image(tmp_path / "a.png", PICTURE, NOTE)
    labels = check_labels(tmp_path / "a.png", sizes=False)
    assert "pip install 'fid-face[c2pa]'" in labels.unchecked
    assert labels.by_fid
