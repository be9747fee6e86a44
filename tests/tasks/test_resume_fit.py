"""A fit that is killed and resumed ends with the weights of one that never was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import torch

pytestmark = pytest.mark.slow
EPOCHS, STEPS = 4, 6
"""Epochs of a run, and steps of an epoch."""


def start(file: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ctgrounding", "fit", "--config", str(file), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(file: Path, *words: str) -> None:
    process = start(file, *words)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said[-3000:]


def interrupt(file: Path, sign: signal.Signals, when) -> tuple[int, str]:
    """Send a signal once ``when()`` holds, SIGKILL to the workers too; the exit code and what was said."""
    process = start(file)
    limit = time.monotonic() + 400
    while not when():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < limit
        time.sleep(0.02)
    if sign == signal.SIGKILL:
        os.killpg(process.pid, sign)
    else:
        process.send_signal(sign)
    said, _ = process.communicate(timeout=400)
    return process.returncode, said


def state(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)


def write(folder: Path) -> Path:
    trainer = {
        "max_epochs": EPOCHS,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {
                "dirpath": str(folder / "checkpoints"), "save_last": True, "save_top_k": 0,
                "enable_version_counter": False, "every_n_train_steps": 4}}
        ],
    }  # fmt: skip
    return tiny_run.write_run(folder, scans=40, trainer=trainer, data={"num_workers": 2})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(write(folder))
    return state(folder)


def same(found: dict, wanted: dict) -> None:
    assert found["global_step"] == wanted["global_step"] == EPOCHS * STEPS
    assert found["state_dict"].keys() == wanted["state_dict"].keys()
    assert all(torch.equal(tensor, found["state_dict"][name]) for name, tensor in wanted["state_dict"].items())
    moments, others = (each["optimizer_states"][0]["state"] for each in (found, wanted))
    assert all(torch.equal(moments[key][name], others[key][name]) for key in others for name in others[key])


@pytest.mark.parametrize("workers", [2, 0, 3])
def test_killed_in_mid_epoch(tmp_path, unbroken, workers):
    file = write(tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert interrupt(file, signal.SIGKILL, lambda: last.exists() and state_step(last) >= 8)[0] == -signal.SIGKILL
    killed_at = state_step(last)
    assert killed_at < EPOCHS * STEPS
    finish(file, "--ckpt_path", str(last), "--data.num_workers", str(workers))
    same(state(tmp_path), unbroken)
    assert len(list((tmp_path / "logs").iterdir())) == 2  # the first part's log is still there


def state_step(file: Path) -> int:
    return int(torch.load(file, weights_only=False)["global_step"])


def test_sigterm_saves_first(tmp_path, unbroken):
    folder = tmp_path
    file = tiny_run.write_run(folder, scans=40, trainer={"max_epochs": EPOCHS}, data={"num_workers": 2})
    logs = folder / "logs" / "version_0" / "metrics.csv"
    code, said = interrupt(file, signal.SIGTERM, logs.exists)
    assert "Traceback" not in said
    assert code in (0, 143), said
    last = folder / "checkpoints" / "last.ckpt"
    assert last.is_file()
    finish(file, "--ckpt_path", str(last))
    same(state(folder), unbroken)
