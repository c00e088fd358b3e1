"""What the tests of the training loop share."""

from collections.abc import Iterator

import pytest
from fid.trainer.networks.trained import AttributeEncoder

NARROW = (8, 16, 24, 32, 48)


@pytest.fixture(autouse=True)
def _narrow_encoder() -> Iterator[None]:
    """The light E_attr with fewer channels: the loop is the same, and most of a step's time was the encoder's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttributeEncoder, "widths", NARROW)
        yield
