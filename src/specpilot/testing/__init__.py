"""Conformance checks that anyone's model, drafter, target or controller can be put through.

Each ``*_checks`` function takes a factory and returns named checks; a check is run by calling it and
raises ``AssertionError`` with what is wrong. With pytest::

    @pytest.mark.parametrize("check", drafter_checks(MyDrafter), ids=str)
    def test_my_drafter(check):
        check()

A factory gives a fresh object each time (models may be shared between them). Checks feed tokens below 8
and contexts below 40 tokens.
"""

from specpilot.decoding.static import StaticController
from specpilot.testing.check import Check
from specpilot.testing.controllers import controller_checks
from specpilot.testing.drafters import drafter_checks
from specpilot.testing.models import model_checks
from specpilot.testing.run import decode, plain_greedy
from specpilot.testing.targets import target_checks

__all__ = [
    "Check",
    "StaticController",
    "controller_checks",
    "decode",
    "drafter_checks",
    "model_checks",
    "plain_greedy",
    "target_checks",
]
