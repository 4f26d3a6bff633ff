"""Options of the commands: which were given, and those that would do nothing beside others."""

from collections.abc import Collection

import typer


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line. `name` is the name of its parameter."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_options(context: typer.Context, names: Collection[str], what: str) -> None:
    """Refuse options that were given on the command line, and would be ignored.

    Args:
        context: of the command.
        names: the names of the options' parameters, such as "no_open".
        what: what the options don't belong to.

    Raises:
        ValueError: one was given.
    """
    for option in context.command.params:
        if option.name in names and is_given(context, option.name):
            off = context.params.get(option.name) is False and option.secondary_opts
            raise ValueError(f"{(off or option.opts)[0]} does not belong to {what}")
