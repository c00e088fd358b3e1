"""The command `fid-run serve`."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from .options import (
    FILE,
    Settings,
    composing,
)


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; 0.0.0.0 is every one of this machine.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8421,
    show_default=True,
    help="The TCP port to listen on; 0 takes a free one.",
)
@click.option(
    "--token",
    envvar="FID_TOKEN",
    help="The token that clients have to give. [default: none on loopback, else a random one]",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Answer requests for this host name as well; may be repeated.",
)
@click.option(
    "--certificate",
    type=FILE,
    metavar="FILE.pem",
    help="Serve HTTPS with this certificate; browsers on other machines give their camera to nothing else.",
)
@click.option(
    "--key",
    type=FILE,
    metavar="FILE.pem",
    help="The key of the certificate in --certificate. [default: it is in the same file]",
)
@click.option(
    "--root-path",
    default="",
    metavar="/PATH",
    help="The path under which a proxy in front shows this server. [default: none]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    default=1,
    show_default=True,
    help="Answer with N processes on one port.",
)
@click.option(
    "--sessions",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Live videos at a time in each process; more are told to wait.",
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests that may wait in each process; more are told to come again.",
)
@click.option(
    "--upload-mb", type=float, default=12.0, show_default=True, help="The largest request that is taken, in MB."
)
@click.option(
    "--video-mb",
    type=float,
    default=100.0,
    show_default=True,
    help="The largest video that is taken, in MB; 0 takes none. It is deleted when its result was fetched.",
)
@click.option(
    "--megapixels",
    type=float,
    default=50.0,
    show_default=True,
    help="The largest picture that is taken, in megapixels.",
)
@click.option("--badge", is_flag=True, help="Draw a small visible label 'AI-generated' into every video.")
@composing
def serve(
    settings: Settings,
    host: str,
    port: int,
    token: str | None,
    names: tuple[str, ...],
    certificate: Path | None,
    key: Path | None,
    root_path: str,
    workers: int,
    badge: bool,
    **limits: Any,
) -> None:
    """A page in the browser, with camera, and an HTTP API.

    On another address than loopback a token is asked for; it is in the printed address. Nothing uploaded is stored.
    """
    from ..engines.machine import physical_cores
    from ..serve.app import Server, warm_up
    from ..serve.app import serve as answer
    from ..serve.guard import Access, is_loopback, new_token
    from ..serve.listen import check_certificate, check_extra, listen, page_address
    from ..serve.picture import Labelling
    from ..serve.processes import Serving, serve_in_processes
    from ..serve.worker import Limits

    check_extra()
    check_certificate(certificate, key)
    access = Access(host, token or (None if is_loopback(host) else new_token()), names, root_path)
    allowed = Limits(**limits)
    label = Labelling(settings.provenance, settings.mark, badge, settings.signer())
    with listen(host, port) as listening:
        address = page_address(access, listening, secure=certificate is not None)
        insecure = certificate is None and not is_loopback(host)
        if workers > 1:
            share = settings.threads or max(1, physical_cores() // workers)
            opened = replace(settings, threads=share).composer
            serving = Serving(opened, access, allowed, label, certificate, key)
            said = partial(_say, settings, address, insecure, workers)
            serve_in_processes(serving, listening, workers, said)
            return
        server = Server(settings.composer(), access, allowed, label)
        warm_up(server)
        settings.report(server.composer, _there(address, server.composer.provider, insecure), address=address)
        answer(server, listening, certificate, key)


def _say(settings: Settings, address: str, insecure: bool, workers: int, provider: str) -> None:
    """Say where several processes are, and what they compute on."""
    record = {"address": address, "provider": provider, "workers": workers}
    text = _there(address, f"{provider}, {workers} processes", insecure)
    click.echo(json.dumps(record) if settings.as_json else text)


def _there(address: str, provider: str, insecure: bool) -> str:
    text = f"fid is at {address}\n(on {provider}; Ctrl-C ends it)"
    if insecure:
        text += "\nBrowsers on other machines give their camera to https only: add --certificate FILE.pem."
    return text
