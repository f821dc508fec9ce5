"""Learning to copy: what is marked as copied is, and the guided heads learn to look there."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tokenizers import Tokenizer  # noqa: E402
from training.copying import CopyStream, choose_heads, guidance, teach_copying  # noqa: E402
from training.corpus import END_ID, WindowStream  # noqa: E402
from training.pair import Shape, load_tokenizer, new_model  # noqa: E402
from training.steps import Budget  # noqa: E402

DOCUMENTS = [
    f"The office on floor {number} sends a letter to each visitor. Our team needs the number of the report, "
    "and the old door moves before noon. Each letter helps the visitor to find the office again."
    for number in range(12)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(ROOT / "src/specpilot/bundled/target")


def stream(tokenizer: Tokenizer, seed: int) -> CopyStream:
    return CopyStream(tokenizer, DOCUMENTS, 192, random.Random(seed))


def test_what_is_copied_stood_there_before(tokenizer: Tokenizer) -> None:
    made = stream(tokenizer, 1)
    copied = 0
    for _ in range(60):
        item = made.item()
        assert len(item.tokens) <= 192
        assert item.tokens[0] == END_ID
        assert len(item.learned) == len(item.source) == len(item.tokens) - 1
        for place, source in enumerate(item.source):
            if source >= 0:
                assert source <= place
                assert item.tokens[source] == item.tokens[place + 1]
                copied += item.learned[place]
    assert copied > 500


def test_a_batch_is_padded_and_nothing_of_the_padding_is_learned(tokenizer: Tokenizer) -> None:
    ids, learned, source = stream(tokenizer, 2).batch(600)
    assert learned.shape == source.shape == (ids.shape[0], ids.shape[1] - 1)
    for row in range(ids.shape[0]):
        ends = int((ids[row] != END_ID).nonzero()[-1])
        assert not learned[row, ends + 1 :].any()
        assert (source[row, ends + 1 :] == -1).all()


def test_guided_heads_learn_where_to_look(tokenizer: Tokenizer) -> None:
    """On a toy model some steps of guidance are enough to be seen (seeded; the drop is far beyond noise)."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two collapse where another process wants a core
    model = new_model(Shape(4, 64, 96), vocabulary=tokenizer.get_vocab_size(), context=192)
    model.set_attn_implementation("eager")
    made = stream(tokenizer, 3)
    guides = choose_heads(model, made, tokens=600)
    assert len(guides.induction) >= 1
    assert all(layer > guides.previous[0] for layer, _ in guides.induction)
    ids, _, source = stream(tokenizer, 4).batch(600)

    def told() -> float:
        with torch.no_grad():
            attentions = model(input_ids=ids[:, :-1], use_cache=False, output_attentions=True).attentions
        return float(guidance(attentions, source, guides).mean())

    before = told()
    prose = WindowStream(tokenizer, DOCUMENTS, size=64, editing_share=0.0, seed=1)
    seen = teach_copying(model, made, prose, Budget(0.0, 15), rate=3e-3)
    model.set_attn_implementation("eager")
    after = told()
    torch.set_num_threads(threads)
    assert seen > 15 * 500
    assert after < before - 0.3
