"""What is installed on the machine, against setup.py."""

import ast

from tools.cloud.job import GPU_REQUIREMENTS, TPU_REQUIREMENTS


def test_requirements_are_those_of_setup(repository):
    tree = ast.parse((repository / "setup.py").read_text(encoding="utf-8"))
    tables = {
        node.arg: ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in ("install_requires", "extras_require")
    }
    core = [each for each in tables["install_requires"] if not each.startswith("tensorflow>")]
    assert TPU_REQUIREMENTS[:-1] == tuple(core) == GPU_REQUIREMENTS[: len(core)]
    gpu = [each.replace(",gcs-filesystem]", "]") for each in GPU_REQUIREMENTS[len(core) :]]
    assert gpu == tables["extras_require"]["gpu"]
