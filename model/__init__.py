"""The network, one file per organ, and the function that turns it into an EstimatorSpec."""
