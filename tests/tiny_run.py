"""A run as small as can be that still has every objective: its config, its shards, its losses."""

import csv
from pathlib import Path

import yaml

from ctgrounding.testing.shards import LABELS, write_tiny_shards

LOG_NAMES = (
    "train/loss", "train/global/contrast", "train/organ/anatomy", "train/organ/diagnosis",
    "train/snippet/depth", "train/disease/answers",
)  # fmt: skip

MODEL = """
image:
  class_path: ctgrounding.encoders.image.conv.PatchConv
  init_args:
    {spacing_mm: [3.0, 1.5, 1.5], patch: [4, 8, 8], width: 16, patch_hidden: 16, bottleneck: 8,
     convolutions: 2, context_depth: 1, context_cells: [1, 2, 2], heads: 2}
text:
  class_path: ctgrounding.encoders.text.open_clip.OpenClipText
  init_args: {width: 16, layers: 1, heads: 2, context_length: 48, pooling: mean, hashed_rows: 64}
readouts:
  global: {class_path: ctgrounding.encoders.readouts.GlobalReadout, init_args: {parts: [mean, max, attention]}}
  depth: {class_path: ctgrounding.encoders.readouts.DepthReadout}
  organ: {class_path: ctgrounding.encoders.readouts.OrganReadout, init_args: {parts: [mean, attention, log_volume]}}
heads:
  image:
    main: {readout: global, kind: mlp, hidden: 16, width: 8, standardize: true}
    disease: {copy: main}
    organ: {readout: organ, width: 8, layer_norm: true}
    snippet: {readout: depth, width: 8}
  text:
    main: {kind: mlp, hidden: 16, width: 8, standardize: true}
    disease: {width: 8}
    organ: {width: 8}
    snippet: {width: 8}
  logit:
    main: {scale: 10.0, bias: -10.0}
    disease: {scale: 5.0, bias: 0.0}
objectives:
  global: {class_path: ctgrounding.objectives.GlobalContrastive}
  organ: {class_path: ctgrounding.objectives.OrganGrounding, init_args: {image_head: organ, text_head: organ}}
  snippet:
    class_path: ctgrounding.objectives.SnippetLocalization
    init_args: {image_head: snippet, text_head: snippet}
  disease:
    class_path: ctgrounding.objectives.DiseasePrompts
    init_args: {questions: QUESTIONS, image_head: disease, text_head: disease, logit: disease}
weights: {global: 1.0, organ: 0.5, snippet: 2.0, disease: 1.5}
optimizer:
  class_path: ctgrounding.tasks.optimizers.AdamWCosine
  init_args: {lr: 0.003}
"""

_QUESTION = "{name}: {{positive: [there is a {name}, {name} seen], negative: [there is no {name}, {name} absent]}}\n"


def config(folder: Path) -> dict:
    """Configuration of a run in ``folder``, whose shards and questions lie there too."""
    questions = folder / "questions.yaml"
    questions.write_text("".join(_QUESTION.format(name=name) for name in LABELS))
    return {
        "seed_everything": 0,
        "model": yaml.safe_load(MODEL.replace("QUESTIONS", str(questions))),
        "data": {
            "shards": "${trainer.default_root_dir}/shards",
            "batch_size": 4,
            "label_names": list(LABELS),
            "mirror_probability": 0.5,
        },
        "trainer": {
            "default_root_dir": str(folder),
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "gradient_clip_val": 1.0,
            "deterministic": True,
        },
    }


def write_run(folder: Path, *, scans: int = 15, **sections: dict) -> Path:
    """Shards and ``run.yaml`` in a folder; ``sections`` change values of its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_shards(folder / "shards", scans=scans)
    content = config(folder)
    for name, changes in sections.items():
        content[name].update(changes)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def logged(folder: Path, name: str = "train/loss") -> list[float]:
    """Logged values of the run's versions, one after the other."""
    values = []
    for file in sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:])):
        with file.open() as lines:
            values += [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]
    return values
