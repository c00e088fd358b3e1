"""3,000 damaged pictures and 3,000 damaged videos: each is read or refused in one sentence, none hangs or crashes."""

import damaged_media as media
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kind", media.KINDS)
def test_every_mutant_is_read_or_refused(kind: str) -> None:
    outcomes, failed = media.run(kind, first=0, count=3000)
    assert failed == []
    assert min(outcomes["read"], outcomes["refused"]) > 100  # the faults are neither all harmless nor all fatal
