"""The demonstration: the main job end to end on the bundled pair, with a table and a report."""
