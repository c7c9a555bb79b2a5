"""Who trains, who chooses, who tests: probes by patient folds and external cohorts."""
