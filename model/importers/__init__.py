"""Weights of other programs: their files, read into arrays without running what they contain."""
