"""The command `showface push`. Only typer is imported until it runs."""

from typing import Annotated

import typer


def push_model(
    model: Annotated[str, typer.Argument(help="Bundled model, folder of a saved model, or org/name on the Hub.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub: org/name.")],
    revision: Annotated[str | None, typer.Option(help="Branch, made if needed. Default: main.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="As the Hub calls it: mit, cc-by-nc-4.0, ...")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")] = False,
) -> None:
    """Publish a model on the Hugging Face Hub, with a model card."""
    from showface.hub import push_to_hub

    address = push_to_hub(model, repo, revision=revision, private=private, licence=licence, overwrite=overwrite)
    typer.echo(f"pushed: {address}")
