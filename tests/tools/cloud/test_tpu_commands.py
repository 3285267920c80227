"""Commands against a recorded table of gcloud's flags, and the request against Google's types."""

import json
import pathlib
import re
import shlex
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from jobs import all_tpu_jobs, tpu_job, vertex_job  # noqa: E402

from tools.cloud import tpu_commands, tpu_run, vertex  # noqa: E402
from tools.cloud.steps import Step, format_step  # noqa: E402

TABLE = json.loads(
    (pathlib.Path(__file__).parents[2] / "fixtures" / "gcloud_flags.json").read_text()
)


@pytest.fixture(scope="module")
def tpu_types():
    reason = "needs google-cloud-tpu, the extra `dev`"
    return pytest.importorskip("google.cloud.tpu_v2", reason=reason).types


def all_steps():
    steps = [step for job in all_tpu_jobs() for step in tpu_commands.list_steps(job)]
    steps += [tpu_commands.describe_vm(tpu_job())]
    for job in (vertex_job(), vertex_job(spot=True)):
        steps += vertex.list_steps(job) + [vertex.describe(job, "7"), vertex.cancel(job, "7")]
    return steps


def test_gcloud_has_every_flag():
    seen = set()
    for step in all_steps():
        program, *arguments = step.command
        if program != "gcloud":
            assert program == "tee"
            continue
        names = [name for name in TABLE if " ".join(arguments).startswith(f"{name} ")]
        assert len(names) == 1, arguments
        flags = {part.partition("=")[0] for part in arguments if part.startswith("--")}
        assert not flags - {*TABLE[names[0]], *TABLE["all"]}, step
        seen.add(names[0])
    assert seen == TABLE.keys() - {"recorded", "source", "all"}


def test_every_command_names_project_and_place_and_asks_nothing():
    for step in all_steps():
        if step.command[0] == "gcloud":
            text = shlex.join(step.command)
            assert "--project=P" in text and "--quiet" in text
            assert text.startswith("gcloud storage") or re.search("--(zone|region)=us-west4", text)


def test_the_request_has_googles_types(tpu_types):
    command = tpu_commands.create(tpu_job(spot=True, network="n", valid_until="6h")).command
    flags = dict(part.lstrip("-").split("=") for part in command if "=" in part)
    node = tpu_types.Node(
        accelerator_type=flags["accelerator-type"],
        runtime_version=flags["runtime-version"],
        network_config={"network": flags["network"]},
    )
    place = f"projects/{flags['project']}/locations/{flags['zone']}"
    spec = {"parent": place, "node_id": flags["node-id"], "node": node}
    request = tpu_types.QueuedResource(tpu={"node_spec": [spec]}, spot={})
    assert "spot" in request and request.tpu.node_spec[0].node.accelerator_type == "v5litepod-8"


def test_states_have_googles_names(tpu_types):
    queue = {state.name for state in tpu_types.QueuedResourceState.State}
    assert queue >= {*tpu_run.REFUSED, "ACTIVE"}
    assert {state.name for state in tpu_types.Node.State} >= set(tpu_run.TAKEN_AWAY)


@pytest.mark.parametrize(
    "value", ["a b", "it's", '"x"', "$(touch y)", "`z`", "a;b", "*", "\\", "é"]
)
def test_printed_commands_keep_every_character(value):
    step = Step("Title", ("gcloud", f"--command={value}", value, "--switch"))
    title, command = format_step(step).split("\n", 1)
    assert title == "# Title"
    assert tuple(shlex.split(command)) == step.command


def test_secrets_are_not_printed():
    job = tpu_job(
        flagfile=("--api_key=one",), arguments=("--hub_token=two words", "--keep_checkpoints=3")
    )
    steps = tpu_commands.list_steps(job.without_secrets())
    printed = "".join(format_step(step) for step in steps)
    assert (
        "--api_key=***" in printed and "--hub_token=" in printed and "keep_checkpoints=3" in printed
    )
    assert "one" not in printed.split() and "two words" not in printed
