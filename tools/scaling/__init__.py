"""What training on larger machines needs, calculated from what was counted and measured."""
