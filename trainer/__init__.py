"""Training, evaluation and prediction with any model_fn; the loop is independent of the model."""
