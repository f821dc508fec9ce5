"""The bodies that ``/v1`` takes: OpenAI's fields, specpilot's extensions, and nothing else.

A field that OpenAI knows and this server does not support is accepted at its neutral value and refused at any
other: silence would be a lie about the output.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(max_length=256)]
Token = Annotated[int, Field(ge=0)]
_MOST_STOPS = 4


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: with ``include_usage``, the usage so far stands in every chunk."""
    include_obfuscation: Literal[False] | None = None


class Speculation(_Body):
    """specpilot's extension: how a request is speculated."""

    mode: Literal["auto", "off"] = "auto"
    max_draft: Annotated[int, Field(ge=0, le=32)] | None = None
    explain: bool = False


class Sampling(_Body):
    """What completions and chats have in common."""

    model: Annotated[str, Field(max_length=512)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=_MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    # specpilot's own
    session_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    slo_ms: Annotated[float, Field(gt=0.0, le=600_000.0)] | None = None
    speculation: Speculation | None = None
    whole_words: bool | None = None
    continuation: bool | None = None
    # OpenAI's, at their neutral values only
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0.0, le=0.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0.0, le=0.0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _is_text_or_texts(cls, stop: object) -> object:
        """As for a prompt: pydantic would say of five texts that they are no text."""
        texts = stop if isinstance(stop, list) else [] if stop is None else [stop]
        if len(texts) > _MOST_STOPS or not all(isinstance(text, str) for text in texts):
            raise PydanticCustomError(
                "stop_form", f"it must be a text or a list of at most {_MOST_STOPS} texts"
            )
        return stop


class CompletionBody(Sampling):
    """``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=1)]
        | list[Token]
        | Annotated[list[list[Token]], Field(min_length=1, max_length=1)]
    )
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _has_a_form(cls, prompt: object) -> object:
        """Says what is wrong at once: a union's own words are those of one of its alternatives."""
        if isinstance(prompt, str) or (isinstance(prompt, list) and _is_one_prompt(prompt)):
            return prompt
        raise PydanticCustomError(
            "prompt_form", "it must be one prompt: a text or a list of token ids (or a list of one of these)"
        )


def _is_one_prompt(prompt: list[object]) -> bool:
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return True
    tokens = prompt[0] if len(prompt) == 1 and isinstance(prompt[0], list) else prompt
    return all(type(token) is int and token >= 0 for token in tokens)


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """As a chat template takes it: the content is one string."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


class ResponseFormat(_Body):
    """Only text."""

    type: Literal["text"]


class ChatBody(Sampling):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "default"] | None = None


class ModeBody(_Body):
    """``PUT /admin/mode``."""

    mode: Literal["off", "shadow", "on"]
