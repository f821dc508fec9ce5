"""A first phase that teaches the target to copy: attention is shown where to look.

Copying needs two heads in a row (Olsson et al. 2022): one that looks at the token before, and a later one
that finds where the present token stood earlier and looks at what followed it there. From the next-token loss
alone a model of this size finds them after tens of millions of tokens. Where a passage is copied the right
place is known, so a few heads are told: guided attention, as for alignments in translation (Liu et al. 2016)
and in speech (Tachibana et al. 2018). The guidance fades out; the loss on the copied tokens stays.
"""

from __future__ import annotations

import difflib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from training.corpus import END_ID, WindowStream, encode
from training.editing import examples
from training.steps import (
    Budget,
    apply,
    backward_to_labels,
    cross_entropy,
    logits_of,
    make_optimizer,
    softmax_of,
)

LOG_SECONDS = 30.0
BATCH_TOKENS = 768
"""In a step: many small steps find the heads sooner than few large ones."""
PROSE_EVERY = 6
"""Steps from one window of text to the next: what was learnt of prose should not be forgotten."""
GUIDED_SHARE = 0.7
"""Of the phase; the guidance fades to nothing by then."""
INDUCTION_HEADS = 3
"""Heads that are shown the source; one head of 64 dimensions cannot carry 4,096 tokens alone."""


@dataclass(frozen=True, slots=True)
class CopyItem:
    """Tokens of which ``learned`` positions' successors are copied from ``source``.

    ``source[t]`` is where token t + 1 stood before, or −1 where it is not copied.
    """

    tokens: list[int]
    learned: list[bool]
    source: list[int]


@dataclass(slots=True)
class CopyStream:
    """Makes copy items: repeated passages of random tokens, repeated passages of text, editing examples."""

    tokenizer: Tokenizer
    documents: Sequence[str]
    size: int
    rng: random.Random
    _encoded: dict[int, list[int]] = field(default_factory=dict)

    def batch(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, learned, source) of items that together have about so many tokens, padded to the longest.

        Shapes (items, length), (items, length − 1), (items, length − 1).
        """
        items: list[CopyItem] = []
        while sum(len(item.tokens) for item in items) < tokens:
            items.append(self.item())
        length = max(len(item.tokens) for item in items)
        ids = np.full((len(items), length), END_ID, dtype=np.int64)
        learned = np.zeros((len(items), length - 1), dtype=np.float32)
        source = np.full((len(items), length - 1), -1, dtype=np.int64)
        for row, item in enumerate(items):
            ids[row, : len(item.tokens)] = item.tokens
            learned[row, : len(item.learned)] = item.learned
            source[row, : len(item.source)] = item.source
        return torch.from_numpy(ids), torch.from_numpy(learned), torch.from_numpy(source)

    def item(self) -> CopyItem:
        """One item of a random kind."""
        kind = self.rng.random()
        if kind < 0.5:
            return self._edit()
        return self._repeat(random_tokens=kind < 0.7)

    def _repeat(self, *, random_tokens: bool) -> CopyItem:
        length = self.rng.randint(8, min(100, self.size // 3))
        gap = self.rng.choice((0, 0, self.rng.randint(1, max(1, self.size - 2 * length - 2))))
        before = self.rng.randint(0, max(0, min(20, self.size - 2 * length - gap - 1)))
        passage = self._random(length) if random_tokens else self._text(length)
        tokens = [END_ID, *self._text(before), *passage, *self._text(gap), *passage]
        second = len(tokens) - length
        back = length + gap
        # The passage's first token cannot be known: nothing says that the repetition begins.
        source = [t + 1 - back if t >= second else -1 for t in range(len(tokens) - 1)]
        return CopyItem(tokens, [place >= 0 for place in source], source)

    def _edit(self) -> CopyItem:
        while True:
            example = examples(self.documents, self.rng, 1)[0]
            prompt, answer = example.prompt, example.corrected
            if self.rng.random() < 0.25:
                prompt, answer = prompt.rstrip(" "), f" {answer}"
            asked = [END_ID, *encode(self.tokenizer, prompt)]
            answered = [*encode(self.tokenizer, answer), END_ID]
            if len(asked) + len(answered) <= self.size:
                break
        source = [-1] * (len(asked) + len(answered) - 1)
        matcher = difflib.SequenceMatcher(None, asked, answered[:-1], autojunk=False)
        for match in matcher.get_matching_blocks():
            for step in range(match.size):
                source[len(asked) - 1 + match.b + step] = match.a + step
        learned = [False] * (len(asked) - 1) + [True] * len(answered)
        return CopyItem([*asked, *answered], learned, source)

    def _random(self, count: int) -> list[int]:
        return [self.rng.randrange(1, self.tokenizer.get_vocab_size()) for _ in range(count)]

    def _text(self, count: int) -> list[int]:
        result: list[int] = []
        while len(result) < count:
            index = self.rng.randrange(len(self.documents))
            if index not in self._encoded:
                self._encoded[index] = encode(self.tokenizer, self.documents[index])
            ids = self._encoded[index]
            start = self.rng.randrange(max(1, len(ids) - count))
            result += ids[start : start + count - len(result)]
        return result


@dataclass(frozen=True, slots=True)
class Guides:
    """The heads that are guided, as (layer, head): one looks back one token, the others at the source."""

    previous: tuple[int, int]
    induction: tuple[tuple[int, int], ...]


def choose_heads(model: Any, stream: CopyStream, tokens: int = 4000) -> Guides:
    """The heads that already come nearest: the better the start, the less of the model is overwritten."""
    ids, _, source = stream.batch(tokens)
    with torch.no_grad():
        attentions = model(input_ids=ids[:, :-1], use_cache=False, output_attentions=True).attentions
    layers = len(attentions)
    before = torch.stack([a.diagonal(offset=-1, dim1=2, dim2=3).mean(dim=(0, 2)) for a in attentions])
    early = before[: max(1, (layers - 2) // 2)]
    layer, head = divmod(int(early.argmax()), early.shape[1])
    found = torch.stack([_looked_at(a, source).mean(dim=1) for a in attentions])
    found[: layer + 1] = -1.0
    found[max(layer + 2, layers - 2) :] = -1.0  # what is copied needs layers after it to become a prediction
    best = found.flatten().topk(min(INDUCTION_HEADS, int((found >= 0).sum()))).indices.tolist()
    return Guides((layer, head), tuple(divmod(int(place), found.shape[1]) for place in best))


def _looked_at(attention: Tensor, source: Tensor) -> Tensor:
    """Weight on the source, (heads, copied positions)."""
    rows, places = torch.nonzero(source >= 0, as_tuple=True)
    return attention[rows, :, places, source[rows, places]].T


def guidance(attentions: Sequence[Tensor], source: Tensor, guides: Guides) -> Tensor:
    """−log of the attention that the guided heads pay to where they should look, by head."""
    layer, head = guides.previous
    back = attentions[layer][:, head].diagonal(offset=-1, dim1=1, dim2=2)
    losses = [_surprise(back)]
    for layer, head in guides.induction:
        losses.append(_surprise(_looked_at(attentions[layer][:, head : head + 1], source)))
    return torch.stack(losses)


def _surprise(weights: Tensor) -> Tensor:
    return -weights.clamp_min(1e-6).log().mean()


def teach_copying(model: Any, stream: CopyStream, prose: WindowStream, budget: Budget, *, rate: float) -> int:
    """Train on batches of copy items, and on a window of text now and then; returns the tokens seen."""
    if budget.fraction >= 1:
        return 0
    device = next(model.parameters()).device
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not say where they looked
    guides = choose_heads(model, stream)
    print(f"copying: guided heads (layer, head): {guides}", flush=True)
    optimizer = make_optimizer(model)
    seen, logged = 0, 0.0
    while budget.fraction < 1:
        ids, learned, source = (tensor.to(device) for tensor in stream.batch(BATCH_TOKENS))
        labels = ids[:, 1:].flatten()
        strength = max(0.0, 1.0 - budget.fraction / GUIDED_SHARE)
        answer = model(input_ids=ids[:, :-1], use_cache=False, output_attentions=strength > 0.0)
        if strength > 0.0:
            guided = guidance(answer.attentions, source, guides)
            (strength * guided.mean()).backward(retain_graph=True)
        logits = answer.logits.flatten(0, 1)
        probabilities = softmax_of(logits)
        right = (probabilities.argmax(-1) == labels)[(source >= 0).flatten()].float().mean()
        loss = cross_entropy(probabilities, labels, learned.flatten())
        backward_to_labels(logits, probabilities, labels, learned.flatten())
        seen += labels.numel()
        if budget.step % PROSE_EVERY == 0:
            windows, weights = (torch.from_numpy(array).to(device) for array in prose.batch(1))
            logits = logits_of(model, windows[:, :-1])
            labels = windows[:, 1:].flatten()
            backward_to_labels(logits, softmax_of(logits), labels, weights.flatten())
            seen += labels.numel()
        apply(optimizer, model, budget.rate(rate))
        budget.step += 1
        if time.monotonic() - logged >= LOG_SECONDS:
            logged = time.monotonic()
            print(
                f"copying {budget.elapsed:6.1f} min  step {budget.step:5d}  {seen / 1e6:6.3f} M tokens  "
                f"loss {loss:.3f}  copied right {float(right):.3f}  "
                f"guidance {' '.join(f'{part:.2f}' for part in guided.tolist())}",
                flush=True,
            )
    model.set_attn_implementation(usual)
    return seen
