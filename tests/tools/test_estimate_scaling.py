"""The page of estimates, the counted work beneath it, and the command line."""

import json
import pathlib
import shutil
import sys

import pytest

from data.manifest import Manifest, write_manifest
from tools.estimate_scaling import main

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "trainer"))
from small_model import CANVAS, DATA, MODEL, write_records  # noqa: E402


def run(*arguments):
    return main(["estimate_scaling.py", *map(str, arguments)])


@pytest.fixture
def recorded(repository):
    folder = repository / "docs" / "scaling"
    return f"--work={folder / 'work.json'}", f"--inputs={folder / 'inputs.json'}"


@pytest.fixture(scope="module")
def work(repository):
    return json.loads((repository / "docs" / "scaling" / "work.json").read_text())


def flops(parts, *names):
    return sum(work[0] for name, work in parts.items() if not names or name in names)


def test_the_page_has_the_tables_of_its_inputs(repository, recorded, tmp_path, capsys):
    page = tmp_path / "SCALING.md"
    shutil.copy(repository / "docs" / "SCALING.md", page)
    assert run(*recorded, f"--page={page}") == 0
    assert page.read_text() == (repository / "docs" / "SCALING.md").read_text()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 7 and all(table in page.read_text() for table in tables)


def test_a_price_changes_the_money(recorded, capsys):
    assert run(*recorded, "--set=v5e.usd_per_hour=2.4") == 0
    changed = capsys.readouterr().out
    assert run(*recorded) == 0
    lines = zip(changed.splitlines(), capsys.readouterr().out.splitlines(), strict=True)
    different = [a.split(" | ")[0] for a, b in lines if a != b]
    assert different == ["| v5litepod-8", "| v5litepod-32", "| `v5e.usd_per_hour`"]


def test_resnet_has_the_arithmetic_that_is_published(work):
    # 4.089e9 multiply-adds at 224², of which 2048·1000 are in the layer of classes.
    ours = flops(work["predict"]["forward"], "backbone") / 2 / (832 * 1344) * 224**2
    assert ours == pytest.approx(4.089e9 - 2048 * 1000, rel=1e-3)


def test_the_rpn_head_has_the_arithmetic_of_its_cells(work):
    cells = sum(-(-832 // stride) * -(-1344 // stride) for stride in (4, 8, 16, 32, 64))
    expected = 2 * cells * 256 * (9 * 256 + 3 * (1 + 4))
    assert flops(work["predict"]["forward"], "rpn_head") == expected
    assert flops(work["train"]["forward"], "rpn_head") == expected
    assert flops(work["train"]["backward"], "rpn_head") == 2 * expected


def test_xla_counts_nearly_the_same(work):
    """Its counts, of docs/PERFORMANCE.md, leave out the zeros of padding."""
    assert 0.97 < 613e9 / flops(work["predict"]["forward"]) < 1
    training = flops(work["train"]["forward"]) + flops(work["train"]["backward"])
    assert 0.95 < 1846e9 / training < 1


def test_a_small_network_is_counted(tmp_path):
    shard = write_records(tmp_path / "train-00000-of-00001.tfrecord")
    size = shard.stat().st_size
    facts = {"name": shard.name, "bytes": size, "sha256": "", "num_images": 4}
    manifest = Manifest(4, 4, 0, 1, True, (), {}, (facts,))
    write_manifest(str(tmp_path / "train.manifest.json"), manifest)
    settings = {
        name: getattr(config, name)
        for config, names in (
            (DATA, ("short_side", "long_side", "train_short_side_min")),
            (MODEL, ("backbone", "backbone_width", "fpn_channels", "head_dim", "mask_size")),
        )
        for name in names
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    out = tmp_path / "work.json"
    flags += ["--anchor_sizes=8,16,32,64,128", f"--canvases={CANVAS},96x64", "--num_classes=3"]
    flags += ["--train_batch_size=2", f"--train_file_pattern={tmp_path}/train-*.tfrecord"]
    assert run("--count", f"--work={out}", *flags) == 0
    counted = json.loads(out.read_text())
    assert counted["canvas"] == CANVAS and counted["batch_size"] == 2
    assert counted["bytes"]["record"] == size / 4 and counted["bytes"]["image"] == 64 * 96 * 3
    cells = 16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    expected = 2 * cells * 16 * (9 * 16 + 3 * (1 + 4))
    assert flops(counted["predict"]["forward"], "rpn_head") == expected
    assert flops(counted["train"]["backward"], "rpn_head") == 2 * expected
    assert counted["weights"]["rpn_head"] == 9 * 16 * 16 + 16 + 17 * 3 * (1 + 4)


def test_what_is_missing_is_one_sentence(recorded, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(recorded[0])
    assert "--inputs is not set" in capsys.readouterr().err
    (tmp_path / "work.json").write_text("{}")
    assert run(f"--work={tmp_path / 'work.json'}", recorded[1]) == 1
    assert "missing from --work or --inputs" in capsys.readouterr().err
    (tmp_path / "work.json").write_text('{"predict": 1, "train": 2, "weights": 3}')
    assert run(f"--work={tmp_path / 'work.json'}", recorded[1]) == 1
    assert "not a file of --count" in capsys.readouterr().err
    (tmp_path / "page.md").write_text("no places")
    assert run(*recorded, f"--page={tmp_path / 'page.md'}") == 1
    assert "<!-- work -->" in capsys.readouterr().err
