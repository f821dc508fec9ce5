"""Measure a pair on held-out documents and write its model card.

    python -m training.evaluate --pair pair --text corpus.txt --about training/bundled.json --out card

Writes ``model_card.json`` and ``MODEL_CARD.md`` into ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from training.card import render
from training.corpus import END_ID, encode, read_corpus, text_prompts
from training.editing import Example, examples
from training.generate import continue_text
from training.measures import (
    by_position,
    common_prefix,
    longest_common,
    loops,
    tokens_per_pass,
    until_end,
)
from training.pair import load_model, load_tokenizer

BUCKETS = {"≤64": (32, 64), "65–256": (128, 256), "257–512": (384, 512), ">512": (640, 900)}
"""Prompt lengths measured, by the bucket they stand for."""
NEW_TOKENS = 64
LOOP_TOKENS = (24, 64)
"""Loops are counted in the first so many tokens: what the demo asks for, and all."""
BLOCK = 12
CHAINS = (1, 2, 4, 8, 12)
RANKS = (1, 2, 4, 8)


def losses(models: dict[str, Any], tokenizer: Tokenizer, documents: Sequence[str], context: int) -> Any:
    """Mean loss of each model over windows of ``context`` tokens, and in each half of the windows."""
    stream = [token for document in documents for token in (END_ID, *encode(tokenizer, document))]
    sums = {name: torch.zeros(context, dtype=torch.float64) for name in models}
    count = 0
    for start in range(0, len(stream) - context, context):
        window = torch.tensor(stream[start : start + context + 1])
        for name, model in models.items():
            logits = model(input_ids=window[None, :-1], use_cache=False).logits[0].float()
            sums[name] += torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").double()
        count += 1
    half = context // 2
    result: dict[str, Any] = {"tokens": count * context, "window": context}
    for name, total in sums.items():
        mean = total / max(1, count)
        result[name] = {
            "loss": _round(mean.mean()),
            "loss_first_half": _round(mean[:half].mean()),
            "loss_second_half": _round(mean[half:].mean()),
        }
    return result


def ranks_on(draft: Any, prompt: Sequence[int], continuation: Sequence[int]) -> list[int]:
    """Rank (0 = first choice) of each continuation token in the draft's distribution, teacher-forced.

    While a block is accepted, its context is the target's text, so these ranks also say what a chain does.
    """
    tokens = torch.tensor([*prompt, *continuation])
    # The model keeps logits that predict one token more than there is.
    logits = draft(input_ids=tokens[None], use_cache=False, logits_to_keep=len(continuation) + 1).logits[
        0, :-1
    ]
    wanted = tokens[len(prompt) :]
    return [int(n) for n in (logits > logits.gather(1, wanted[:, None])).sum(dim=1)]


def agreement(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Figures from the ranks of continuations."""
    bits = [[rank == 0 for rank in row] for row in rows]
    flat = [rank for row in rows for rank in row]
    reached, conditional, survival = by_position(bits, BLOCK)
    return {
        "tokens": len(flat),
        "greedy_agreement": _round(sum(rank == 0 for rank in flat) / len(flat)),
        "rank_coverage": {str(k): _round(sum(rank < k for rank in flat) / len(flat)) for k in RANKS},
        "blocks_reaching_position": reached,
        "conditional_by_position": [None if value is None else _round(value) for value in conditional],
        "survival_by_position": [_round(value) for value in survival],
        "tokens_per_pass": {str(length): _round(tokens_per_pass(bits, length)) for length in CHAINS},
    }


def prose(
    models: dict[str, Any], tokenizer: Tokenizer, documents: Sequence[str], count: int, seed: int
) -> Any:
    """Agreement on greedy continuations by prompt length, share of loops, and samples."""
    rng = random.Random(seed)
    rows: dict[str, list[list[int]]] = {name: [] for name in BUCKETS}
    looping = dict.fromkeys(LOOP_TOKENS, 0)
    total = 0
    samples: list[dict[str, str]] = []
    for name, lengths in BUCKETS.items():
        for length in lengths:
            if length + NEW_TOKENS > models["target"].config.max_position_embeddings:
                continue
            prompts = text_prompts(tokenizer, documents, rng, length=length, count=count)
            tokens, _ = continue_text(models["target"], torch.from_numpy(prompts), NEW_TOKENS)
            for row in tokens.tolist():
                continuation = until_end(row[length:])
                rows[name].append(ranks_on(models["draft"], row[:length], continuation))
                for first_tokens in LOOP_TOKENS:
                    looping[first_tokens] += loops(continuation[:first_tokens])
                total += 1
            first = tokens[0].tolist()
            shown = tokenizer.decode(first[max(0, length - 40) : length])
            samples.append({"prompt_end": shown, "continuation": tokenizer.decode(until_end(first[length:]))})
    if total == 0:
        raise ValueError("the pair's context is too short: 96 tokens are needed to measure anything")
    return {
        "prompts": total,
        "new_tokens": NEW_TOKENS,
        "all": agreement([row for found in rows.values() for row in found]),
        "by_prompt_length": {name: agreement(found) for name, found in rows.items() if found},
        "looping_share": {str(tokens): _round(number / total) for tokens, number in looping.items()},
    }, samples


def rewrites(models: dict[str, Any], tokenizer: Tokenizer, made: Sequence[Example]) -> Any:
    """Copy rate by task, agreement on rewrites, and samples."""
    rows: list[list[int]] = []
    by_task: dict[str, list[tuple[float, float, bool]]] = {}
    samples: list[dict[str, str]] = []
    for example in made:
        prompt = [END_ID, *encode(tokenizer, example.prompt)]
        reference = [*encode(tokenizer, example.corrected), END_ID]
        longest = min(len(reference) + 16, models["target"].config.max_position_embeddings - len(prompt))
        tokens, _ = continue_text(models["target"], torch.tensor([prompt]), longest)
        output = until_end(tokens[0, len(prompt) :].tolist())
        rows.append(ranks_on(models["draft"], prompt, output))
        copied = longest_common(output, reference) / max(len(output), len(reference))
        prefix = common_prefix(output, reference) / len(reference)
        by_task.setdefault(example.task, []).append((copied, prefix, output == reference))
        if len(samples) < 4:
            answer = tokenizer.decode(output)
            samples.append(
                {
                    "task": example.task,
                    "source": example.source,
                    "answer": answer,
                    "wanted": example.corrected,
                }
            )
    everything = [item for items in by_task.values() for item in items]
    return {
        "all": _copying(everything),
        "by_task": {task: _copying(items) for task, items in sorted(by_task.items())},
        "agreement": agreement(rows),
    }, samples


def _copying(items: Sequence[tuple[float, float, bool]]) -> dict[str, Any]:
    count = len(items)
    return {
        "examples": count,
        "copy_rate": _round(sum(item[0] for item in items) / count),
        "prefix_rate": _round(sum(item[1] for item in items) / count),
        "exact": _round(sum(item[2] for item in items) / count),
    }


def _round(value: Any) -> float:
    return round(float(value), 4)


def weights_of(folder: Path, model: Any) -> dict[str, Any]:
    """Size and digest of the weights, so that a card can be matched to its files."""
    path = folder / "model.safetensors"
    config = model.config
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "mlp": config.intermediate_size,
        "heads": config.num_attention_heads,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def measure(pair: Path, text: Path, *, separator: str, count: int, edits: int, seed: int) -> dict[str, Any]:
    """All figures of one pair, on the held-out documents of ``text``."""
    tokenizer = load_tokenizer(pair / "target")
    models = {role: load_model(pair / role).eval() for role in ("target", "draft")}
    held_out = read_corpus(text, separator=separator).held_out
    context = models["target"].config.max_position_embeddings
    made = examples(held_out, random.Random(seed), edits)
    with torch.no_grad():
        loss = losses(models, tokenizer, held_out, context)
        continued, prose_samples = prose(models, tokenizer, held_out, count, seed)
        rewritten, rewrite_samples = rewrites(models, tokenizer, made)
    history = pair / "training.json"
    return {
        "models": {role: weights_of(pair / role, model) for role, model in models.items()},
        "vocabulary": tokenizer.get_vocab_size(),
        "context": context,
        "training": json.loads(history.read_text(encoding="utf-8")) if history.is_file() else [],
        "held_out_documents": len(held_out),
        "seed": seed,
        "loss": loss,
        "prose": continued,
        "rewrites": rewritten,
        "samples": {"prose": prose_samples, "rewrites": rewrite_samples},
    }


def main(arguments: list[str]) -> int:
    """Measure and write the card."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--pair", type=Path, required=True, help="folder with target/ and draft/")
    parser.add_argument("--text", type=Path, required=True, help="the text file the pair was trained on")
    parser.add_argument("--separator", default="<|doc|>", help="between documents (default: %(default)s)")
    parser.add_argument("--about", type=Path, help="JSON: name, licence, data … (see bundled.json)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the card")
    parser.add_argument("--prompts", type=int, default=16, help="of each length (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=60, help="editing examples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.prompts < 1 or options.edits < 1 or options.threads < 1:
        parser.error("--prompts, --edits and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    figures = measure(
        options.pair,
        options.text,
        separator=options.separator,
        count=options.prompts,
        edits=options.edits,
        seed=options.seed,
    )
    about = json.loads(options.about.read_text(encoding="utf-8")) if options.about else {}
    card = {"about": about, **figures}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (options.out / "model_card.json").write_text(text, encoding="utf-8")
    (options.out / "MODEL_CARD.md").write_text(render(card), encoding="utf-8")
    print(f"card written to {options.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
