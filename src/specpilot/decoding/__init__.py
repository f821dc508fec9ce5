"""The cycle: draft → verify → accept → commit, and the rules of acceptance."""
