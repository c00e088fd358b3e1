"""What the tests of several commands share."""

import pytest

from ..test_sample import write_bundle_with_mapping


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a toy bundle that has a mapping network."""
    return str(write_bundle_with_mapping(tmp_path_factory.mktemp("toy") / "bundle").folder)
