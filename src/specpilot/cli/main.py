"""The program ``specpilot``: exit status 0 (done, promises kept), 1 (a promise or check failed), 2 (bad
usage or input: one clear message on standard error, no traceback).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import Typer

BAD_INPUT = 2


def build() -> Typer:
    """The command line's application; each command imports its engine only when it runs."""
    import typer

    from specpilot import __version__
    from specpilot.cli import audit, complete, demo, diagnose, plan, record, replay, serve, simulate, trace

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"specpilot {__version__}")
            raise typer.Exit

    def program(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        """Speculative decoding that keeps a latency SLO and a hard target-pass budget."""

    app = typer.Typer(
        name="specpilot",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(program)
    app.command("demo")(demo.run)
    app.command("complete")(complete.run)
    app.command("record")(record.run)
    app.command("replay")(replay.run)
    app.command("simulate")(simulate.run)
    app.command("plan")(plan.run)
    app.command("diagnose")(diagnose.run)
    app.command("audit")(audit.run)
    app.command("serve")(serve.run)
    app.add_typer(trace.app, name="trace")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with its status.

    Bad input reaches this point as a ``ValueError`` or ``OSError`` whose message says what to do; a
    missing optional dependency as ``ModuleNotFoundError``.
    """
    try:
        build()(args=None if arguments is None else list(arguments))
    except ModuleNotFoundError as error:
        _fail(
            f"{error.name} is not installed; install it with: pip install 'specpilot[{_extra(error.name)}]'"
        )
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except ValueError as error:
        _fail(str(error))


def _extra(module: str | None) -> str:
    """The extra that brings a missing module."""
    serving = ("fastapi", "starlette", "uvicorn", "httptools", "prometheus_client", "pydantic")
    package = (module or "").split(".")[0]
    if package in ("pyarrow", "zstandard"):
        return "trace"
    if package in ("torch", "transformers"):
        return "transformers"
    if package in ("scipy", "openai"):
        return "demo,audit"
    return "demo,server" if package in serving else "demo"


def _fail(message: str) -> None:
    print(f"specpilot: {message}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


if __name__ == "__main__":
    main()
