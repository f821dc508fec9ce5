"""The whole training path on made-up text: tokenizer, toy pair, going on from it, model card."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from training.corpus import END_ID, WindowStream, read_corpus  # noqa: E402
from training.generate import continue_text  # noqa: E402
from training.measures import by_position, common_prefix, longest_common, loops, tokens_per_pass  # noqa: E402
from training.pair import Shape, load_model, load_tokenizer  # noqa: E402
from training.steps import Budget, backward_to, backward_to_labels, softmax_of  # noqa: E402

from training import evaluate, train_pair, train_tokenizer  # noqa: E402

SHAPES = ["--target-shape", "2x32x64", "--draft-shape", "1x16x32", "--context", "128"]


def run(module: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"training.{module}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def generated_text() -> str:
    rng = random.Random(5)
    things = ["the report", "a letter", "the old door", "each visitor", "our team", "the number"]
    acts = ["helps", "finds", "needs", "shows", "moves", "keeps"]

    def sentence() -> str:
        words = f"{rng.choice(things)} {rng.choice(acts)} {rng.choice(things)} and {rng.choice(things)}"
        return f"{words[0].upper()}{words[1:]} before noon."

    documents = ["\n".join(" ".join(sentence() for _ in range(6)) for _ in range(8)) for _ in range(40)]
    return "\n<|doc|>\n".join(documents)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, tokenizer.json and pair/."""
    folder = tmp_path_factory.mktemp("training")
    text, tokenizer = folder / "text.txt", folder / "tokenizer.json"
    text.write_text(generated_text(), encoding="utf-8")
    made = run("train_tokenizer", "--text", str(text), "--vocabulary", "320", "--out", str(tokenizer))
    assert made.returncode == 0, made.stderr
    made = run(
        "train_pair", "--text", str(text), "--tokenizer", str(tokenizer), "--out", str(folder / "pair"),
        "--steps", "3", "--draft-steps", "3", *SHAPES,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


def test_pair_reloads_in_half_precision(trained: Path) -> None:
    for role in ("target", "draft"):
        folder = trained / "pair" / role
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float16
        assert model.config.max_position_embeddings == 128
        assert model.config.tie_word_embeddings
        assert model.generation_config.eos_token_id == END_ID
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("Our team helps.")["input_ids"]
        assert ids[0] == END_ID
        assert tokenizer.decode(ids[1:]) == "Our team helps."


def test_going_on_from_a_pair_adds_to_its_history(trained: Path) -> None:
    made = run(
        "train_pair", "--text", str(trained / "text.txt"), "--init", str(trained / "pair"),
        "--out", str(trained / "more"), "--steps", "1", "--draft-steps", "0", "--context", "128",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    history = json.loads((trained / "more" / "training.json").read_text(encoding="utf-8"))
    assert [entry["joint_tokens"] for entry in history] == [3 * 2 * 128, 2 * 128]
    assert str(trained) not in json.dumps(history)
    before, after = (load_model(trained / name / "target") for name in ("pair", "more"))
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert any(not torch.equal(left, right) for left, right in pairs)


def test_card_is_written(trained: Path) -> None:
    made = run(
        "evaluate", "--pair", str(trained / "pair"), "--text", str(trained / "text.txt"),
        "--out", str(trained / "card"), "--prompts", "2", "--edits", "4",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    card = json.loads((trained / "card" / "model_card.json").read_text(encoding="utf-8"))
    assert card["held_out_documents"] == 1
    assert card["loss"]["target"]["loss"] == pytest.approx(5.8, abs=0.8)  # about ln 320: hardly trained
    text = (trained / "card" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "not an assistant" in text


@pytest.mark.parametrize("main", [train_tokenizer.main, train_pair.main, evaluate.main])
def test_unknown_option_is_an_error(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[Callable[[list[str]], int], list[str]] = {
        train_tokenizer.main: [],
        train_pair.main: ["--init", "i"],
        evaluate.main: ["--pair", "p"],
    }
    with pytest.raises(SystemExit) as raised:
        main(["--text", "x", "--out", "y", *given[main], "--no-such-option"])
    assert raised.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_missing_text_is_one_line(trained: Path) -> None:
    made = run(
        "train_pair", "--text", "no-such-file", "--init", str(trained / "pair"), "--out", str(trained / "z")
    )
    assert made.returncode == 1
    assert "no-such-file" in made.stderr.splitlines()[-1]
    assert "Traceback" not in made.stderr


def test_windows_hold_the_asked_share_of_editing_and_do_not_learn_its_prompts(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "tokenizer.json")
    documents = read_corpus(trained / "text.txt").train
    stream = WindowStream(tokenizer, documents, size=64, editing_share=0.4, seed=0)
    tokens, weights = stream.batch(300)
    assert tokens.shape == (300, 65)
    assert weights.shape == (300, 64)
    assert stream.editing_tokens / stream.all_tokens == pytest.approx(0.4, abs=0.03)
    text = tokenizer.decode([int(t) for t in tokens[:, 1:][weights > 0]], skip_special_tokens=False)
    assert "Fix the errors" not in text
    # Consecutive windows overlap by the one token that both need.
    assert (tokens[1:, 0] == tokens[:-1, -1]).all()


def test_gradients_equal_autograd() -> None:
    torch.manual_seed(0)
    labels, weights = torch.tensor([1, 4, 0]), torch.tensor([1.0, 0.0, 1.0])
    wanted = torch.softmax(torch.randn(3, 6), dim=-1)
    for hard in (True, False):
        left = torch.randn(3, 6, requires_grad=True)
        right = left.detach().clone().requires_grad_()
        logs = torch.log_softmax(right, dim=-1)
        if hard:
            backward_to_labels(left * 1, softmax_of(left), labels, weights)
            each = -logs.gather(1, labels[:, None])[:, 0]
        else:
            backward_to(left * 1, softmax_of(left), wanted, weights)
            each = -(wanted * logs).sum(dim=1)
        (each * weights).sum().div(weights.sum()).backward()
        assert torch.allclose(left.grad, right.grad, atol=1e-6)


def test_cached_continuation_equals_uncached(trained: Path) -> None:
    model = load_model(trained / "pair" / "target").eval()
    prompts = torch.tensor([[0, 5, 9, 17], [0, 30, 31, 32]])
    tokens, logits = continue_text(model, prompts, 6, keep_logits=True)
    with torch.no_grad():
        whole = model(input_ids=tokens[:, :-1], use_cache=False).logits
    assert torch.allclose(logits, whole, atol=1e-4)
    assert torch.equal(whole[:, 3:].argmax(-1), tokens[:, 4:])


def test_budget_ends_at_zero_rate() -> None:
    budget = Budget(0.0, steps=100)
    rates = []
    for step in range(100):
        budget.step = step
        rates.append(budget.rate(1.0))
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates[-1] < 0.02
    assert Budget(0.0).fraction == 1
    assert Budget(5.0, steps=0).fraction == 1


def test_measures() -> None:
    bits = [[True, True, False, True, False, True, True, True]]
    # Blocks of 2: accepted 2 (3 tokens), then 1 (2 tokens), then 2; the last one has just enough room.
    reached, conditional, survival = by_position(bits, 2)
    assert reached == [3, 3]
    assert conditional == [1, pytest.approx(2 / 3)]
    assert survival == [1, pytest.approx(2 / 3)]
    assert tokens_per_pass(bits, 2) == pytest.approx(1 + 1 + 2 / 3)
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert longest_common([1, 9, 2, 3], [1, 2, 3, 4]) == 3
    assert loops([1, 2, 3, 4] * 3)
    assert not loops([1, 2, 3, 4] * 2)


def test_shape_names_what_is_wrong() -> None:
    assert Shape.parse("12x256x688") == Shape(12, 256, 688)
    for text in ("12x256", "axbxc", "0x64x64", "2x100x64"):
        with pytest.raises(ValueError, match="not"):
            Shape.parse(text)
