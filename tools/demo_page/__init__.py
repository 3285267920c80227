"""A web page that shows a model's detections, and its server."""
