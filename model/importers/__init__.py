"""Pretrained weights of other programs: read into arrays without running any code they contain."""
