"""What pictures of a server say about themselves."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.labels.badge import draw_badge
from fid.runtime.media.images import read_image
from fid.runtime.serve.picture import Labelling, PictureMaker, Settings


@pytest.fixture(scope="module")
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle, engine="onnxruntime", threads=1)


def test_a_server_writes_the_labels_that_are_chosen(composer: Composer) -> None:
    note = composer.note("composition")
    assert Labelling().note(note) == note
    assert Labelling(provenance=False, mark=False).note(note) is None
    for chosen in (Labelling(mark=False), Labelling(provenance=False)):
        own = chosen.note(note)
        assert own is not None
        assert (own.packet, own.mark) == (chosen.provenance, chosen.mark)


def test_the_badge_is_in_live_video(composer: Composer) -> None:
    frame = av.VideoFrame.from_ndarray(read_image(FACES / "attributes-shade.jpg"), format="rgb24")
    who = composer.identify(FACES / "identity-ada.jpg")
    plain, labelled = (
        PictureMaker(composer, badge).picture(frame, Settings((who,), smooth=0.0)).image for badge in (False, True)
    )
    assert np.array_equal(labelled, draw_badge(plain))
