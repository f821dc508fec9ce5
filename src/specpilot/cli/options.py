"""Options that several commands share: the pair's models, the engine's costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="Target: folder or hub id. Default: bundled.", show_default=False),
]
DraftOption = Annotated[
    str | None,
    typer.Option("--draft", help="Draft: folder or hub id. Default: bundled.", show_default=False),
]
MaxNodesOption = Annotated[
    int, typer.Option("--max-nodes", help="Most nodes of a token tree; 0: blocks are chains.")
]
LookupDepthOption = Annotated[
    int,
    typer.Option("--lookup-depth", help="Most tokens of looked-up text in a tree (0: none)."),
]
CostOption = Annotated[
    Path | None,
    typer.Option("--cost", help="The engine's costs, as written by record.", show_default=False),
]
DraftMsOption = Annotated[
    float | None, typer.Option("--draft-ms", help="Time of a draft step.", show_default=False)
]
VerifyMsOption = Annotated[
    float | None,
    typer.Option("--verify-ms", help="Time of a target pass over one token.", show_default=False),
]
VerifyTokenMsOption = Annotated[
    float | None,
    typer.Option("--verify-token-ms", help="Time of each further token in a pass.", show_default=False),
]
