"""Options that several commands share: the pair's models, the engine's costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

N = TypeVar("N", int, float)


def whole(within: str, example: str, *names: str, help: str, show_default: bool = True) -> Any:
    """An option that takes a whole number: what is none is refused with the value, the range and a remedy.

    Args:
        within: the range, such as ``≥ 1``; whether the number lies in it is for its user to check.
        example: a number that could be written instead.
        names: the option's, where it is not the parameter's.
        help: what the number is.
        show_default: whether the help shows the default.
    """
    parser = _parser(int, f"a whole number {within}".strip(), example)
    return typer.Option(*names, parser=parser, metavar="<int>", help=help, show_default=show_default)


def real(within: str, example: str, *names: str, help: str, show_default: bool = True) -> Any:
    """As :func:`whole`, for an option that takes any number."""
    parser = _parser(float, f"a number {within}", example)
    return typer.Option(*names, parser=parser, metavar="<float>", help=help, show_default=show_default)


def _parser(kind: type[N], wanted: str, example: str) -> Callable[[str], N]:
    def parse(text: str) -> N:
        try:
            return kind(text)
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is not {wanted}; write it in digits, e.g. {example}"
            ) from None

    return parse


TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="Target: folder or hub id. Default: bundled.", show_default=False),
]
DraftOption = Annotated[
    str | None,
    typer.Option("--draft", help="Draft: folder or hub id. Default: bundled.", show_default=False),
]
MaxNodesOption = Annotated[
    int, whole("in 0…256", "64", "--max-nodes", help="Most nodes of a token tree; 0: blocks are chains.")
]
LookupDepthOption = Annotated[
    int,
    whole("in 0…256", "24", "--lookup-depth", help="Most tokens of looked-up text in a tree (0: none)."),
]
CostOption = Annotated[
    Path | None,
    typer.Option("--cost", help="The engine's costs, as written by record.", show_default=False),
]
DraftMsOption = Annotated[
    float | None, real("≥ 0", "2.5", "--draft-ms", help="Time of a draft step.", show_default=False)
]
VerifyMsOption = Annotated[
    float | None,
    real("> 0", "30", "--verify-ms", help="Time of a target pass over one token.", show_default=False),
]
VerifyTokenMsOption = Annotated[
    float | None,
    real("≥ 0", "0.5", "--verify-token-ms", help="Time of each further token in a pass.", show_default=False),
]
COSTS_WANTED = "the engine's costs, as `specpilot record --costs` writes them"
"""What ``--cost`` reads."""


def given(context: typer.Context, name: str) -> bool:
    """Whether the option of this parameter stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def depth_within(context: typer.Context, lookup_depth: int, max_nodes: int) -> int:
    """``--lookup-depth`` as it was given, or of its default what ``--max-nodes`` has room for."""
    return lookup_depth if given(context, "lookup_depth") else min(lookup_depth, max_nodes)


def refuse(context: typer.Context, where: str, *names: str) -> None:
    """Refuse options that are given where they cannot have an effect.

    Args:
        context: the command's.
        where: what else is given, and why the options do not count there.
        names: the command's parameters that are the options.

    Raises:
        ValueError: naming those that are given.
    """
    useless = [
        (parameter.secondary_opts or parameter.opts)[0]
        if context.params[str(parameter.name)] is False
        else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and given(context, parameter.name)
    ]
    if useless:
        listed = ", ".join(useless)
        raise ValueError(f"{listed}: given {where}; leave {'it' if len(useless) == 1 else 'them'} out")
