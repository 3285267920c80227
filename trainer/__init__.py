"""Training, evaluation and prediction over a model_fn; the loop never knows the model."""
