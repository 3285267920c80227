"""The peak memory of a process."""

from types import SimpleNamespace

from trainer.peak_memory import read_peak_memory


def test_it_is_read_from_what_linux_says(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t9000000 kB\nVmHWM:\t 2000000 kB\nVmRSS:\t 1 kB\n")
    assert read_peak_memory(str(status)) == 2.048
    status.write_text("Name:\tpython\n")
    assert read_peak_memory(str(status)) is None
    assert read_peak_memory(str(tmp_path / "absent")) is None


def test_of_several_gpus_it_is_the_fullest(monkeypatch):
    peaks = {"GPU:0": 3e9, "GPU:1": 5e9}
    gpus = [SimpleNamespace(name=f"/device:{name}") for name in peaks]
    monkeypatch.setattr("tensorflow.config.list_logical_devices", lambda kind: gpus)
    monkeypatch.setattr(
        "tensorflow.config.experimental.get_memory_info", lambda name: {"peak": peaks[name]}
    )
    assert read_peak_memory() == 5.0
