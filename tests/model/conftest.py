"""Gradients as training has them."""

import pytest

from model.roi_align import make_gradient_exact


@pytest.fixture(scope="session", autouse=True)
def exact_gradients():
    """Once, before the first test here."""
    make_gradient_exact()
