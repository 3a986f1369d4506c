"""The laboratory: benchmarks, pretraining of the microworld, studies and ablations. Not part of the wheel."""
