"""Benchmarks of each stage of this project and its peers, and charts of the results."""
