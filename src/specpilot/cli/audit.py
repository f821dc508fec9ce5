"""``specpilot audit``: is the output right?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specpilot.cli.inputs import check_file, check_text
from specpilot.cli.options import DraftOption, TargetOption, refuse, whole
from specpilot.cli.output import JsonOption, check_writable, console, progress, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from specpilot.auditing import Check

WRONG = 1
TOKEN_VARIABLE = "SPECPILOT_AUDIT_TOKEN"


def run(
    context: typer.Context,
    target: TargetOption = None,
    draft: DraftOption = None,
    engine: Annotated[str, typer.Option(help="onnx or transformers.")] = "onnx",
    url: Annotated[
        str | None,
        typer.Option(help="Audit a server instead, e.g. http://127.0.0.1:8000.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="With --url: a server with the same target and no speculation. Default: the server itself, "
            "speculation off.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --url: the model's name.", show_default=False)
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Also check the rules of emission in a trace.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON Lines with a prompt each. Default: the demonstration's.", show_default=False),
    ] = None,
    limit: Annotated[int, whole("≥ 1", "24", help="Most prompts for greedy equality.")] = 24,
    samples: Annotated[int, whole("≥ 1", "300", help="Sampled outputs per prompt and setting.")] = 300,
    max_tokens: Annotated[int, whole("≥ 1", "24", help="Output tokens of each greedy output.")] = 24,
    seed: Annotated[int, whole("≥ 0", "1", help="Of sampling, for a local pair.")] = 1,
    json_target: JsonOption = None,
) -> None:
    """Is the output right? Greedy equality, distribution, stop and EOS, seeds, vocabulary, emission rules.

    Exit status 1 if a check fails.
    """
    from specpilot.auditing import audit_trace, verdict

    check_writable(json_target, read=[trace, prompts])
    for name, value in (("limit", limit), ("samples", samples), ("max_tokens", max_tokens)):
        if value < 1:
            raise ValueError(f"{name}: {value} is not ≥ 1; give a count")
    if seed < 0:
        raise ValueError(f"seed: {seed} is not ≥ 0; 1 is the default")
    if url is None:
        refuse(context, "without --url, and only servers have it", "reference", "model")
    else:
        pair = ("target", "draft", "engine", "seed")
        for name, address in (("url", url), ("reference", reference)):
            if address is not None and not address.startswith(("http://", "https://")):
                raise ValueError(f"{name}: {address!r} is not an address; write http://host:port")
        refuse(context, "together with --url, where a server is audited and no pair of models", *pair)
    check_text("prompts", prompts)
    check_file("trace", trace)
    texts = _prompts(prompts, limit)
    # A trace is judged in a moment, the pair in minutes: what is wrong with its file shows before the work.
    recorded = [] if trace is None else audit_trace(trace)
    screen = console(json_target)
    with progress(screen) as bar:
        task = bar.add_task("auditing", total=5)

        def advance(name: str) -> None:
            bar.update(task, description=name, advance=1)

        if url is None:
            checks = _local(target, draft, engine, texts, max_tokens, samples, seed, advance)
        else:
            checks = _served(url, reference, model, texts, max_tokens, samples, advance)
    checks += recorded
    answer = verdict(checks)
    for check in checks:
        shown = {"pass": "[green]pass[/]", "fail": "[bold red]fail[/]"}.get(check.status, check.status)
        screen.print(f"{shown}  {check.name}")
        for name, value in check.detail.items():
            if value not in ([], {}):
                screen.print(f"        {name}: {value}", markup=False)
    screen.print(f"Verdict: [bold]{answer}[/]")
    write_json(
        json_target,
        {
            "checks": [{"name": c.name, "status": c.status, "detail": dict(c.detail)} for c in checks],
            "verdict": answer,
        },
    )
    if answer == "wrong":
        raise typer.Exit(WRONG)


def _prompts(path: Path | None, limit: int) -> Sequence[str]:
    """Prompts of all kinds: taken at even distances."""
    if path is None:
        from specpilot.demo.workload import bundled_prompts

        texts = [prompt.text for prompt in bundled_prompts() if len(prompt.text) < 1500]
    else:
        from specpilot.cli.record import read_prompts

        texts = [text for _, _, text in read_prompts(path)]
    step = max(1, len(texts) // limit)
    return texts[::step][:limit]


def _local(
    target: str | None,
    draft: str | None,
    engine: str,
    texts: Sequence[str],
    max_tokens: int,
    samples: int,
    seed: int,
    advance: Callable[[str], None],
) -> list[Check]:
    import numpy as np

    from specpilot.auditing import LocalSubject, audit_pair, audit_tokenizers
    from specpilot.control.config import TREE_NODES
    from specpilot.decoding.cycle import LiveExecutor
    from specpilot.drafters.model import ModelDrafter
    from specpilot.pair import load_pair, place
    from specpilot.targets.model import ModelTarget

    folders = [place(target, "target"), place(draft, "draft")]
    checks = []
    if all(Path(folder).is_dir() for folder in folders):
        checks.append(audit_tokenizers(*folders))
        if checks[0].status == "fail":
            return checks
    pair = load_pair(target, draft, engine)
    target_engine = ModelTarget(pair.target)
    subject = LocalSubject(
        LiveExecutor(target_engine, ModelDrafter(pair.draft)),
        pair.target,
        pair.draft,
        pair.tokenizer,
        pair.encode,
        rng=np.random.default_rng(seed),
        nodes=TREE_NODES // 2 if target_engine.capabilities.trees else 0,
    )
    return checks + audit_pair(subject, texts, max_tokens=max_tokens, samples=samples, advance=advance)


def _served(
    url: str,
    reference: str | None,
    model: str | None,
    texts: Sequence[str],
    max_tokens: int,
    samples: int,
    advance: Callable[[str], None],
) -> list[Check]:
    from specpilot.auditing.endpoint import EndpointSubject, audit_endpoint

    token = os.environ.get(TOKEN_VARIABLE)
    own = EndpointSubject(url, model, token=token, extension=reference is None)
    other = own if reference is None else EndpointSubject(reference, token=token, extension=False)
    return audit_endpoint(own, other, texts, max_tokens=max_tokens, samples=samples, advance=advance)
