"""Files, checkpoints, checks and optional imports. Knows no model."""
