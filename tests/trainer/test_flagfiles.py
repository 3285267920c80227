"""Flagfiles are read as a shell would read them, and what is wrong in them is named by its line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.flagfiles import Argument, FlagfileError, expand_flagfiles, quote, read_flagfile
from trainer.flags import parse_flags


def read_line(folder, line: str) -> str:
    path = folder / "x.flags"
    path.write_text(line + "\n", encoding="utf-8")
    arguments = read_flagfile(str(path))
    assert all(argument.place == f"{path}:1" for argument in arguments)
    return "".join(argument.text for argument in arguments)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("--a=b", "--a=b"),
        ("  --a=b  ", "--a=b"),
        ("--a='records/train-*'", "--a=records/train-*"),
        ('--a="runs/x"', "--a=runs/x"),
        ("'--a=b c'", "--a=b c"),
        ("--a='p-*','q-*'", "--a=p-*,q-*"),
        (r'--a="say \"no\" \ yes"', r'--a=say "no" \ yes'),
        ("--a=/tmp/x # my folder", "--a=/tmp/x"),
        ("--a='x # y' # z", "--a=x # y"),
        ("--a=run#3", "--a=run#3"),
        ("--a=Anna's run", "--a=Anna's run"),
        ("--a=64x64, 64x96", "--a=64x64, 64x96"),
        ("--a=b \\", "--a=b"),
        ("# --a=b", ""),
        ("// --a=b", ""),
        ("", ""),
    ],
)
def test_a_line_is_read_as_a_shell_would(tmp_path, line, read):
    assert read_line(tmp_path, line) == read


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--a='x", "a quote is not closed"),
        ("--a=1 --b=2", "one flag per line"),
        ("train_steps=5", "'train_steps=5' is not a flag"),
        ("--flagfile=none.flags", "--flagfile=none.flags cannot be read"),
        ("--flagfile=x.flags", "includes itself"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, words):
    path = tmp_path / "x.flags"
    with pytest.raises(FlagfileError) as refusal:
        read_line(tmp_path, line)
    assert str(refusal.value).startswith(f"{path}:1: ")
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "line", ["--train_steps=many", "--train_steps=0", "--train_step=5", "--train_steps"]
)
def test_a_flag_that_cannot_be_used_is_named_by_its_line(tmp_path, capsys, line):
    path = tmp_path / "x.flags"
    path.write_text(f"# steps\n{line}\n")
    with pytest.raises(SystemExit) as leaving:
        parse_flags(["prog", f"--flagfile={path}"])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path}:2: ")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])))
def test_a_quoted_value_comes_back(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("flags")
    assert read_line(folder, f"--model_dir={quote(value)}") == f"--model_dir={value}"


def test_includes_stand_beside_the_file_or_in_the_current_folder(tmp_path, monkeypatch):
    recipes, here = tmp_path / "recipes", tmp_path / "here"
    recipes.mkdir()
    here.mkdir()
    (recipes / "base.flags").write_text("--a=recipe\n")
    (here / "base.flags").write_text("--a=here\n")
    (here / "more.flags").write_text("--b=here\n")
    (recipes / "own.flags").write_text("--flagfile=base.flags\n--flagfile=more.flags\n--c=own\n")
    monkeypatch.chdir(here)
    found = expand_flagfiles(["--d=1", f"--flagfile={recipes}/own.flags"])
    assert found == [
        Argument("--a=recipe", f"{recipes}/base.flags:1"),
        Argument("--b=here", "more.flags:1"),
        Argument("--c=own", f"{recipes}/own.flags:3"),
        Argument("--d=1", ""),
    ]


def test_shipped_recipes_can_be_used_from_anywhere(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = parse_flags(["prog", f"--flagfile={repository}/configs/quickstart.flags"])
    assert (params.model.backbone, params.data.canvases) == ("resnet18", ("192x192",))


def test_configs_that_are_not_in_the_current_folder_are_the_packages_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = expand_flagfiles(["--flagfile=configs/r18.flags"])
    assert Argument("--backbone=resnet18", own[-1].place) in own
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "r18.flags").write_text("--flagfile=configs/base.flags\n--seed=3")
    ours = expand_flagfiles(["--flagfile=configs/r18.flags"])
    assert ours[-1] == Argument("--seed=3", "configs/r18.flags:2") and len(ours) == len(own)
    with pytest.raises(FlagfileError, match="--flagfile=configs/none.flags cannot be read"):
        expand_flagfiles(["--flagfile=configs/none.flags"])
