"""A build backend that builds nothing: it lets pip download a source archive without running any of its code.

pip asks the backend of a source archive for its metadata, also when it only downloads. The usual backend would run the
archive's `setup.py`, and pip would fetch that backend first, in whatever version is the newest. This one, put in its
place on `PYTHONPATH`, answers with the archive's own PKG-INFO (PEP 517, `prepare_metadata_for_build_wheel`).

    pip download --no-build-isolation ...   with `placed(folder)` as the environment
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

NAME = "setuptools.build_meta"  # the backend of archives that name none


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: object = None) -> str:
    """Copy PKG-INFO of the archive in the working directory; return the name of the folder that it is in."""
    from email.parser import BytesParser  # here: takes 5 ms, and every start passes by this module

    content = Path("PKG-INFO").read_bytes()
    said = BytesParser().parsebytes(content)
    folder = Path(metadata_directory) / f"{said['Name'].replace('-', '_')}-{said['Version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_bytes(content)
    return folder.name


__legacy__ = sys.modules[__name__]  # where pip looks when the archive has no pyproject.toml


def placed(folder: Path) -> dict[str, str]:
    """Put this backend into an empty folder; return the environment variables that let pip take it."""
    package, module = NAME.split(".")
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    shutil.copyfile(__file__, folder / package / f"{module}.py")
    return {"PYTHONPATH": str(folder), "PIP_USE_PEP517": "1"}  # the second for pip before 25.3
