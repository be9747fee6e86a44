"""A step on stored features has loss and gradients of one with the frozen encoder, on any number of ranks."""

import copy

import exact_work as work
import pytest
import tiny_run
import torch

from ctgrounding.data.collate import Collate
from ctgrounding.encoders.readouts import ReadoutContext
from ctgrounding.encoders.stems import STEMS
from ctgrounding.testing.ranks import simulate_ranks

WINDOWS = {
    "class_path": "ctgrounding.encoders.image.windowed.WindowedViT",
    "init_args": {
        "spacing_mm": [3.0, 1.5, 1.5], "window": [8, 16, 16], "patch": [4, 8, 8], "width": 24, "depth": 1, "heads": 2,
        "combiner_depth": 1, "rescale": 1.0,
    },
}  # fmt: skip
CASES = {"map": None, "readouts": None, "windows": WINDOWS}
"""What is kept, and the image encoder where it is not the tiny run's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored_steps")
    tiny_run.write_run(folder, scans=30)
    return folder


@pytest.fixture(scope="module", params=CASES)
def frozen(request, folder):
    """What is kept, a task whose parts before it and whose text tower are frozen, and samples of one step."""
    plain = tiny_run.config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "config", lambda place: _with_image(plain(place), CASES[request.param]))
        task = work.make_task(folder)
    for part in (*STEMS[request.param](task.encoder).parts.values(), task.encoder.text):
        part.requires_grad_(False).eval()
    return request.param, task, work.make_samples(folder, task.tokenizer, "organ maps of the first rank")[0]


def _with_image(content, image):
    return content if image is None else {**content, "model": {**content["model"], "image": image}}


def stored(task, keep, sample):
    """A sample with features in the place of voxels."""
    maps = [sample[name][None] if name in sample else None for name in ("organs", "organ_voxels")]
    context = ReadoutContext(sample["spacing_mm"][None], *maps)
    with torch.no_grad():
        features = STEMS[keep](task.encoder).of_scan(sample["volume"][None], sample["valid_box"][None], context)
    kept = {name: value for name, value in sample.items() if name != "organs"}
    return {**kept, "volume": sample["volume"].new_zeros(0, 0, 0), "features": features}


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_steps_are_those_of_the_frozen_encoder(frozen, world, micro_batches):
    keep, task, samples = frozen
    whole = copy.deepcopy(task)
    value, wanted = work.plain_step(whole, work.make_batch(samples, task.tokenizer, (work.SCANS,)))
    found = [stored(task, keep, sample) for sample in samples]
    parts = work.PARTS[world]

    def rank_step(rank):
        own, first = copy.deepcopy(task), sum(parts[:rank])
        mine, size = found[first : first + parts[rank]], -(-max(parts) // micro_batches)
        collate = Collate(own.tokenizer.pad_id, (8, 16, 16), True, len(tiny_run.LABELS), keep)
        return work.task_step(own, collate([mine[k * size : (k + 1) * size] for k in range(micro_batches)]))

    found_value, gradients = simulate_ranks(world, rank_step, timeout_s=120.0)[0] if world > 1 else rank_step(0)
    assert found_value == pytest.approx(value, rel=1e-10)
    assert work.worst(gradients, wanted) < 1e-9
    assert any(gradient.any() for gradient in wanted.values())
