"""The HTTP server: OpenAI's API on the cycle scheduler, a continuation cache, metrics and two pages."""
