"""Causal language models with rollback-able KV caches, one module an engine."""
