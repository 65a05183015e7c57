"""Benchmarks and parity checks of pycam against other packages. Run from the repository root: ``python -m bench.parity``."""
