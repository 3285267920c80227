"""Small ground truths and predictions in the forms that the evaluation takes."""

import numpy as np

CATEGORIES = [{"label": 1, "id": 4, "name": "cat"}, {"label": 2, "id": 9, "name": "dog"}]


def square(image_id, x, y, side, category_id=4, **more):
    """A square annotation."""
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, side, side],
        "area": side * side,
        "iscrowd": 0,
        "segmentation": [corners],
        **more,
    }


def ground_truth(*annotations, num_images=1):
    """A COCO dict of 100 x 120 images whose annotation ids start at 0."""
    return {
        "images": [{"id": n, "height": 100, "width": 120} for n in range(1, num_images + 1)],
        "annotations": [{"id": number, **a} for number, a in enumerate(annotations)],
        "categories": [{"id": c["id"], "name": c["name"]} for c in CATEGORIES],
    }


def predict(image_id, *detections, masks=True, scale=1.0):
    """A prediction whose detections are (box, label, box_score, mask_iou[, mask])."""
    detections = [detection if len(detection) == 5 else (*detection, 1) for detection in detections]
    boxes, labels, scores, ious, fills = zip(*detections, strict=True) if detections else [()] * 5
    padding = 2
    count = len(detections)

    def pad(values, shape=()):
        padded = np.full((count + padding, *shape), 0.9, np.float32)
        padded[:count] = np.reshape(values, (count, *shape))
        return padded

    prediction = {
        "image_id": np.int64(image_id),
        "image_info": np.array([100 * scale, 120 * scale, scale, 100, 120], np.float32),
        "num_detections": np.int32(count),
        "detection_boxes": pad(np.multiply(boxes, scale), (4,)),
        "detection_classes": pad(labels).astype(np.int32),
        "box_scores": pad(scores),
    }
    if masks:
        prediction["mask_ious"] = pad(ious)
        prediction["mask_scores"] = pad(np.multiply(scores, ious))
        fills = [np.broadcast_to(fill, (28, 28)) for fill in fills]
        prediction["detection_masks"] = pad(fills, (28, 28))
    return prediction
