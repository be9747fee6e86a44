"""Real processes say to the last bit what one says of the same embeddings; each scan and sentence is encoded once."""

import json

import pytest
import rank_work
import tiny_run
import torch

from ctgrounding.evaluation import ReportRetrieval, Resampling, ZeroShotFindings
from ctgrounding.testing.ranks import RankPool
from ctgrounding.trainer_cli import run

QUESTIONS = "cyst: {positive: ['A cyst.'], negative: ['No cyst.'], organs: [spleen, kidney_right]}\n" + (
    "stone: {positive: ['A stone.'], negative: ['No stone.'], organs: [kidney_right]}\n"
    "ascites: {positive: ['Ascites.'], negative: ['No ascites.']}\n"
)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [2, 4])
def test_bit_equal_on_any_number_of_processes(tmp_path, ranks):
    path = tmp_path / "questions.yaml"
    path.write_text(QUESTIONS)
    alone = rank_work.answers(str(path), size=8, order=1)
    assert rank_work.SCANS % ranks
    assert rank_work.answers(str(path), size=5, order=-1) == alone
    with RankPool(ranks) as pool:
        for found in pool.run(rank_work.answers, str(path), 4, -1, timeout_s=400.0):
            assert found == alone


class Counter:
    """Counts what an encoder is asked, scan by scan and text by text."""

    def __init__(self, encoder):
        self.scans, self.texts = 0, []
        self._volumes, self._tokens = encoder.encode_volumes, encoder.encode_tokens
        encoder.encode_volumes, encoder.encode_tokens = self.volumes, self.tokens

    def volumes(self, volume, *others):
        self.scans += len(volume)
        return self._volumes(volume, *others)

    def tokens(self, tokens, mask):
        self.texts += [tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]
        return self._tokens(tokens, mask)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    file = tiny_run.write_run(folder, scans=15, trainer={"max_epochs": 1})
    run(["fit", "--config", str(file)])
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_vision_pass_a_scan_and_one_text_pass_a_sentence(trained, monkeypatch):
    from lightning.pytorch import Trainer

    from ctgrounding.tasks.pretrain import Pretrain

    counters = []
    setup = Pretrain.setup

    def counting(task, stage):
        setup(task, stage)
        task.evaluation.evaluators.update(
            {
                "retrieval": ReportRetrieval(resampling=Resampling(resamples=5)),
                "findings": ZeroShotFindings(
                    str(trained / "questions.yaml"),
                    organ_image_head="organ",
                    organ_text_head="organ",
                    resampling=Resampling(resamples=5),
                ),
            }
        )
        counters.append((Counter(task.encoder), task))

    monkeypatch.setattr(Pretrain, "setup", counting)
    cli = run(["test", "--config", str(trained / "run.yaml"), "--model.untrained_baseline", "false"])
    assert isinstance(cli.trainer, Trainer)
    (counter, task), = counters  # fmt: skip
    data = cli.datamodule
    held_out = len(data.index.of_split("test")) + len(data.index.of_split("val"))
    assert counter.scans == held_out == task.evaluation.scans_encoded
    assert len(counter.texts) == len(set(counter.texts)) == task.evaluation.texts_encoded
    numbers = json.loads((trained / "metrics.json").read_text())
    assert numbers["report_to_scan/pool"] > 0


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_devices_from_scans_give_the_embeddings_of_one(trained, tmp_path):
    """From scans, not from the same embeddings: within 1e-5, and with no tie the same ranks."""
    import os
    import subprocess
    import sys

    from ctgrounding.evaluation.saved import SavedEmbeddings

    found = {}
    for devices in (1, 2):
        content = (trained / "run.yaml").read_text()
        folder = tmp_path / str(devices)
        folder.mkdir()
        (folder / "run.yaml").write_text(content.replace(str(trained), str(folder)))
        (folder / "shards").symlink_to(trained / "shards")
        (folder / "questions.yaml").write_text((trained / "questions.yaml").read_text())
        words = ["--ckpt_path", str(trained / "checkpoints" / "last.ckpt"), "--trainer.devices", str(devices)]
        words += ["--data.evaluation_batch_size", "3", "--data.predict_split", "all"]
        words += ["--model.evaluators", json.dumps({"r": {"class_path": "ctgrounding.evaluation.ReportRetrieval"}})]
        command = [sys.executable, "-m", "ctgrounding", "predict", "--config", str(folder / "run.yaml"), *words]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr[-2000:]
        saved = SavedEmbeddings(folder / "embeddings_all")
        evaluator = ReportRetrieval(k=(1, 5), resampling=Resampling(resamples=10))
        saved.feed({"r": evaluator})
        found[devices] = (torch.stack([saved.vector(scan) for scan in saved.scans]), evaluator.compute())
    torch.testing.assert_close(found[2][0], found[1][0], atol=1e-5, rtol=0)
    assert found[2][1] == pytest.approx(found[1][1])
