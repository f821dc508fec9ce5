"""The ``vllm serve`` commands of docs/vllm.md: vLLM takes their flags, the plugin takes their setup."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests_vllm import steered

PAGE = Path(__file__).resolve().parents[1] / "docs" / "vllm.md"


def serve_commands() -> list[list[str]]:
    """The page's commands, without ``vllm serve``; its models become the bundled ones."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("vllm serve ")]
    names = {"meta-llama/Llama-3.1-8B-Instruct": "target", "meta-llama/Llama-3.2-1B-Instruct": "draft"}
    for name, role in names.items():
        lines = [line.replace(name, steered.bundled(role)) for line in lines]
    return [shlex.split(line)[2:] for line in lines]


@pytest.mark.parametrize("words", serve_commands(), ids=["draft_model", "ngram"])
def test_a_serve_command_makes_a_steered_engine_configuration(words: list[str]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from specpilot.vllm.plugin import SCHEDULER

    options = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    options.model = options.model_tag
    config = AsyncEngineArgs.from_cli_args(options).create_engine_config()
    assert config.scheduler_config.scheduler_cls == SCHEDULER
    assert config.speculative_config.num_speculative_tokens == 6
