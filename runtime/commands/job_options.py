"""Options of what is done to a photo or a clip, which the command for one file and `fid-run batch` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

from ..controls import MOST_CONTROL, Controls
from .options import FILE

T = TypeVar("T")

mask_option = click.option(
    "--mask",
    type=click.Choice(["head", "face", "square"]),
    default="head",
    show_default=True,
    help="What is pasted: head and hair, the face within the hair that is there, or a square with a soft edge.",
)


def paste_option(default: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Return the options --paste and --crop, and --mask; `default`: what holds without them."""
    pair = click.option(
        "--paste/--crop",
        "paste",
        default=None,
        help=f"The whole attribute photo with the head replaced, or the composed head alone. [default: {default}]",
    )
    return lambda command: pair(mask_option(command))


def controls_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options --pose and --expression; it receives them as one `controls.Controls`."""

    @wraps(command)
    def with_controls(*, pose: float, expression: float, **values: Any) -> T:
        return command(controls=Controls(pose, expression), **values)

    options = [
        click.option(
            f"--{what}",
            type=click.FloatRange(0, MOST_CONTROL),
            metavar="X",
            default=1.0,
            show_default=True,
            help=f"How far the {what} of the attributes is followed: 0 gives {still}, {MOST_CONTROL} exaggerates.",
        )
        for what, still in (("pose", "a frontal head"), ("expression", "a neutral face"))
    ]
    return _given(with_controls, options)


light_option = click.option(
    "--light/--full",
    default=None,
    help="Compose by the light generator, which is quicker, or by the full one. [default: light for live pictures on a "
    "CPU, else full]",
)

badge_option = click.option(
    "--badge", is_flag=True, help="Draw a small visible label 'AI-generated' into a corner. [default: none]"
)


def moving(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of moving pictures."""
    options = [
        click.option(
            "--paste", "view", flag_value="paste", default=None, help="Show the head pasted into the frame. [default]"
        ),
        click.option(
            "--side-by-side",
            "view",
            flag_value="side-by-side",
            help="Show the frame and the composed square beside each other.",
        ),
        click.option("--result-only", "view", flag_value="result-only", help="Show the composed square alone."),
        click.option(
            "--smooth",
            type=click.FloatRange(0, 10),
            default=1.0,
            show_default=True,
            metavar="AMOUNT",
            help="Smoothing of place and picture over time: 0 is none, more is steadier and follows later.",
        ),
        click.option(
            "--no-face",
            type=click.Choice(["hold", "pass", "blank"]),
            default="hold",
            show_default=True,
            help="What is shown while there is no face: the last picture, the frame, or grey.",
        ),
        mask_option,
        light_option,
        badge_option,
    ]
    return controls_options(_given(command, options))


def hiding(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of de-identification."""
    options = [
        click.option(
            "--seed",
            type=click.IntRange(0, 2**31),
            default=0,
            show_default=True,
            help="Draws who stands in; the same number, the same people.",
        ),
        click.option(
            "--identity",
            "identities",
            type=FILE,
            multiple=True,
            help="Who stands in, not synthetic people: a photo, an identity file or a folder of either; may be "
            "repeated.",
        ),
        click.option(
            "--faces",
            type=click.Choice(["all", "largest"]),
            default="all",
            show_default=True,
            help="Replace everybody, or only the person with the largest face.",
        ),
        click.option(
            "--unsure",
            type=click.Choice(["mosaic", "keep"]),
            default="mosaic",
            show_default=True,
            help="Hide under a mosaic, or keep, what the detector is not sure to be a face.",
        ),
        click.option("--mute", is_flag=True, help="Leave the sound of videos out: a voice tells who somebody is."),
        click.option("--allow-none", is_flag=True, help="Copy files in which no face is found. [default: refuse them]"),
    ]
    return _given(command, options)


def _given(command: Callable[..., T], options: Sequence[Callable[..., Callable[..., T]]]) -> Callable[..., T]:
    for option in reversed(options):
        command = option(command)
    return command
