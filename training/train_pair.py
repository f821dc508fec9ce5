"""Train a draft/target pair: the target on text, the draft on the text and the target's distributions.

    python -m training.train_pair --text corpus.txt --tokenizer tokenizer.json --out pair --minutes 60

See README.md beside this file for whole recipes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from training.copying import CopyStream, teach_copying
from training.corpus import WindowStream, read_corpus
from training.distil import distil
from training.pair import Shape, load_model, load_tokenizer, new_model, save_model
from training.steps import (
    Budget,
    apply,
    backward_to,
    backward_to_labels,
    cross_entropy,
    logits_of,
    make_optimizer,
    soft_target,
    softmax_of,
)

LABEL_SHARE = 0.3
"""Of the draft's loss: 0.3 against the text, 0.7 against the target's distribution."""
LOG_SECONDS = 30.0


@dataclass(slots=True)
class Pair:
    """The models in training and what saving them needs."""

    target: Any
    draft: Any
    tokenizer: Tokenizer
    context: int

    def save(self, folder: Path) -> None:
        """Both models in Hugging Face format under ``folder/target`` and ``folder/draft``."""
        save_model(self.target, self.tokenizer, folder / "target", context=self.context)
        save_model(self.draft, self.tokenizer, folder / "draft", context=self.context)


def train_jointly(
    pair: Pair,
    stream: WindowStream,
    budget: Budget,
    *,
    batch: int,
    rate: float,
    draft_rate: float,
    out: Path,
    snapshot_minutes: float,
) -> int:
    """Train the target, and the draft on the same batches from the target's logits of that moment.

    Returns the number of tokens seen.
    """
    device = next(pair.target.parameters()).device
    target_optimizer, draft_optimizer = make_optimizer(pair.target), make_optimizer(pair.draft)
    logged, saved = time.monotonic(), 0.0
    while budget.fraction < 1:
        tokens, weights = (torch.from_numpy(array).to(device) for array in stream.batch(batch))
        inputs, labels, weights = tokens[:, :-1], tokens[:, 1:].flatten(), weights.flatten()
        logits = logits_of(pair.target, inputs)
        teacher = softmax_of(logits)
        draft_logits = logits_of(pair.draft, inputs)
        guess = softmax_of(draft_logits)
        backward_to(draft_logits, guess, soft_target(teacher, labels, label_share=LABEL_SHARE), weights)
        apply(draft_optimizer, pair.draft, budget.rate(draft_rate))
        now = time.monotonic()
        if now - logged >= LOG_SECONDS:
            logged = now
            _log(budget, teacher, guess, labels, weights, tokens.shape[0] * (tokens.shape[1] - 1))
        backward_to_labels(logits, teacher, labels, weights)
        apply(target_optimizer, pair.target, budget.rate(rate))
        budget.step += 1
        if budget.elapsed - saved >= snapshot_minutes:
            saved = budget.elapsed
            pair.save(out)
    return budget.step * batch * stream.size


def _log(budget: Budget, teacher: Tensor, guess: Tensor, labels: Tensor, weights: Tensor, size: int) -> None:
    with torch.no_grad():
        same = (teacher.argmax(-1) == guess.argmax(-1)).float()
        agreement = float((same * weights).sum() / weights.sum())
    losses = [cross_entropy(probabilities, labels, weights) for probabilities in (teacher, guess)]
    print(
        f"joint {budget.elapsed:6.1f} min  step {budget.step:5d}  {budget.step * size / 1e6:6.3f} M tokens  "
        f"target {losses[0]:.3f}  draft {losses[1]:.3f}  agreement {agreement:.3f}",
        flush=True,
    )


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Command-line options; an unknown one is an error."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_pair", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text file")
    parser.add_argument("--separator", default="<|doc|>", help="between documents (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for target/ and draft/")
    parser.add_argument("--init", type=Path, help="folder with target/ and draft/ to go on from")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json (default: the one in --init)")
    parser.add_argument("--target-shape", type=Shape.parse, default=Shape(12, 256, 688), metavar="LxHxM")
    parser.add_argument("--draft-shape", type=Shape.parse, default=Shape(2, 128, 352), metavar="LxHxM")
    parser.add_argument("--context", type=int, default=1024, help="tokens in a window (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="windows in a step (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="joint training (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="joint training, instead of --minutes")
    parser.add_argument(
        "--draft-minutes", type=float, default=20.0, help="draft alone afterwards (default: %(default)s)"
    )
    parser.add_argument("--draft-steps", type=int, help="draft alone, instead of --draft-minutes")
    parser.add_argument(
        "--copy-minutes", type=float, default=0.0, help="learning to copy, before all else (default: 0)"
    )
    parser.add_argument("--copy-steps", type=int, help="learning to copy, instead of --copy-minutes")
    parser.add_argument("--rate", type=float, default=8e-4, help="target's peak rate (default: %(default)s)")
    parser.add_argument("--draft-rate", type=float, default=2.5e-3, help="draft's (default: %(default)s)")
    parser.add_argument("--editing", type=float, default=0.3, help="share of tokens (default: %(default)s)")
    parser.add_argument(
        "--own", type=float, default=0.5, help="share of draft steps on the target's own text"
    )
    parser.add_argument("--snapshot-minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.init is None and options.tokenizer is None:
        parser.error("--tokenizer is needed where there is no --init")
    for name in ("context", "batch", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    for name in ("minutes", "draft_minutes", "copy_minutes", "steps", "draft_steps", "copy_steps"):
        if getattr(options, name) is not None and getattr(options, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative")
    return options


def open_pair(options: argparse.Namespace, device: str) -> Pair:
    """The pair of ``--init``, or a new one."""
    tokenizer = load_tokenizer(options.tokenizer or options.init / "target")
    if options.init is not None:
        target, draft = load_model(options.init / "target"), load_model(options.init / "draft")
    else:
        vocabulary = tokenizer.get_vocab_size()
        target = new_model(options.target_shape, vocabulary=vocabulary, context=options.context)
        draft = new_model(options.draft_shape, vocabulary=vocabulary, context=options.context)
    return Pair(target.to(device), draft.to(device), tokenizer, options.context)


def write_history(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Append this run to the history of ``--init``, for the model card. Folders are left out of it."""
    earlier = options.init / "training.json" if options.init else None
    history = json.loads(earlier.read_text(encoding="utf-8")) if earlier and earlier.is_file() else []
    given = {
        name: str(value)
        for name, value in sorted(vars(options).items())
        if value is not None and not isinstance(value, Path)
    }
    history.append({"text": options.text.name, "options": given, **record})
    path = options.out / "training.json"
    path.write_text(json.dumps(history, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Both phases, then save."""
    options = parse_arguments(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pair = open_pair(options, device)
    corpus = read_corpus(options.text, separator=options.separator)
    stream = WindowStream(
        pair.tokenizer, corpus.train, size=options.context, editing_share=options.editing, seed=options.seed
    )
    copy_budget = Budget(options.copy_minutes, options.copy_steps)
    copy_seen = teach_copying(
        pair.target,
        CopyStream(pair.tokenizer, corpus.train, min(256, options.context), random.Random(options.seed)),
        stream,
        copy_budget,
        rate=options.rate,
    )
    pair.save(options.out)
    copy_minutes = copy_budget.elapsed
    budget = Budget(options.minutes, options.steps)
    seen = train_jointly(
        pair,
        stream,
        budget,
        batch=options.batch,
        rate=options.rate,
        draft_rate=options.draft_rate,
        out=options.out,
        snapshot_minutes=options.snapshot_minutes,
    )
    pair.save(options.out)
    minutes = budget.elapsed
    draft_budget = Budget(options.draft_minutes, options.draft_steps)
    draft_seen = distil(
        pair.target,
        pair.draft,
        pair.tokenizer,
        corpus.train,
        stream,
        draft_budget,
        batch=options.batch,
        rate=options.draft_rate,
        label_share=LABEL_SHARE,
        own_share=options.own,
        seed=options.seed,
    )
    pair.save(options.out)
    record = {
        "copy_tokens": copy_seen,
        "copy_minutes": round(copy_minutes, 1),
        "joint_tokens": seen,
        "joint_minutes": round(minutes, 1),
        "draft_tokens": draft_seen,
        "draft_minutes": round(draft_budget.elapsed, 1),
    }
    write_history(options, record)
    print(f"saved to {options.out}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
