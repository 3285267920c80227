"""Benchmarks of each stage, of this project and of its peers, and the charts drawn of them."""
