"""What the server allows itself and its clients: one frozen object, validated when it is made."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KEYS_VARIABLE = "SPECPILOT_API_KEYS"
"""``name:token`` pairs, comma-separated; each name is a tenant. Unset: no token is asked for."""
ADMIN_VARIABLE = "SPECPILOT_ADMIN_KEY"
"""The token for ``/admin``. Unset: ``/admin`` answers this machine only, and nobody if there are API keys."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Limits and places of a server. Sizes in bytes or tokens, durations in seconds or milliseconds.

    Raises:
        ValueError: for a value out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = "specpilot"
    """What ``/v1/models`` lists and ``model`` must say."""
    default_max_tokens: int = 24
    """Where a request gives no ``max_tokens``."""
    max_tokens_limit: int = 512
    max_prompt_tokens: int | None = None
    """Longest prompt; None: what the model's context holds."""
    max_body_bytes: int = 1 << 20
    max_outstanding: int = 64
    """Most requests admitted and not ended; the next one is refused."""
    max_tenant_outstanding: int | None = None
    """The same for each tenant; None: no limit of its own."""
    max_connections: int = 512
    max_batch: int = 4
    """Most requests in one target pass."""
    draft_timeout_ms: float = 100.0
    """After this a draft counts as hung and the cycle decodes with the target alone."""
    cache_bytes: int = 256 << 20
    """Most memory per model for the KV caches that sessions keep between requests."""
    continuation_tokens: int = 1_000_000
    """Most tokens held by the continuation cache; 0 switches it off."""
    answer_ms: float = 5.0
    """What an answer may take from the engine to its client (at most a tenth of the SLO): the engine's
    deadline is earlier by this, so that the SLO holds where it is felt."""
    header_timeout_s: float = 5.0
    body_timeout_s: float = 5.0
    keep_alive_s: float = 30.0
    request_timeout_s: float = 30.0
    """How long beyond its deadline (its own ``slo_ms``, or the server's) an answer is waited for before it is
    given up: the engine hangs."""
    hang_timeout_s: float = 5.0
    """A cycle that has run for this long hangs: ``/health`` answers 503 until it ends."""
    drain_timeout_s: float = 10.0
    """On SIGTERM: how long requests in flight may take."""
    snapshot: Path | None = None
    """Where the learned state is kept between runs."""
    snapshot_every_s: float = 60.0
    trace: Path | None = None
    """Where a record per cycle is written; no text is in it, unless:"""
    trace_ids: bool = False
    """Whether the token ids of prompts, drafts and outputs are written to the trace too."""
    measure: bool = True
    """Whether the engine is timed at the start (a second or two) where no snapshot says what it costs."""
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if self.trace_ids and self.trace is None:
            raise ValueError("trace_ids: given without a trace to write them to; name one (--trace FILE)")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not in 0…65535; 0 takes a free one")
        for name in (
            "default_max_tokens",
            "max_tokens_limit",
            "max_body_bytes",
            "max_outstanding",
            "max_connections",
            "max_batch",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not ≥ 1; give a count")
        for name in ("cache_bytes", "continuation_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not ≥ 0; use 0 to keep nothing")
        if not self.answer_ms >= 0.0:
            raise ValueError(f"answer_ms: {self.answer_ms} is not ≥ 0; give milliseconds")
        for name in (
            "draft_timeout_ms",
            "header_timeout_s",
            "body_timeout_s",
            "keep_alive_s",
            "request_timeout_s",
            "hang_timeout_s",
            "drain_timeout_s",
            "snapshot_every_s",
        ):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name}: {getattr(self, name)} is not > 0; give a duration")
        if not self.model_name.strip():
            raise ValueError(
                f"model_name: {self.model_name!r} is empty; clients need a name to give as model"
            )
        if self.default_max_tokens > self.max_tokens_limit:
            raise ValueError(
                f"default_max_tokens: {self.default_max_tokens} exceeds max_tokens_limit "
                f"{self.max_tokens_limit}; raise the limit"
            )
        for name in ("max_prompt_tokens", "max_tenant_outstanding"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not ≥ 1; give a count")


class Keys:
    """Who may call: bearer tokens by tenant, held as digests and compared in constant time.

    Args:
        environment: usually ``os.environ``.

    Raises:
        ValueError: for a malformed :data:`KEYS_VARIABLE` (its tokens are not repeated in the message).
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._tenants: list[tuple[bytes, str]] = []
        given = environment.get(KEYS_VARIABLE, "")
        for index, entry in enumerate(given.split(",") if given.strip() else ()):
            name, colon, token = entry.strip().partition(":")
            if not (name and colon and token):
                raise ValueError(
                    f"{KEYS_VARIABLE}[{index}]: it is not name:token; separate several by commas"
                )
            digest = _digest(token)
            if any(known == digest for known, _ in self._tenants):
                raise ValueError(
                    f"{KEYS_VARIABLE}[{index}]: another entry has the same token; give each one of its own"
                )
            self._tenants.append((digest, name))
        admin = environment.get(ADMIN_VARIABLE, "")
        self._admin = _digest(admin) if admin else None

    @property
    def required(self) -> bool:
        """Whether a token must be given."""
        return bool(self._tenants)

    @property
    def has_admin(self) -> bool:
        """Whether there is an administrator's token."""
        return self._admin is not None

    def tenant(self, token: str) -> str | None:
        """The tenant of a token; None for an unknown one."""
        given, found = _digest(token), None
        for digest, name in self._tenants:
            if hmac.compare_digest(digest, given):
                found = name
        return found

    def is_admin(self, token: str) -> bool:
        """Whether the token is the administrator's."""
        return self._admin is not None and hmac.compare_digest(self._admin, _digest(token))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
