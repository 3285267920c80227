"""A file written whole: under its name when done, nowhere when not."""

import pytest

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
