"""Which files are meant, and what is read of photographs and videos."""

import builtins

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from tools.pictures import find_pictures, read_frames, read_pictures

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]] * 4, np.uint8)


@pytest.fixture
def video(tmp_path):
    """Twelve frames of 32 x 48 pixels that are red, green or blue in turn."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV, the extra `video`")
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 32))
    for colour in COLOURS:
        writer.write(np.tile(colour[::-1], (32, 48, 1)))
    writer.release()
    return path


def test_names_folders_and_patterns_are_files_each_once_in_order(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a / "x.jpg", a / "y.png", a / "notes.txt", a / "z.MOV", b / "x.jpg"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = find_pictures([str(b / "x.jpg"), str(a), str(tmp_path / "*" / "x.*")])
    assert found == [str(path) for path in (b / "x.jpg", a / "x.jpg", a / "y.png", a / "z.MOV")]
    with pytest.raises(UserError, match=r"--input=.*none\*: no JPEG, PNG or v"):
        find_pictures([str(a), str(tmp_path / "none*")])


def test_frames_are_rgb_in_their_order(video):
    frames = list(read_frames(str(video)))
    assert len(frames) == 12 and frames[0].shape == (32, 48, 3) and frames[0].dtype == np.uint8
    means = [frame.mean((0, 1)) for frame in frames]
    np.testing.assert_allclose(means, COLOURS, atol=12)


def test_files_that_cannot_be_read_are_named_and_left_out(video, tmp_path):
    whole = video.read_bytes()
    (tmp_path / "none.avi").write_bytes(b"nothing")
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 3 // 4])
    paths = [str(tmp_path / name) for name in ("none.avi", "gone.mp4", "cut.avi", "walk.avi")]
    refused = []
    pictures = list(read_pictures(paths, None, refused.append))
    said = list(map(str, refused))
    assert len(said) == 3
    assert said[0] == f"{paths[0]}: cannot be read as a video."
    assert said[1].startswith(f"{paths[1]}: ")
    assert "frames can be read." in said[2]
    cut = sum(picture.path == paths[2] for picture in pictures)
    assert 0 < cut < 12
    assert [picture.frame for picture in pictures] == [*range(cut), *range(12)]


def test_photographs_need_no_opencv_and_videos_say_what_to_install(tmp_path, monkeypatch):
    own = builtins.__import__

    def without_opencv(name, *args, **kwargs):
        if name == "cv2":
            raise ModuleNotFoundError("No module named 'cv2'")
        return own(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_opencv)
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.mp4")]
    Image.new("RGB", (4, 2)).save(paths[0])
    refused = []
    (picture,) = read_pictures(paths, lambda path: np.asarray(Image.open(path)), refused.append)
    assert picture.path == paths[0] and picture.frame is None and picture.pixels.shape == (2, 4, 3)
    assert list(map(str, refused)) == [
        f"{paths[1]}: OpenCV is needed to read videos; pip install opencv-contrib-python-headless."
    ]
