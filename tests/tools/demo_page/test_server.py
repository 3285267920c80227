"""The server's answers: to good pictures, to bad ones, and to too many."""

import io
import json
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

pytest.importorskip("starlette", reason="needs the extra `demo`")
pytest.importorskip("python_multipart", reason="needs the extra `demo`")
pytest.importorskip("uvicorn", reason="needs the extra `demo`")
httpx = pytest.importorskip("httpx", reason="starlette's test client needs httpx")

from scene import HEIGHT, WIDTH, Finder, draw, encode, running  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from tools.demo_page.limits import Limits  # noqa: E402
from tools.demo_page.server import make_app  # noqa: E402
from trainer.predictor import load  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "trainer"))
from small_model import photograph  # noqa: E402

HERE = "http://127.0.0.1:8000"
JPEG = {"Content-Type": "image/jpeg"}
LIMITS = Limits(upload_bytes=2_000_000, pixels=500_000, seconds=300, places=3)


def serve(predictor, limits=LIMITS, **options):
    return TestClient(make_app(predictor, limits, **options), HERE)


@pytest.fixture(scope="module")
def finder():
    return Finder()


@pytest.fixture(scope="module")
def client(finder):
    with serve(finder) as client:
        yield client


@pytest.fixture(scope="module")
def picture():
    return encode(draw())


def send(client, content, query="", **headers):
    return client.post("/predict" + query, content=content, headers={**JPEG, **headers})


def check_refused(answer, status, *words):
    """Checks a refusal: one sentence, as JSON."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (sentence,) = answer.json().values()
    assert sentence.endswith(".") and "\n" not in sentence and "Traceback" not in sentence
    assert all(word in sentence for word in words), sentence
    return sentence


def test_detections_have_three_scores_and_a_mask(client, picture):
    answer = send(client, picture)
    assert answer.status_code == 200
    body = answer.json()
    assert body["image"] == {"height": HEIGHT, "width": WIDTH}
    assert len(body["detections"]) == 6
    first, second = body["detections"][:2]
    assert (first["name"], first["category_id"]) == ("pebble", 10)
    assert (first["box_score"], first["mask_iou"]) == (0.98, 0.92)
    assert first["mask_score"] == first["score"] == pytest.approx(0.98 * 0.92)
    assert (second["box_score"], second["mask_iou"]) == (0.86, 0.9)
    y1, x1, y2, x2 = first["box"]
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    mask = coco_mask.decode(first["segmentation"])
    assert mask.shape == (HEIGHT, WIDTH) and mask[130, 170] == 1
    assert mask.sum() == pytest.approx(np.pi * 70 * 95, rel=0.05)


@pytest.mark.parametrize(
    "query, fields",
    [
        ("?masks=rle", {"segmentation"}),
        ("?masks=probabilities", {"probabilities"}),
        ("?masks=probabilities,rle", {"probabilities", "segmentation"}),
    ],
)
def test_masks_come_as_asked(client, picture, query, fields):
    entry = send(client, picture, query).json()["detections"][0]
    assert entry.keys() & {"probabilities", "segmentation"} == fields
    if "probabilities" in fields:
        assert np.shape(entry["probabilities"]) == (28, 28)
        assert entry["probabilities"][14][14] > 0.99


def test_a_form_is_a_body(client, picture):
    answer = client.post("/predict", files={"image": ("../../etc/passwd", picture, "text/html")})
    assert answer.content == send(client, picture).content


@pytest.mark.parametrize(
    "system, scores",
    [
        ("faster_rcnn", {"box_score"}),
        ("mask_rcnn", {"box_score", "mask_score"}),
        ("mask_scoring_rcnn", {"box_score", "mask_iou", "mask_score"}),
        ("cascade_mask_rcnn", {"box_score", "mask_score"}),
        ("pointrend_mask_scoring_rcnn", {"box_score", "mask_iou", "mask_score"}),
    ],
)
def test_the_model_says_what_it_has(picture, system, scores):
    with serve(Finder(system)) as client:
        model = client.get("/model").json()
        entry = send(client, picture, "?masks=rle,probabilities").json()["detections"][0]
    assert model["names"] == ["pebble", "shell"] and model["canvases"][0] == "832x1344"
    assert set(model["scores"]) == scores == entry.keys() & {"box_score", "mask_iou", "mask_score"}
    assert model["masks"] == ("segmentation" in entry) == ("probabilities" in entry)
    assert model["limits"] == {"upload_bytes": 2_000_000, "pixels": 500_000}


def png_stating(width, height):
    """A PNG of one pixel that states another size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 4)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_what_is_no_picture_is_refused_in_a_sentence(client, finder, picture):
    count = len(finder.seen)
    check_refused(send(client, b""), 400, "the file is empty")
    check_refused(send(client, b"Dear Sir or Madam"), 400, "neither JPEG nor PNG")
    check_refused(send(client, encode(draw(), "GIF")), 400, "neither JPEG nor PNG")
    check_refused(send(client, picture[:-500]), 400, "truncated or broken")
    check_refused(send(client, picture[:30]), 400, "truncated or broken")
    check_refused(send(client, encode(draw(), "PNG")[:3000]), 400, "truncated or broken")
    check_refused(send(client, png_stating(600, 600)), 400, "truncated or broken")
    assert len(finder.seen) == count


def test_a_large_picture_is_refused_by_its_header(client, finder):
    count = len(finder.seen)
    check_refused(send(client, png_stating(1001, 500)), 413, "1001 × 500 pixels", "500,000")
    check_refused(send(client, png_stating(60_000, 60_000)), 400, "too large")
    assert len(finder.seen) == count


def test_a_large_body_is_refused(client):
    large = b"\xff\xd8\xff" + bytes(2_000_000)
    check_refused(send(client, large), 413, "larger than the 1.91 MB")
    check_refused(send(client, iter([large[:1_500_000], large[1_500_000:]])), 413, "larger than")
    check_refused(client.post("/predict", files={"image": large}), 413, "larger than")
    sizes = {"Content-Length": "1" + "0" * 15}
    check_refused(send(client, b"x", **sizes), 413, "larger than")


def test_a_request_that_makes_no_sense_is_refused(client, picture):
    check_refused(client.get("/predict"), 405, "GET is not possible at /predict")
    check_refused(client.post("/"), 405, "POST is not possible at /")
    check_refused(client.get("/../setup.py"), 404, "There is nothing at")
    check_refused(client.get("/server.py"), 404, "There is nothing at /server.py")
    check_refused(
        send(client, picture, "?masks=polygons"), 400, "masks=polygons", "rle", "probabilities"
    )
    check_refused(send(client, picture, "?mask=rle"), 400, "no parameter mask")
    check_refused(
        send(client, picture, **{"Content-Type": "text/plain"}), 415, "image/jpeg", "text/plain"
    )
    check_refused(client.post("/predict", data={"image": "a"}), 415, "urlencoded")
    check_refused(client.post("/predict", files={"picture": picture}), 400, "“image”")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    check_refused(send(client, b"--x\r\nnonsense", **form), 400)
    check_refused(send(client, picture, **{"Content-Type": "multipart/form-data"}), 400, "boundary")
    two = [("image", ("a", picture)), ("image", ("b", picture))]
    check_refused(client.post("/predict", files=two), 400, "Too many files")


def test_only_known_hosts_and_this_site(client, picture):
    assert client.get("/", headers={"Host": "localhost:8000"}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example:8000", ""):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 400 and answer.text == "Invalid host header"
    for path in ("/model", "/predict"):
        assert client.post(path, headers={"Host": "evil.example"}).status_code == 400
    check_refused(send(client, picture, **{"Sec-Fetch-Site": "cross-site"}), 403, "other websites")
    assert send(client, picture, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200
    with serve(Finder(), allowed_hosts=["demo.example"]) as named:
        assert named.get("/", headers={"Host": "demo.example"}).status_code == 200
        assert named.get("/").status_code == 400


def test_every_response_is_locked_down(client, picture):
    answers = [client.get(path) for path in ("/", "/page.css", "/page.js", "/icon.svg", "/nothing")]
    answers += [send(client, picture), send(client, b""), client.get("/", headers={"Host": "x"})]
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = answers[0].text
    assert "<script type" in page and "<style" not in page and " style=" not in page
    assert " onclick" not in page and "http://" not in page and "https://" not in page


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_pixels_is_read(client, finder, mode):
    if mode == "I;16":
        image = Image.fromarray(draw().astype(np.uint16)[..., 0] * 256)
    else:
        image = Image.fromarray(draw()).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    assert len(send(client, file.getvalue()).json()["detections"]) == 6
    seen = finder.seen[-1]
    assert seen.shape == (HEIGHT, WIDTH, 3) and seen.dtype == np.uint8
    pebble, sand = seen[110:150, 150:190], seen[:40, :40]
    assert pebble.mean() < sand.mean() - 20


def test_the_first_frame_of_an_animation_counts(client, finder):
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (50, 200)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    assert send(client, file.getvalue()).json()["image"] == {"height": 20, "width": 30}
    assert finder.seen[-1].max() == 50


def test_a_rotated_picture_is_found_upright(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(np.rot90(draw()), exif=exif)
    finder = Finder()
    with serve(finder) as client:
        assert send(client, turned).json()["image"] == {"height": HEIGHT, "width": WIDTH}
    difference = np.abs(finder.seen[0].astype(int) - draw())
    assert difference.mean() < 5
    with serve(Finder(exif="ignore")) as client:
        assert send(client, turned).json()["image"] == {"height": WIDTH, "width": HEIGHT}
        assert client.get("/model").json()["exif"] == "ignore"


class Held(Finder):
    """Waits until it is let go, and counts how many pictures it works on at once."""

    def __init__(self):
        super().__init__()
        self.go, self.most, self.now = threading.Event(), 0, 0

    def __call__(self, pixels):
        self.now += 1
        self.most = max(self.most, self.now)
        self.go.wait(60)
        self.now -= 1
        return super().__call__(pixels)


def test_a_full_queue_says_when_to_come_back(picture):
    held = Held()
    with serve(held) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(_send_until_taken, client, picture) for _ in range(3)]
        answer = _until(lambda: send(client, b""), lambda answer: answer.status_code == 503)
        check_refused(answer, 503, "All 3 places")
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/model").status_code == 200
        time.sleep(0.5)  # in which no second one may begin
        held.go.set()
        assert [each.result().status_code for each in waiting] == [200] * 3
        assert send(client, picture).status_code == 200
    assert held.most == 1


def _send_until_taken(client, picture):
    """Sends a picture again while no place is free: the question for one takes one, too."""
    return _until(lambda: send(client, picture), lambda answer: answer.status_code != 503)


def _until(act, holds):
    for _ in range(500):
        result = act()
        if holds(result):
            return result
        time.sleep(0.02)
    raise AssertionError(result.text)


def test_who_waits_too_long_is_told_and_the_next_ones_are_served(picture):
    held = Held()
    with serve(held, Limits(seconds=0.5, places=2)) as client:
        for _ in range(3):
            check_refused(send(client, picture), 503, "not ready after 0.5 seconds")
        held.go.set()
        later = []
        while not later or later[-1].status_code != 200:
            later.append(send(client, picture))
    # Of the first three, only the one that had begun was worked on.
    assert held.most == 1 and len(held.seen) <= 1 + len(later)


def test_a_slow_upload_is_refused():
    with running(Finder(), Limits(seconds=0.3)) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("POST", "/predict")
        for name, value in (*JPEG.items(), ("Content-Length", "100")):
            connection.putheader(name, value)
        connection.endheaders(b"\xff\xd8\xff")
        answer = connection.getresponse()
        assert answer.status == 408 and b"longer than 0.3 seconds" in answer.read()


def test_a_large_upload_is_answered_while_it_is_sent():
    """Clients read the answer only once they have sent everything, or as much as is taken."""
    with running(Finder(), LIMITS) as port:
        for _ in range(5):
            large = b"\xff\xd8\xff" + bytes(30_000_000)
            answer = httpx.post(f"http://127.0.0.1:{port}/predict", content=large, headers=JPEG)
            check_refused(answer, 413, "larger than")


def test_a_failing_model_is_named_on_stderr_only(picture, capsys):
    class Failing(Finder):
        def __call__(self, pixels):
            raise RuntimeError("out of memory at /home/me")

    with serve(Failing()) as client:
        sentence = check_refused(send(client, picture), 500, "The model failed")
        assert client.get("/").status_code == 200
    assert "/home/me" not in sentence
    said = capsys.readouterr().err
    assert "RuntimeError: out of memory at /home/me" in said and "Traceback" not in said


def test_a_trained_model_answers_like_load(small_model):
    predictor = load(small_model)
    pixels = photograph()
    with serve(predictor) as client:
        model = client.get("/model").json()
        answer = send(client, encode(pixels, "PNG")).json()
    assert model["names"] == ["cat", "dog"] and model["canvases"] == ["64x96", "96x64"]
    expected = predictor(pixels)
    assert len(answer["detections"]) == len(expected) > 0
    for entry, wanted in zip(answer["detections"], expected.to_coco(), strict=True):
        del wanted["image_id"]
        assert wanted == {name: value for name, value in entry.items() if name in wanted}
    assert json.dumps(answer).count('"name"') == len(expected)
