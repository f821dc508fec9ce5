"""How OpenAI writes answers: completions and chats, whole and in chunks of a stream."""

from __future__ import annotations

import json
import time
from typing import Any

from specpilot.serving.answers import Answer, usage_block
from specpilot.serving.service import Run

DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event; in ASCII, so that no character is ever split."""
    return b"data: " + json.dumps(body, ensure_ascii=True, separators=(",", ":")).encode() + b"\n\n"


class Shape:
    """How OpenAI writes one kind of answer: the objects, as JSON will have them."""

    object = ""
    chunk_object = ""
    prefix = ""

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = ""
        self._created = int(time.time())

    def identify(self, run: Run) -> None:
        """Take the answer's id from its request."""
        self._id = f"{self.prefix}-{run.request_id}"

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        """The one choice of a whole answer."""
        raise NotImplementedError

    def delta(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        """The one choice of a chunk: its piece of text, or the reason of the end."""
        raise NotImplementedError

    def opening(self) -> list[dict[str, Any]]:
        """Chunks that come before the first text."""
        return []

    def whole(self, answer: Answer) -> dict[str, Any]:
        """An answer that is no stream."""
        return {
            **self._head(self.object),
            "choices": [self.choice(answer.text, answer.finish_reason)],
            "usage": usage_block(answer.prompt_tokens, answer.completion_tokens),
            "specpilot": answer.account,
        }

    def chunk(self, piece: str) -> dict[str, Any]:
        """A chunk with a piece of text."""
        return {**self._head(self.chunk_object), "choices": [self.delta(piece, None)]}

    def closing(self, answer: Answer) -> dict[str, Any]:
        """The last chunk: why the answer ended, and its account."""
        choice = self.delta(None, answer.finish_reason)
        return {**self._head(self.chunk_object), "choices": [choice], "specpilot": answer.account}

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The chunk with the tokens' counts that comes last where it is asked for."""
        return {
            **self._head(self.chunk_object),
            "choices": [],
            "usage": usage_block(answer.prompt_tokens, answer.completion_tokens),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


class TextShape(Shape):
    """A completion: bare text."""

    object = chunk_object = "text_completion"
    prefix = "cmpl"

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        """The one choice of a whole answer."""
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def delta(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        """The one choice of a chunk."""
        return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish_reason}


class ChatShape(Shape):
    """A chat's answer: the assistant's message."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    prefix = "chatcmpl"

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        """The one choice of a whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}

    def delta(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        """The one choice of a chunk."""
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def opening(self) -> list[dict[str, Any]]:
        """A chunk that says who speaks."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return [{**self._head(self.chunk_object), "choices": [choice]}]
