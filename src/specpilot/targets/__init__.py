"""Targets: what verifies blocks and has the last word on every token."""
