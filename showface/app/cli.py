"""The command `showface app`. Only typer is imported until it runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from showface.options import refuse_options


def serve_app(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine, with a token.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: 7860, or the next free one. 0: any free one.")
    ] = None,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the browser. With a token it is not opened.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SHOWFACE_TOKEN",
            help="What requests must carry. Default: a new one, if others can reach HOST. Other users of this machine"
            " can read command lines, so better set the variable.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Bundled model, folder of a saved model, or org/name on the Hub. Repeatable; the first is the default."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which it is called, such as a proxy's. Repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, ...")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, or bf16: faster on a GPU and on a CPU with AMX.")] = "fp32",
    static: Annotated[
        Path | None,
        typer.Option(help="Serve nothing. Write this folder for any static host: the model runs in the browser."),
    ] = None,
    onnxruntime_web: Annotated[
        Path | None, typer.Option(help="With --static: an unpacked onnxruntime-web. Default: npm downloads it.")
    ] = None,
    webgpu: Annotated[bool, typer.Option("--webgpu", help="With --static: also for WebGPU, 17 MB more.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --static: replace such a site; other files stay.")
    ] = False,
) -> None:
    """Serve a page and an HTTP endpoint that fill holes. Only this machine reaches them, unless HOST says otherwise."""
    if static is not None:
        served = ("host", "port", "no_open", "token", "allow_host", "device", "precision")
        refuse_options(context, served, "--static")
        _write_static(static, model or ["default"], onnxruntime_web, webgpu, overwrite)
        return
    refuse_options(context, ("onnxruntime_web", "webgpu", "overwrite"), "an app that is served, without --static")
    try:
        from showface.app import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"the app needs the package {error.name}: install 'showface[app]'") from error

    ended = serve(
        host,
        port,
        models=model or ["default"],
        device=device,
        precision=precision,
        token=token,
        allow=allow_host or [],
        browser=not no_open,
        say=lambda line: print(line, flush=True),
    )
    if not ended:
        os._exit(0)  # nothing else stops a thread in the middle of PyTorch's work


def _write_static(out: Path, models: list[str], onnxruntime_web: Path | None, webgpu: bool, overwrite: bool) -> None:
    from showface.app.static_site import write_static_site

    try:
        write_static_site(out, models, onnxruntime_web=onnxruntime_web, webgpu=webgpu, overwrite=overwrite)
    except ModuleNotFoundError as error:
        raise ValueError(f"--static needs the package {error.name}: install 'showface[export]'") from error
    size = sum(path.stat().st_size for path in (out / "static").rglob("*") if path.is_file())
    print(
        f"written: {out.resolve()}, {size / 1e6:.1f} MB; any static host can serve it: python -m http.server -d {out}"
    )
