"""specpilot in vLLM: the same controller, installed as a plugin that is inert until it is configured.

Only the modules that vLLM itself loads (``plugin``, ``scheduler``, ``worker``) import vLLM;
the rest is plain Python and tested without it.
"""
