"""Benchmarks and parity checks of pycam against other packages; run as ``python -m bench.parity`` from the root."""
