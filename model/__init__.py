"""The network, one file per component, and the model function that returns an EstimatorSpec."""
