"""Training on drawn people: targets and dataset, the grouped network, losses, schedule, the training loop, evaluation."""
