"""The command `showface app`. Only typer is imported until it runs."""

import os
from typing import Annotated

import typer


def serve_app(
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine, with a token.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: 7860, or the next free one. 0: any free one.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the browser.")] = False,
    token: Annotated[
        str | None, typer.Option(help="What requests must carry. Default: a new one, if others can reach HOST.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Bundled model, or folder of a saved model. Repeatable; the first is the default."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which it is called, such as a proxy's. Repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, ...")] = "cpu",
) -> None:
    """Serve a page and an HTTP endpoint that fill holes. Only this machine reaches them, unless HOST says otherwise."""
    try:
        from showface.app import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"the app needs the package {error.name}: install 'showface[app]'") from error
    from showface.models import BUNDLED

    ended = serve(
        host,
        port,
        models=model or list(BUNDLED),
        device=device,
        token=token,
        allow=allow_host or [],
        browser=not no_open,
        say=lambda line: print(line, flush=True),
    )
    if not ended:
        os._exit(0)  # nothing else stops a thread in the middle of PyTorch's work
