"""Files: .npy tensors, atomic writes and locks."""
