"""The parts of `python -m benchmarks`; the docstring of the package above says how they fit together."""
