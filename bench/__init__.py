"""Benchmarks: one file per question. README.md has the method, `results/` what was measured."""
