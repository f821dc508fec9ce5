"""The model card as Markdown, from the figures that ``evaluate.py`` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render(card: Mapping[str, Any]) -> str:
    """The whole card."""
    about = card["about"]
    parts = [
        f"# {about.get('name', 'A draft/target pair')}",
        "**A demonstration pair, not an assistant.** It exists so that speculative decoding can be run, "
        "tested and measured anywhere in seconds. It writes English that looks like its training text and "
        "means little; it states falsehoods, follows no instructions, and must not be used for anything but "
        "showing how decoding behaves.",
        *(f"{text}" for text in about.get("notes", [])),
        _models(card),
        _training(card),
        _loss(card),
        _agreement(card),
        _rewrites(card),
        _samples(card["samples"]),
    ]
    return "\n\n".join(parts) + "\n"


def _models(card: Mapping[str, Any]) -> str:
    rows = [
        [
            role,
            f"{model['layers']} × {model['hidden']}",
            model["heads"],
            model["mlp"],
            f"{model['parameters'] / 1e6:.1f} M",
            f"{model['bytes'] / 1e6:.1f} MB",
            f"`{model['sha256'][:16]}…`",
        ]
        for role, model in card["models"].items()
    ]
    table = _table(["", "layers × width", "heads", "MLP", "parameters", "fp16 weights", "SHA-256"], rows)
    return (
        f"## Models\n\n{table}\n\nLlama architecture, tied embeddings, one byte-level BPE tokenizer of "
        f"{card['vocabulary']} tokens, {card['context']} tokens of context. Token 0 ends a text and stands "
        "before every text."
    )


def _training(card: Mapping[str, Any]) -> str:
    about = card["about"]
    lines = ["## Training", ""]
    given = [name for name in ("data", "licence", "held_out") if name in about]
    lines += [f"- {name.replace('_', ' ').capitalize()}: {about[name]}" for name in given]
    rows = [
        [
            run.get("what", f"run {number}"),
            f"{run.get('copy_tokens', 0) / 1e6:.2f} M",
            f"{run.get('copy_minutes', 0):.0f}",
            f"{run['joint_tokens'] / 1e6:.2f} M",
            f"{run['joint_minutes']:.0f}",
            f"{run['draft_tokens'] / 1e6:.2f} M",
            f"{run['draft_minutes']:.0f}",
        ]
        for number, run in enumerate([*about.get("earlier", []), *card["training"]], start=1)
    ]
    if rows:
        header = ["", "copying", "minutes", "both", "minutes", "draft alone", "minutes"]
        lines += ["", _table(header, rows)]
    if "command" in about:
        lines += ["", "The last run:", "", f"    {about['command']}"]
    return "\n".join(lines)


def _loss(card: Mapping[str, Any]) -> str:
    loss = card["loss"]
    half = loss["window"] // 2
    rows = [
        [role, f"{loss[role]['loss']:.3f}", *(f"{loss[role][key]:.3f}" for key in _HALVES)]
        for role in ("target", "draft")
    ]
    header = ["", "nats per token", f"positions 1–{half}", f"{half + 1}–{loss['window']}"]
    return (
        f"## Held-out loss\n\n{_table(header, rows)}\n\nOver {loss['tokens']:,} tokens of "
        f"{card['held_out_documents']} documents that were never trained on, in windows of {loss['window']}."
    )


_HALVES = ("loss_first_half", "loss_second_half")


def _agreement(card: Mapping[str, Any]) -> str:
    prose = card["prose"]
    everything = prose["all"]
    groups = {"all": everything, **prose["by_prompt_length"]}
    chains, ranks = list(everything["tokens_per_pass"]), list(everything["rank_coverage"])
    rows = [
        [
            name,
            f"{found['greedy_agreement']:.2f}",
            *(f"{found['tokens_per_pass'][length]:.2f}" for length in chains),
            *(f"{100 * found['rank_coverage'][rank]:.0f} %" for rank in ranks),
        ]
        for name, found in groups.items()
    ]
    header = ["prompt tokens", "agreement", *(f"chain of {n}" for n in chains), *(f"top {n}" for n in ranks)]
    places = range(len(everything["survival_by_position"]))
    positions = _table(
        ["position", *(str(place + 1) for place in places)],
        [
            ["reached", *(str(n) for n in everything["blocks_reaching_position"])],
            ["agrees, once reached", *(_number(value) for value in everything["conditional_by_position"])],
            ["accepted so far", *(f"{value:.2f}" for value in everything["survival_by_position"])],
        ],
    )
    looping = prose["looping_share"]
    return (
        f"## How often the draft agrees\n\n{prose['prompts']} prompts from held-out documents, continued "
        f"greedily by the target for {prose['new_tokens']} tokens. Agreement: the draft's first choice is "
        "the target's, after the target's own text. Chains: tokens a target pass yields, its own included. "
        f"Top k: the target's token is among the draft's first k.\n\n{_table(header, rows)}\n\n"
        f"By position in a block of {len(places)}, blocks following one another as in decoding:\n\n"
        f"{positions}\n\n"
        "Loops, a sequence of four tokens occurring three times or more: "
        + ", ".join(f"{100 * share:.0f} % of the first {tokens} tokens" for tokens, share in looping.items())
        + "."
    )


def _rewrites(card: Mapping[str, Any]) -> str:
    rewrites = card["rewrites"]
    rows = [
        [
            name,
            found["examples"],
            f"{found['copy_rate']:.2f}",
            f"{found['prefix_rate']:.2f}",
            f"{found['exact']:.2f}",
        ]
        for name, found in {"all": rewrites["all"], **rewrites["by_task"]}.items()
    ]
    table = _table(["task", "examples", "copy rate", "prefix rate", "exact"], rows)
    agreement = rewrites["agreement"]
    return (
        "## Rewrites\n\nPassages of held-out documents with planted faults; the templates stand in "
        "`training/editing.py`. Copy rate: longest common subsequence of the greedy answer and the right "
        "one, over the longer of the two. Prefix rate: right tokens before the first wrong one, over the "
        f"right answer's length. Both in tokens, averaged over examples.\n\n{table}\n\nThe draft agrees with "
        f"{100 * agreement['greedy_agreement']:.0f} % of the tokens of these answers."
    )


def _samples(samples: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    prose = [
        f"- … {_line(sample['prompt_end'])} **{_line(sample['continuation'])}**"
        for sample in samples["prose"]
    ]
    edits = [
        f"- {sample['task'].capitalize()}: {_line(sample['source'])} → **{_line(sample['answer'])}**"
        for sample in samples["rewrites"]
    ]
    heading = "## Samples\n\nGreedy, the first of each kind and length: not chosen.\n"
    return "\n".join([heading, *prose, *edits])


def _line(text: str) -> str:
    """One line, with what Markdown would take for emphasis or a link made harmless."""
    joined = " ".join(text.split())
    for mark in "*_[]`<":
        joined = joined.replace(mark, f"\\{mark}")
    return joined


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
