"""The Grafana dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from live_server import Serve, scripted_pair

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"


def test_every_metric_of_the_dashboard_is_exported(serve: Serve) -> None:
    run = serve(scripted_pair())
    run.post({"prompt": "ab", "continuation": False})
    run.server.metrics.turned_away("example")
    exported = set(re.findall(r"^(specpilot_\w+)", run.fetch("GET", "/metrics").body.decode(), re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"specpilot_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert asked <= exported
