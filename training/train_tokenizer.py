"""Train a byte-level BPE tokenizer for a pair.

python -m training.train_tokenizer --text corpus.txt --out tokenizer.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from training.corpus import END_OF_TEXT, read_corpus


def train_tokenizer(documents: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE whose token 0 ends a text, and which puts that token before every text it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    # A text is served as it was seen in training: after an end of text.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    return tokenizer


def main(arguments: list[str]) -> int:
    """Train on the documents that are not held out, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_tokenizer", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text file")
    parser.add_argument("--separator", default="<|doc|>", help="between documents (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer.json to write")
    options = parser.parse_args(arguments)
    if options.vocabulary < 257:
        parser.error("--vocabulary must be at least 257: 256 bytes and the end of text")
    corpus = read_corpus(options.text, separator=options.separator)
    tokenizer = train_tokenizer(corpus.train, options.vocabulary)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out))
    print(f"{tokenizer.get_vocab_size()} tokens saved to {options.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
