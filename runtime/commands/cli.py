"""The command `fid-run`. Heavy modules are imported inside the commands, so that `--help` is there at once."""

from __future__ import annotations

import click

from .batch import batch
from .check import check
from .deidentify import deidentify
from .group import OneLineErrors
from .machine import bench, doctor, models
from .moving import video, webcam
from .photos import compose, demo, grid, interpolate, pairs, sample
from .server import serve


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="A photo is any picture that Pillow reads. An identity is a photo, a folder with photos of one person, "
    "or an .npz file from --save-identity, sample or fid-train personalize. The Tab key: docs/photos.md.",
)
@click.version_option(package_name="fid-face", prog_name="fid-run")
def main() -> None:
    """One person's identity on another photo's pose, expression and light."""


for _command in (
    *(compose, grid, pairs, interpolate, sample, demo),
    *(webcam, video, deidentify, check, batch, serve),
    *(models, doctor, bench),
):
    main.add_command(_command)
