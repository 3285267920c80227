"""From COCO files to batches; nothing here knows a layer."""
