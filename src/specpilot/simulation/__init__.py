"""What can be learnt without the models: recording, exact replay, baselines, oracles, results."""
