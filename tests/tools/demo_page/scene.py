"""A drawn picture of pebbles, a predictor that finds them without a network, and its server."""

import contextlib
import io
import threading
import time

import numpy as np
from PIL import Image, ImageFilter

from data.config import DataConfig
from model.config import SYSTEMS, ModelConfig
from tools.demo import choose_hosts, listen, make_server
from trainer.config import Params
from trainer.predictor import Detections

HEIGHT, WIDTH, SIDE = 480, 640, 28
# Centre y and x, radii, angle, class, box score and mask IoU. By box score the order is 0 to 5, by
# mask score 0 3 2 1 5 4.
PEBBLES = [
    (130, 170, 70, 95, 0.3, "pebble", 0.98, 0.92),
    (300, 420, 90, 120, -0.4, "pebble", 0.95, 0.55),
    (120, 430, 55, 80, 0.8, "shell", 0.90, 0.80),
    (350, 150, 65, 85, -0.7, "pebble", 0.86, 0.90),
    (225, 290, 40, 48, 0.1, "shell", 0.62, 0.35),
    (400, 570, 45, 50, 0.5, "shell", 0.44, 0.75),
]
LABELS = {"pebble": 1, "shell": 2}


def inside(pebble, y, x):
    """Whether points are in a pebble."""
    centre_y, centre_x, radius_y, radius_x, angle = pebble[:5]
    dy, dx = y - centre_y, x - centre_x
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = dy * np.cos(angle) - dx * np.sin(angle)
    return (along / radius_x) ** 2 + (across / radius_y) ** 2


def draw(height=HEIGHT, width=WIDTH):
    """The picture, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] + 0.5
    rng = np.random.default_rng(1)
    sand = np.array([214, 200, 172]) - 20 * (y / height)[..., None]
    picture = sand + rng.normal(0, 7, [height, width, 1])
    shades = {"pebble": (118, 124, 132), "shell": (226, 178, 150)}
    for index, pebble in enumerate(PEBBLES):
        distance = inside(pebble, y, x)[..., None]
        light = 1.15 - 0.35 * distance + 0.02 * index
        colour = np.array(shades[pebble[5]]) * light + rng.normal(0, 4, [height, width, 1])
        picture = np.where(distance < 1, colour, picture * np.where(distance < 1.25, 0.85, 1.0))
    smooth = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(1)
    )
    return np.asarray(smooth)


def encode(pixels, kind="JPEG", **options):
    """The content of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


class Finder:
    """What `tools.demo_page.server.make_app` uses of a predictor; finds the pebbles everywhere.

    Args:
        system: one of `model.systems.SYSTEMS`.
        seconds: time that a picture takes.
    """

    names = {label: name for name, label in LABELS.items()}

    def __init__(self, system="mask_scoring_rcnn", seconds=0.0, exif="apply"):
        self.params = Params(data=DataConfig(exif=exif), model=ModelConfig(system=system))
        self.seconds = seconds
        self.seen = []

    def __call__(self, pixels):
        self.seen.append(pixels)
        time.sleep(self.seconds)
        return find(pixels, self.params.model.system)


def find(pixels, system="mask_scoring_rcnn"):
    """The pebbles, scaled to the picture, as `Detections`."""
    height, width = pixels.shape[:2]
    boxes, masks = zip(*map(_box_and_mask, PEBBLES), strict=True)
    scores = np.array([pebble[6] for pebble in PEBBLES], np.float32)
    ious = np.array([pebble[7] for pebble in PEBBLES], np.float32)
    has_masks, rescored = SYSTEMS[system].has_masks, SYSTEMS[system].has_maskiou
    mask_scores = scores * ious if rescored else scores
    order = np.argsort(-mask_scores)
    names = [PEBBLES[index][5] for index in order]
    scale = np.array([height / HEIGHT, width / WIDTH] * 2)
    return Detections(
        height=height,
        width=width,
        boxes=(np.array(boxes) * scale)[order].astype(np.float32),
        classes=np.array([LABELS[name] for name in names], np.int32),
        names=names,
        category_ids=[10 * LABELS[name] for name in names],
        box_scores=scores[order],
        mask_ious=ious[order] if rescored else None,
        mask_scores=mask_scores[order] if has_masks else None,
        probabilities=np.array(masks, np.float32)[order] if has_masks else None,
    )


def _box_and_mask(pebble):
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rows, columns = np.nonzero(inside(pebble, y, x) < 1)
    box = (rows.min() - 4, columns.min() - 4, rows.max() + 5, columns.max() + 5)
    cells = (np.arange(SIDE) + 0.5) / SIDE
    y = box[0] + cells[:, None] * (box[2] - box[0])
    x = box[1] + cells * (box[3] - box[1])
    return box, 1 / (1 + np.exp(8 * (inside(pebble, y, x) - 1)))


@contextlib.contextmanager
def running(predictor, limits):
    """Runs a server in a thread; yields its port."""
    server = make_server(predictor, limits, choose_hosts("127.0.0.1", []))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
