"""The gallery with the toy bundle: one page that holds everything, whatever cannot be made said in its place."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fid.runtime.assets import FACES
from fid.runtime.errors import FidError
from fid.runtime.gallery import draw
from fid.runtime.gallery.page import Section, page

from ..commands.test_photos import fid_run, folder_of, one_line, write_no_face
from ..test_sample import write_bundle_with_mapping

ADA, BEN = (str(FACES / f"identity-{name}.jpg") for name in ("ada", "ben"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: Callable[[str], Path]) -> None:
    fetched("yunet")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundle_with_mapping(tmp_path_factory.mktemp("toy") / "bundle").folder)


def test_a_page_escapes_what_it_is_told() -> None:
    text = page("a & b", "<i>", [Section("<b>", "x", "fid-run 'a<b'.jpg", [(b"data", ".png", '"quoted"')])])
    assert "<title>a &amp; b</title>" in text
    assert "&lt;i&gt;" in text
    assert "<h2>&lt;b&gt;</h2>" in text
    assert 'src="data:image/png;base64,ZGF0YQ==" alt="&quot;quoted&quot;"' in text


@pytest.mark.parametrize("people", [1, 2])
def test_demo_with_photos(bundle: str, people: int) -> None:
    photos = folder_of(*(f"{photo}=my {number}.jpg" for number, photo in enumerate([ADA, BEN][:people])), name="photos")
    result = fid_run("demo", "--bundle", bundle, "--photos", photos)
    assert f"{people} photo{'s' if people > 1 else ''} of yours, in " in result.stdout
    text = Path("fid-demo.html").read_text()
    assert text.count("<section>") == 4
    assert text.count("<img ") == 4
    assert len(re.findall(r'src="data:image/(?:jpeg|webp);base64,', text)) == 4  # nothing from elsewhere
    assert "From one person to another" in text if people == 2 else "From one expression to another" in text
    assert "fid-run webcam --identity &#x27;photos/my 0.jpg&#x27;" in text  # a line that can be copied


def test_photos_without_a_face_are_left_out_and_named(bundle: str) -> None:
    photos = folder_of(f"{ADA}=ada.jpg", name="photos")
    write_no_face("photos/wall.png")
    result = fid_run("demo", "--bundle", bundle, "--photos", photos, "-o", "g.html", exit_code=1)
    assert "left out: photos/wall.png: no face was found" in result.stderr
    assert Path("g.html").exists()
    assert "must end in .html" in one_line(fid_run("demo", "--photos", photos, "-o", "g.png", exit_code=2))


def test_a_part_that_cannot_be_made_says_why(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(composer: object) -> None:
        raise FidError("the generator cannot be fetched.")

    monkeypatch.setattr(draw, "Sampler", missing)
    fid_run("demo", "--bundle", bundle, "--photos", ADA)
    assert "This could not be made here: the generator cannot be fetched." in Path("fid-demo.html").read_text()
