"""From submission to deletion with a fake gcloud: refusals, preemption, lost connections."""

import subprocess

import pytest

from tools.cloud import tpu_run
from tools.submit_tpu import main

DELETE = "gcloud compute tpus queued-resources delete photos --project=P --zone=us-west4-a"
STEPS = [f"step {step}" for step in range(1, 7)]
NASTY = 'gs://b/it\'s $(touch hacked) "x" `y` & z;'


def submit(repository, *flags, zone="us-west4-a"):
    return main(
        [
            "submit_tpu.py",
            f"--flagfile={repository}/configs/r18.flags",
            "--project=P",
            f"--zone={zone}",
            "--name=photos",
            "--model_dir=gs://b/photos",
            "--train_file_pattern=gs://b/train-*",
            *flags,
        ]
    )


def printed_steps(output):
    return [line for line in output.splitlines() if line.startswith("step ")]


@pytest.mark.parametrize("flags", [(), ("--noqueued", "--internal_ips")])
def test_a_run_from_submission_to_deletion(cloud, repository, capfd, flags):
    cloud.plan(queue=["WAITING_FOR_RESOURCES"])
    assert submit(repository, f"--init_checkpoint={NASTY}", "--spot", *flags) == 0
    output = capfd.readouterr().out
    assert printed_steps(output) == STEPS
    assert ("WAITING_FOR_RESOURCES" in output) == (not flags)
    assert cloud.state["tpu"] is None
    assert cloud.trainer_arguments == [
        *("-m", "trainer.main", "--flagfile=job.flags", f"--init_checkpoint={NASTY}"),
        *("--model_dir=gs://b/photos", "--train_file_pattern=gs://b/train-*"),
        *("--distribution=tpu", "--tpu=local"),
    ]
    assert not list(cloud.home.rglob("hacked"))
    environment = (cloud.home / "environment").read_text()
    assert "TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so\n" in environment


def test_the_flagfile_arrives_as_one_file(cloud, repository):
    assert submit(repository) == 0
    lines = (cloud.home / "bucket/b/photos/submit/photos/job.flags").read_text().splitlines()
    assert "--backbone=resnet18" in lines and "--train_steps=90000" in lines


def test_several_hosts_train_from_the_first(cloud, repository):
    assert submit(repository, "--accelerator_type=v5litepod-16") == 0
    assert cloud.trainer_arguments[-2:] == ["--distribution=tpu", "--tpu=photos"]
    assert "TPU_LOAD_LIBRARY=0\n" in (cloud.home / "environment").read_text()
    assert cloud.count("--runtime-version=tpu-vm-tf-2.20.0-pod-pjrt") == 1


def test_a_refused_quota_is_one_sentence(cloud, repository, capfd):
    cloud.plan(create=["RESOURCE_EXHAUSTED: Quota limit TPUV5sLitepod has been exceeded"])
    assert submit(repository) == 1
    error = capfd.readouterr().err
    assert "error: v5litepod-8 was refused: ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota" in error
    assert "Traceback" not in error and "Warning" not in error
    assert not cloud.count("ssh") and cloud.count("delete") == 1


def test_a_request_that_expires_is_deleted(cloud, repository, capfd):
    cloud.plan(queue=["FAILED"])
    assert submit(repository, "--valid_until=6h") == 1
    assert "was refused: no TPU until the time limit" in capfd.readouterr().err
    assert cloud.state["tpu"] is None and cloud.count("--valid-until-duration=6h") == 1


def test_a_preempted_training_continues_on_another_tpu(cloud, repository, capfd):
    cloud.plan(follow=["preempt"])
    assert submit(repository, "--spot") == 0
    output = capfd.readouterr().out
    assert printed_steps(output) == STEPS and "taken away" in output
    assert cloud.count("create") == cloud.count("delete") == 2
    assert cloud.starts == 2 and cloud.state["tpu"] is None


def test_a_lost_connection_does_not_disturb_the_training(cloud, repository, capfd):
    cloud.plan(follow=["refuse", "drop"])
    assert submit(repository) == 0
    captured = capfd.readouterr()
    assert printed_steps(captured.out) == STEPS and "connecting again" in captured.err
    assert cloud.count("bash follow.sh") == 3 and cloud.count("create") == cloud.starts == 1


def test_a_vm_without_ssh_is_deleted(cloud, repository, capfd, monkeypatch):
    monkeypatch.setattr(tpu_run, "ATTEMPTS", 3)
    cloud.plan(install=["refuse"], follow=["refuse"] * 3)
    assert submit(repository) == 1
    assert "photos cannot be reached by ssh" in capfd.readouterr().err
    assert cloud.state["tpu"] is None


def test_a_failed_training_is_deleted(cloud, repository, capfd):
    (cloud.home / "trainer_status").write_text("137")
    assert submit(repository) == 1
    assert "The training ended with exit status 137." in capfd.readouterr().out
    assert cloud.state["tpu"] is None


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_is_deleted(cloud, repository, capfd, signal):
    cloud.plan(follow=[signal])
    assert submit(repository) == 1
    assert "Interrupted" in capfd.readouterr().err
    assert cloud.state["tpu"] is None


def test_a_failed_deletion_names_the_command(cloud, repository, capfd):
    cloud.plan(delete=["INTERNAL: try later"] * 3)
    assert submit(repository) == 1
    error = capfd.readouterr().err
    assert "Warning: the TPU photos may still be running and cost money" in error
    assert f"{DELETE} --quiet --force\n" in error
    assert cloud.state["tpu"] == "READY"


def test_a_deletion_is_tried_again(cloud, repository, capfd):
    cloud.plan(delete=["INTERNAL: try later"])
    assert submit(repository) == 0
    assert cloud.state["tpu"] is None and "Warning" not in capfd.readouterr().err


@pytest.mark.parametrize("late", [False, True])
def test_the_tpu_of_another_run_is_not_touched(cloud, repository, capfd, late):
    if late:  # Another program creates it after this one has looked.
        cloud.plan(create=["ALREADY_EXISTS: photos"])
    else:
        (cloud.home / "state.json").write_text('{"tpu": "READY", "queue": "ACTIVE"}')
    assert submit(repository) == 1
    assert "error: photos exists already in us-west4-a; choose another" in capfd.readouterr().err
    assert not cloud.count("delete")


def test_nothing_is_created_without_access_to_the_bucket(cloud, repository, capfd):
    cloud.plan(upload=["no"])
    assert submit(repository) == 1
    assert "error: This step failed, for the reason above: Copy the project." in (
        capfd.readouterr().err
    )
    assert not cloud.count("create")


def test_a_tpu_that_nobody_deletes_deletes_itself(cloud, repository):
    assert submit(repository) == 0
    (cloud.home / "impatient").touch()
    (cloud.home / "state.json").write_text('{"tpu": "READY", "queue": "ACTIVE"}')
    folder = cloud.home / "vm" / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (cloud.home / "bucket/b/photos/submit/photos").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for command in ("bash install.sh", "setsid --wait bash train.sh"):
        environment = {"PATH": str(cloud.programs), "HOME": str(cloud.home / "vm")}
        subprocess.run(["bash", "-c", command], cwd=folder, env=environment)
    assert cloud.state["tpu"] is None


def test_a_missing_gcloud_is_one_sentence(cloud, repository, capfd):
    (cloud.programs / "gcloud").unlink()
    assert submit(repository) == 1
    assert "error: gcloud is not installed, or its folder is not in PATH" in capfd.readouterr().err


def test_a_dry_run_can_be_pasted_into_a_shell(cloud, repository, capfd):
    assert submit(repository, f"--init_checkpoint={NASTY}", "--dry_run") == 0
    captured = capfd.readouterr()
    assert "Nothing was created" in captured.err and not cloud.calls
    done = subprocess.run(["bash", "-e", "-c", captured.out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert printed_steps(done.stdout) == STEPS
    assert f"--init_checkpoint={NASTY}" in cloud.trainer_arguments
    assert cloud.count("create") == 1 and cloud.state["tpu"] is None
