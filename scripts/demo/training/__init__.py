"""Training on drawn people: targets and dataset, the grouped network, losses, schedule, training loop, evaluation."""
