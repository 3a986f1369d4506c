"""How fast a step is, on the machine at hand: ``python -m lab bench``, ``make bench``.

Every figure is a comparison within one run: the step as the official code computes it, the best plain
PyTorch, and ours without and with cached latents take turns; see `lab.benchmarks.contestants`. Sizes are
in `sizes`, rows in `run`, the page in `table`.
"""
