"""`tessella demo`: a page in the browser, served by this machine."""

import click

from .options import chosen_device, device_option, echo, one_clear_error


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8064,
    show_default=True,
    help="Port to listen on; 0: any free one.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 lets every machine of the network in.",
)
@click.option(
    "--share",
    type=click.Choice(["never"]),
    default="never",
    show_default=True,
    help="There is nothing to choose: the page is never published, and nothing is sent anywhere.",
)
@click.option(
    "--generator",
    "generators",
    multiple=True,
    metavar="PATH",
    help="Generator to offer beside those that ship with tessella; may be repeated.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="Longest time of one drawing, in seconds.",
)
@device_option
@one_clear_error
def demo(
    port: int,
    host: str,
    share: str,
    generators: tuple[str, ...],
    time_limit: float,
    device: str | None,
) -> None:
    """Serve a page to draw, edit, look at tokens and compare models in a browser.

    The page needs no network. It is for one person: one job runs at a time, and a few wait.
    """
    from ..page.limits import Limits
    from ..page.models import Models
    from ..page.server import PageServer

    limits = Limits(job_seconds=time_limit)
    with PageServer(Models.of({}), host, port, limits) as server:  # before models are loaded
        server.models = Models.load(generators, device=chosen_device(device))
        echo(f"Open {server.address} in a browser; Ctrl-C ends it.")
        if not server.local:
            echo(f"note: everybody who reaches {host} can use this page", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            echo("Stopped.", err=True)
