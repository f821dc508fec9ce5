"""Chats as prompts: the model's own template, or plain text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specpilot.serving.chat import ChatFormat, read_chat_format

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_without_a_template_messages_are_text() -> None:
    chat = ChatFormat()
    assert not chat.templated
    assert chat.prompt(MESSAGES) == "Be brief.\n\nHi"


def test_the_models_template(tmp_path: Path) -> None:
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat = read_chat_format(tmp_path)
    assert chat.templated
    assert chat.prompt(MESSAGES) == "<s><system>Be brief.\n<user>Hi\n<assistant>"
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert read_chat_format(tmp_path).prompt(MESSAGES) == "beside"


def test_templates_that_refuse_or_break_out(tmp_path: Path) -> None:
    refusing = ChatFormat("{{ raise_exception('no system message') }}")
    with pytest.raises(ValueError, match=r"messages: .*no system message"):
        refusing.prompt(MESSAGES)
    with pytest.raises(ValueError, match="messages"):
        ChatFormat("{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}").prompt(
            MESSAGES
        )
    with pytest.raises(ValueError, match="chat_template"):
        ChatFormat("{% if %}")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_chat_format(tmp_path)
