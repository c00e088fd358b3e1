"""Track files say the same when they are read again; stand-ins are chosen by colour."""

from pathlib import Path

import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.deidentify.places import Place, Track
from fid.runtime.deidentify.preview import FRAMES, draw_preview, preview_frames
from fid.runtime.deidentify.stand_in import colour_difference
from fid.runtime.deidentify.track_file import read_tracks, write_tracks
from fid.runtime.errors import InputError
from fid.runtime.media.images import read_image

POINTS = np.array([[10.0, 12], [30, 12], [20, 22], [12, 32], [28, 32]])


def tracks() -> list[Track]:
    sure = Track(0, {3: Place((5, 5, 30, 40), POINTS, 0.9, True), 4: Place((6, 5, 30, 40), None, 0.0, False)})
    return [sure, Track(7, {9: Place((50, 50, 20, 20), POINTS + 40, 0.65, True)})]


def test_a_track_file_round_trip(tmp_path: Path) -> None:
    write_tracks(tmp_path / "t.json", tracks(), {0: 2})
    first, second = read_tracks(tmp_path / "t.json")
    assert (first.person, first.action, second.person, second.action) == (2, "replace", None, "mosaic")
    assert first.places[4] == tracks()[0].places[4]
    assert np.array_equal(second.places[9].points, POINTS + 40)
    assert (first.first, first.last) == (3, 4)


@pytest.mark.parametrize("spoilt", [('"box": [5', '"box": ["x"'), ('"frame": 3', '"frame": -3'), ("[10.0, 12.0], ", ""),
                                    ('"track": 7', '"track": 0'), ('"format": 1', '"format": 2')])  # fmt: skip
def test_a_damaged_one_is_refused(tmp_path: Path, spoilt: tuple[str, str]) -> None:
    path = tmp_path / "t.json"
    write_tracks(path, tracks(), {})
    assert spoilt[0] in path.read_text()
    path.write_text(path.read_text().replace(*spoilt))
    with pytest.raises(InputError, match=r"t\.json (is|has)"):
        read_tracks(path)


def test_the_preview_shows_everybody_in_few_frames() -> None:
    assert preview_frames(tracks(), 20) == [3, 9]
    assert preview_frames([], 20) == [10]
    many = [Track(n, {n: Place((0, 0, 9, 9), POINTS, 0.9, True)}) for n in range(20)]
    assert len(preview_frames(many, 20)) == FRAMES
    wall = np.full((100, 120, 3), 90, np.uint8)
    drawn = draw_preview([(3, wall), (9, wall)], tracks())
    assert drawn.shape == (208, 120, 3)
    assert (drawn[5:46, 5:8] != 90).any()


def test_colours_of_skin_and_hair() -> None:
    crop = read_image(FACES / "identity-ada.jpg")
    assert colour_difference(crop, crop) == 0
    assert colour_difference(crop, (crop * 0.5).astype(np.uint8)) > 15
    painted = crop.copy()
    painted[:60] = (200, 180, 90)
    assert 0 < colour_difference(crop, painted) < colour_difference(crop, np.full_like(crop, (200, 180, 90)))
