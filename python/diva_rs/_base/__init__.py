"""Files, checkpoints, tensors and optional imports, independent of any model."""
