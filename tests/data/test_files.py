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
    with files.whole_file(f"{folder}/a/z.txt") as file:
        file.write("four")
    assert files.total_size(f"{folder}/a") == 21 and files.total_size(f"{deep}/x.txt") == 17
    files.remove(f"{folder}/a/z.txt")
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
    message = rf"^--model_dir={path} cannot be written to \(.*\); free disk space, or choose"
    with pytest.raises(UserError, match=message):
        files.require_writable(path, "model_dir")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_takes_no_file_is_named_with_its_flag():
    with pytest.raises(UserError, match=r"--output_dir=/proc/self cannot be written to \(.+\)"):
        files.require_writable("/proc/self", "output_dir")


def _write(path):
    with files.open_file(path, "w") as file:
        file.write("x")


def test_patterns_match_names_but_not_slashes_or_dots(folder):
    for name in ("a/x-1", "a/x-2", "a/.x", "a/sub/x-3", "b/x-1"):
        files.make_folder(f"{folder}/{name.rpartition('/')[0]}")
        _write(f"{folder}/{name}")

    def matched(pattern):
        return [path.removeprefix(f"{folder}/") for path in files.glob(f"{folder}/{pattern}")]

    assert matched("a/x-*") == ["a/x-1", "a/x-2"]
    assert matched("*/x-[13]") == ["a/x-1", "b/x-1"]
    assert matched("a/*") == ["a/sub", "a/x-1", "a/x-2"]
    assert matched("a/.*") == ["a/.x"]
    assert matched("a/x-1/*") == matched("none/*") == matched("a/x-?1") == []
    assert matched("a/su") == matched("a/x-") == []
    assert matched("a/sub") == ["a/sub"] and matched("a//x-1") == ["a/x-1"]


def test_a_name_that_is_there_is_no_pattern(folder):
    for name in ("run[1],x/r*", "run[1],x/rx", "run1,x/r*"):
        files.make_folder(f"{folder}/{name.rpartition('/')[0]}")
        _write(f"{folder}/{name}")
    assert files.glob(f"{folder}/run[1],x/r*") == [f"{folder}/run[1],x/r*"]
    assert files.glob(f"{folder}/run[1],x/r?") == [
        f"{folder}/run[1],x/r*",
        f"{folder}/run[1],x/rx",
    ]


def test_patterns_start_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x-1").touch()
    assert files.glob("x-*") == ["x-1"] and files.glob("./x-*") == ["./x-1"]
    assert files.glob(f"file://{tmp_path}/x-*") == [f"file://{tmp_path}/x-1"]
    assert files.glob("") == []


def test_folders_that_were_made_can_be_taken_back(folder):
    made = files.missing_folders(f"{folder}/a/b/c")
    assert made == [f"{folder}/a/b/c", f"{folder}/a/b", f"{folder}/a"]
    assert files.missing_folders(folder) == []
    files.make_folder(f"{folder}/a/b/c")
    _write(f"{folder}/a/x")
    files.remove_empty_folders(made)
    assert files.list_folder(f"{folder}/a") == ["x"]


def test_a_file_that_was_replaced_has_another_state(folder):
    _write(f"{folder}/x")
    before = files.state(f"{folder}/x")
    assert files.has_scheme(folder) or files.state(f"{folder}/x") == before
    _write(f"{folder}/y")
    files.rename(f"{folder}/y", f"{folder}/x")
    assert files.state(f"{folder}/x") != before


@pytest.mark.parametrize("operation", [files.exists, files.size, files.make_folder])
def test_a_scheme_that_nobody_knows_is_an_os_error(operation):
    with pytest.raises(OSError, match="scheme 'nobody' not implemented"):
        operation("nobody://x/y")
