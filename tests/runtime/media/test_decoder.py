"""Photos are decoded in processes that can be ended: too slow, too large, crashed, or asked from many threads."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from fid.runtime.errors import FidError, InputError
from fid.runtime.media.decoder import Decoder
from fid.runtime.media.images import TooLargeError, decode_image


def encoded(side: int, suffix: str = ".png") -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    return cv2.imencode(suffix, noise)[1].tobytes()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(workers=2)
    yield decoder
    decoder.close()


def only_worker(decoder: Decoder) -> int:
    (worker,) = decoder._running
    assert worker._process.pid
    return worker._process.pid


def test_it_gives_what_the_reader_gives(decoder: Decoder) -> None:
    for suffix in (".png", ".jpg"):
        data = encoded(64, suffix)
        np.testing.assert_array_equal(decoder.decode(data, "a"), decode_image(data, "a"))
    np.testing.assert_array_equal(decoder.decode(np.frombuffer(data, np.uint8), "a"), decode_image(data, "a"))


def test_its_sentences_are_those_of_the_reader(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="the photo is not a picture"):
        decoder.decode(b"no picture", "the photo")
    with pytest.raises(TooLargeError, match=r"has 0 megapixels, and 0\.001 are the limit"):
        decoder.decode(encoded(64), "the photo", max_pixels=1000)
    assert decoder.decode(encoded(8), "a").shape == (8, 8, 3)  # it goes on


def test_many_threads_share_it(decoder: Decoder) -> None:
    sides, shapes = list(range(10, 26)), {}

    def ask(side: int) -> None:
        shapes[side] = decoder.decode(encoded(side), str(side)).shape

    threads = [threading.Thread(target=ask, args=(side,)) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == {side: (side, side, 3) for side in sides}
    assert len(decoder._running) <= 2


def test_a_photo_that_takes_too_long_is_ended_alone() -> None:
    decoder = Decoder(workers=1, limit_s=20.0)
    decoder.decode(encoded(8), "a")
    first = only_worker(decoder)
    os.kill(first, signal.SIGSTOP)  # as slow as can be
    decoder._limit_s = 0.2
    with pytest.raises(InputError, match=r"the photo takes more than 0\.2 s to decode"):
        decoder.decode(encoded(8), "the photo")
    decoder._limit_s = 20.0
    assert decoder.decode(encoded(8), "a").shape == (8, 8, 3)
    assert only_worker(decoder) != first
    decoder.close()


def test_a_decoder_that_crashes_takes_nothing_with_it() -> None:
    decoder = Decoder(workers=1)
    decoder.decode(encoded(8), "a")
    os.kill(only_worker(decoder), signal.SIGKILL)
    with pytest.raises(InputError, match="its decoder gave up"):
        decoder.decode(encoded(8), "the photo")
    assert decoder.decode(encoded(8), "a").shape == (8, 8, 3)
    decoder.close()


def test_closing_does_not_wait() -> None:
    decoder = Decoder(workers=1, limit_s=600.0)
    decoder.decode(encoded(8), "a")
    pid = only_worker(decoder)
    os.kill(pid, signal.SIGSTOP)
    caught: list[FidError] = []

    def ask() -> None:
        try:
            decoder.decode(encoded(8), "the photo")
        except FidError as error:
            caught.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]  # one is being decoded, two wait
    for thread in threads:
        thread.start()
    while decoder._idle.qsize():
        time.sleep(0.01)
    decoder.close()
    for thread in threads:
        thread.join(20)
    assert [str(error) for error in caught] == ["the photo was not decoded, because the program ends."] * 3
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not isinstance(caught[0], InputError)
