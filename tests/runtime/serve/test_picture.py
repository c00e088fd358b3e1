"""What pictures of a server say about themselves."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.labels.badge import draw_badge
from fid.runtime.labels.mark import detect_mark
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
    settings = Settings((composer.identify(FACES / "identity-ada.jpg"),), smooth=0.0)
    plain, labelled = (
        PictureMaker(composer, Labelling(mark=False, badge=badge)).picture(frame, settings).image
        for badge in (False, True)
    )
    assert np.array_equal(labelled, draw_badge(plain))


@pytest.mark.parametrize("mark", [True, False])
def test_what_is_kept_of_a_live_video_bears_the_mark(composer: Composer, mark: bool) -> None:
    frame = av.VideoFrame.from_ndarray(read_image(FACES / "attributes-shade.jpg"), format="rgb24")
    settings = Settings((composer.identify(FACES / "identity-ada.jpg"),), view="paste")
    image = PictureMaker(composer, Labelling(mark=mark)).picture(frame, settings).image
    snapshot = read_back(image)
    assert detect_mark(snapshot, sizes=False).marked == mark
    assert detect_mark(np.ascontiguousarray(snapshot[:, ::-1]), sizes=False).marked == mark  # the page mirrors it


def read_back(image: np.ndarray) -> np.ndarray:
    """A picture as a browser gets it: coded as VP8 at a rate that a slow network carries."""
    coder, decoder = av.CodecContext.create("libvpx", "w"), av.CodecContext.create("vp8", "r")
    coder.height, coder.width = image.shape[:2]
    coder.pix_fmt, coder.bit_rate, coder.time_base = "yuv420p", 500_000, Fraction(1, 15)
    coder.options = {"deadline": "realtime", "cpu-used": "4"}
    packets = [*coder.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *coder.encode(None)]
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return frames[0].to_ndarray(format="rgb24")
