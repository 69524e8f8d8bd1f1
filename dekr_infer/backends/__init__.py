"""What turns tensors into heatmaps and offsets."""
