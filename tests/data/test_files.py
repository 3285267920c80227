"""A file written whole: under its name when done, nowhere when not."""

import pytest

from data import files
from data.errors import UserError
from data.files import whole_file


@pytest.mark.parametrize("mode, content", [("w", "naïve\n"), ("wb", b"\x00\xff")])
def test_it_appears_when_it_is_complete(tmp_path, mode, content):
    path = tmp_path / "x.json"
    with whole_file(path, mode) as file:
        file.write(content)
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == (content.encode() if mode == "w" else content)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_upon_an_error_what_was_there_stays(tmp_path, error):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(error), whole_file(str(path)) as file:
        file.write("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "none" / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["local", "ram"])
def folder(request, tmp_path):
    """A folder that is there, of either kind of file system."""
    path = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    files.make_folder(path)
    return path


def test_every_operation_on_either_file_system(folder):
    deep = f"{folder}/a/b"
    files.make_folder(deep)
    files.make_folder(deep)  # a second time is fine
    with files.whole_file(f"{deep}/x.txt") as file:
        file.write("naïve\ntwo\n")
    with files.open_file(f"{deep}/x.txt", "a") as file:
        file.write("three\n")
    with files.open_file(f"{deep}/x.txt") as file:
        assert list(file) == ["naïve\n", "two\n", "three\n"]
    with files.open_file(f"{deep}/x.txt", "rb") as file:
        file.seek(2)
        assert file.read(2) == "ï".encode()
    assert files.size(f"{deep}/x.txt") == 17
    assert files.list_folder(deep) == ["x.txt"]
    assert files.list_folder(f"{folder}/a") == ["b"]
    files.rename(f"{deep}/x.txt", f"{deep}/y.txt")
    assert files.glob(f"{folder}/a/*/*.txt") == [f"{deep}/y.txt"]
    assert files.exists(deep) and files.is_folder(deep) and not files.is_file(deep)
    assert files.is_file(f"{deep}/y.txt") and not files.exists(f"{deep}/x.txt")
    files.remove(f"{deep}/y.txt")
    assert files.list_folder(deep) == []
    files.remove_folder(f"{folder}/a")
    assert not files.exists(f"{folder}/a")


@pytest.mark.parametrize(
    "operation",
    [files.open_file, files.size, files.list_folder, files.remove, files.remove_folder],
)
def test_what_is_not_there_is_an_os_error(folder, operation):
    with pytest.raises(FileNotFoundError) as error:
        operation(f"{folder}/none")
    assert error.value.strerror


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with files.whole_file("~/x") as file:
        file.write("home")
    assert (tmp_path / "x").read_text() == "home"
    assert files.glob("~/x*") == [str(tmp_path / "x")]
    assert files.expand("gs://bucket/~") == "gs://bucket/~"


def test_a_folder_that_can_be_written_is_made_and_left_empty(folder):
    files.require_writable(f"{folder}/a/b", "model_dir")
    files.require_writable(f"{folder}/a/b", "model_dir")
    assert files.list_folder(f"{folder}/a/b") == []


@pytest.mark.parametrize("below", ["file", "file/x"])
def test_a_folder_that_cannot_be_made_is_named_with_its_flag(tmp_path, below):
    (tmp_path / "file").touch()
    path = tmp_path / below
    with pytest.raises(UserError, match=f"^--model_dir={path} cannot be written to .*; name a"):
        files.require_writable(path, "model_dir")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_takes_no_file_is_named_with_its_flag():
    with pytest.raises(UserError, match=r"--output_dir=/proc/self cannot be written to \(.+\)"):
        files.require_writable("/proc/self", "output_dir")
