"""What the tests of the server share."""

from pathlib import Path

import pytest
import toy


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a toy bundle that can scale pose and expression."""
    return toy.write_bundle(tmp_path_factory.mktemp("toy") / "bundle", controls=True).folder
