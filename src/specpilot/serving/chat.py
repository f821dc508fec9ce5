"""A chat as one prompt: by the model's own chat template, or plainly where it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatFormat:
    """Turns messages into a prompt.

    Args:
        template: a Jinja template as Hugging Face tokenizers carry it; None: messages are joined by blank
            lines, which suits a base model that continues text.
        special_tokens: ``bos_token``, ``eos_token``, … for the template.

    Raises:
        ValueError: if the template cannot be compiled.
    """

    def __init__(self, template: str | None = None, special_tokens: Mapping[str, str] | None = None) -> None:
        self._special = dict(special_tokens or {})
        self._template: Template | None = None
        if template is not None:
            # As transformers renders them: sandboxed, blocks trimmed.
            environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            environment.globals["raise_exception"] = _raise
            environment.filters["tojson"] = lambda value, **options: json.dumps(
                value, ensure_ascii=False, **options
            )
            try:
                self._template = environment.from_string(template)
            except TemplateError as error:
                raise ValueError(f"chat_template: it cannot be compiled ({error})") from None

    @property
    def templated(self) -> bool:
        """Whether the template writes the special tokens, so that encoding must not add any."""
        return self._template is not None

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for an assistant's next message.

        Raises:
            ValueError: if the template refuses the messages.
        """
        if self._template is None:
            return "\n\n".join(message["content"] for message in messages)
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except Exception as error:  # a template may fail in any way on messages it was not made for
            raise ValueError(f"messages: the model's chat template refuses them ({error})") from None


def read_chat_format(folder: Path) -> ChatFormat:
    """The chat format of a Hugging Face folder.

    Raises:
        ValueError: if its tokenizer_config.json or its template cannot be read.
    """
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = {}
    if path.is_file():
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON ({error})") from None
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((one["template"] for one in template if one.get("name") == "default"), None)
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        template = beside.read_text(encoding="utf-8")
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = settings.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            special[name] = token
    return ChatFormat(template, special)


def find_chat_format(target: str | None) -> ChatFormat:
    """The chat format of a target as ``load_pair`` takes it: a folder, a hub id, or None for the bundled one.

    Raises:
        ValueError: as :func:`read_chat_format`.
    """
    if target is None:
        return ChatFormat()  # the bundled pair continues text
    folder = Path(target)
    if not folder.is_dir():
        from transformers.utils import cached_file

        folder = Path(cached_file(target, "tokenizer_config.json")).parent
    return read_chat_format(folder)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
