"""The data package: from COCO files to batches, independent of any network."""
