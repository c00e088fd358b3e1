"""Options that several commands of `fid-train` have."""

from pathlib import Path
from typing import Any

import click

from ..runtime.assets import BUNDLE


class Source(click.Path):
    """An existing path, or `default` for the bundle that ships."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.Path.convert`."""
        return BUNDLE if value == "default" else super().convert(value, param, ctx)


minutes_option = click.option("--max-minutes", type=float, help="Save and stop after this many minutes.")
resume_option = click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the output folder.")
generator_option = click.option(
    "--generator",
    type=click.Path(path_type=Path, exists=True),
    help="The generator to look through: a `fid-train distill` run or checkpoint, a bundle, or a StyleGAN file of "
    "yours; none: the shipped one, or at 1024 px the published one.",
)


class EncoderFile(click.Path):
    """An existing file, or `sface`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.Path.convert`."""
        return Path(value) if str(value) == "sface" else super().convert(value, param, ctx)


encoder_option = click.option(
    "--identity-encoder",
    multiple=True,
    metavar="FILE",
    type=EncoderFile(path_type=Path, exists=True, dir_okay=False),
    help="A file of VGGFace2's ResNet-50 or SE-ResNet-50 as identity encoder; several, `sface` among them, are joined."
    " [default: sface]",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")


def folder_option(name: str, text: str, *, required: bool = False) -> Any:
    """Return an option that takes an existing folder."""
    kind = click.Path(path_type=Path, exists=True, file_okay=False)
    return click.option(name, type=kind, help=text, required=required)


def file_option(name: str, text: str) -> Any:
    """Return an option that takes an existing file."""
    return click.option(name, type=click.Path(path_type=Path, exists=True, dir_okay=False), help=text)
