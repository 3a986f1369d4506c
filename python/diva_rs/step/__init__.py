"""One training step: draws, inputs, trainer and loss module."""
