"""Benchmarks: every figure that SPECIFICATION.md promises, measured; never part of the tests."""
