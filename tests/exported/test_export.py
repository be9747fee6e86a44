"""A model outside of its run: the same numbers from a folder, through transformers and as a program, and no traces."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_run import config
from torch import nn

import ctgrounding
from ctgrounding.cli import main
from ctgrounding.data.index import load_index
from ctgrounding.encoders.readouts import GlobalReadout, OrganTableReadout, Rows
from ctgrounding.encoders.text.transformers import TransformersText
from ctgrounding.errors import CheckpointError, ConfigError, MissingDependencyError
from ctgrounding.exported import ImageTower, tower_outputs
from ctgrounding.exported.portable import placed, portable
from ctgrounding.exported.program import write_program
from ctgrounding.geometry import Grid
from ctgrounding.model import build
from ctgrounding.testing.shards import write_tiny_shards

SHAPE = (12, 24, 32)
TEXTS = ["a cyst in the left kidney", "no effusion"]
LOAD = """
import sys
import ctgrounding
{first}
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
given = load_file(sys.argv[2])
model = AutoModel.from_pretrained(sys.argv[1]{option})
found = model(image_hu=given["volumes"], valid_box=given["box"], **model.tokenize({texts!r}))
save_file({{f"image.{{k}}": v.contiguous() for k, v in found.image_embeds.items()}} |
          {{f"text.{{k}}": v.contiguous() for k, v in found.text_embeds.items()}}, sys.argv[3])
"""
RUN_TORCH = """
import sys
import torch
from safetensors.torch import load_file, save_file
program = torch.export.load(sys.argv[1]).module()
given = load_file(sys.argv[2])
save_file({k: v.contiguous() for k, v in program(given["volumes"], given["box"]).items()}, sys.argv[3])
assert "ctgrounding" not in sys.modules
"""
RUN_ONNX = """
import sys
from onnxruntime import InferenceSession
from safetensors.numpy import load_file, save_file
session = InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = load_file(sys.argv[2])
found = session.run(None, {"image_hu": given["volumes"], "valid_box": given["box"]})
save_file(dict(zip([output.name for output in session.get_outputs()], found)), sys.argv[3])
assert not {"ctgrounding", "torch"} & set(sys.modules)
"""
RUN_PROGRAM = {"torch": RUN_TORCH, "onnx": RUN_ONNX}


def write_checkpoint(folder, **changes):
    """A run folder as fit leaves it, with random weights."""
    content = config(folder)
    content["data"] |= {"shards": str(folder / "shards"), "evaluation_crop": None}
    content["model"] |= changes
    torch.manual_seed(0)
    encoder = build(content["model"])
    for name, buffer in encoder.named_buffers():
        if name.endswith(("standard.mean", "standard.variance")):
            nn.init.uniform_(buffer, 0.1, 0.3)
    (folder / "checkpoints").mkdir()
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"run_config": content, "state_dict": state}, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_tiny_shards(folder / "shards", scans=6)
    return write_checkpoint(folder)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    main(["export", "--model", str(run), "--output", str(folder), "--licence", "cc-by-4.0"])
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("secret-place")
    words = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *" ".join(TEXTS).split()])}
    words = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return str(folder)


def volumes_and_boxes(whole=False):
    volumes = torch.randint(-1000, 1000, (2, *SHAPE), generator=torch.Generator().manual_seed(3)).float()
    box = torch.tensor([[[0, side] for side in SHAPE]] * 2)
    if not whole:
        box[1] = torch.tensor([[2, 11], [0, 20], [3, 32]])
    return volumes, box


def expected_embeddings(model):
    """By the way that evaluation goes, which knows nothing of exports."""
    found = {}
    for volume, box in zip(*volumes_and_boxes(), strict=True):
        grid = Grid(SHAPE, model.spacing_mm, (0.0, 0.0, 0.0))
        encoded = model._encode(volume.numpy().astype(np.int16), grid, box.tolist(), TEXTS)
        for name in ("global.main", "global.disease", "depth.snippet"):
            readout, head = name.split(".")
            rows = encoded.image(readout, head)[0]
            if readout == "depth":
                rows = rows.masked_fill(~encoded.depth_valid[0][:, None], 0)
            found.setdefault(f"image.{name}", []).append(rows)
        found.setdefault("image.depth.valid", []).append(encoded.depth_valid[0])
        found |= {
            f"text.{head}": [encoded.texts(torch.tensor([0, 1]), head)] for head in model.encoder.heads.text_widths
        }
    return {name: torch.stack(rows).squeeze(0) if len(rows) == 1 else torch.stack(rows) for name, rows in found.items()}


def in_fresh_process(script, *words, folder):
    volumes, box = volumes_and_boxes()
    save_file({"volumes": volumes, "box": box}, folder / "given.safetensors")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-c",
        script,
        *map(str, words),
        folder / "given.safetensors",
        folder / "found.safetensors",
    ]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "found.safetensors")


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


class TestFolder:
    def test_loaded_model_gives_the_same_numbers(self, run, exported):
        before, after = ctgrounding.load(run), ctgrounding.load(exported)
        same(after.encoder.state_dict(), before.encoder.state_dict())
        same(expected_embeddings(after), expected_embeddings(before))
        volume, box = volumes_and_boxes()[0][0].numpy().astype(np.int16), [[0, side] for side in SHAPE]
        grid = Grid(SHAPE, before.spacing_mm, (0.0, 0.0, -300.0))
        found, expected = (model.locate_in(volume, grid, box, TEXTS[0]) for model in (after, before))
        assert found.depth_mm == expected.depth_mm
        np.testing.assert_allclose(found.probability, expected.probability, atol=1e-7)

    def test_nothing_but_plain_files_and_no_trace_of_patients_or_machine(self, run, exported):
        names = {path.name for path in exported.iterdir()}
        assert names == {"config.json", "model.safetensors", "modeling_ctgrounding.py", "README.md"}
        columns = load_index([run / "shards"]).columns
        ids = {value for key in ("scan_id", "study_id", "patient_id") for value in columns[key]}
        held = b"".join(path.read_bytes() for path in exported.iterdir()).decode(errors="replace")
        assert len(ids) > 6
        assert [text for text in (*ids, str(run), str(exported), str(Path.home())) if text in held] == []

    def test_card_says_what_a_user_must_know(self, exported):
        text = (exported / "README.md").read_text(encoding="utf-8")
        _, front, body = text.split("---\n", 2)
        assert yaml.safe_load(front)["license"] == "cc-by-4.0"
        for part in (
            "3 x 1.5 x 1.5 mm",
            "[-150, 250] HU",
            "[-1024, 3071]",
            "12 mm",
            "`SnippetLocalization`",
            "no medical",
        ):
            assert part in body
        assert re.search(r"\| tiny \| \d+ \| \d+ \|", body)
        assert "$" not in body

    def test_exported_again_it_keeps_what_is_known_of_it(self, exported, tmp_path):
        main(["export", "--model", str(exported), "--output", str(tmp_path / "model")])
        for name in ("config.json", "README.md"):
            assert (tmp_path / "model" / name).read_bytes() == (exported / name).read_bytes()

    def test_licence_of_the_weights_that_training_began_from(self, run, tmp_path):
        save_file({"x": torch.ones(1)}, tmp_path / "begun.safetensors", metadata={"licence": "CC BY-NC-SA 4.0 (code)"})
        folder = write_checkpoint(tmp_path, initial_weights=str(tmp_path / "begun.safetensors"))
        main(["export", "--model", str(folder), "--output", str(tmp_path / "out")])
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n")[1])
        assert (front["license"], front["license_name"]) == ("other", "CC BY-NC-SA 4.0 (code)")
        assert "not recorded" in text  # its shards are not there

    @pytest.mark.parametrize("tuning", ["frozen", "lora"])
    def test_transformers_text_tower_comes_along(self, bert, tmp_path, tuning):
        arguments = {"model": bert, "tuning": tuning, "context_length": 32}
        if tuning == "frozen":
            arguments["cache"] = str(tmp_path / "cache")
        text = {"class_path": "ctgrounding.encoders.text.transformers.TransformersText", "init_args": arguments}
        folder = write_checkpoint(tmp_path, text=text)
        before = ctgrounding.load(folder)
        main(["export", "--model", str(folder), "--output", str(tmp_path / "out")])
        moved = tmp_path / "elsewhere"
        (tmp_path / "out").rename(moved)
        after = ctgrounding.load(moved)
        torch.testing.assert_close(after.encode_text(TEXTS), before.encode_text(TEXTS))
        assert not list((moved / "text").glob("*.safetensors"))
        held = b"".join(path.read_bytes() for path in moved.rglob("*.*")).decode(errors="replace")
        assert "secret-place" not in held
        assert str(tmp_path) not in held


class TestTransformers:
    @pytest.mark.parametrize(
        ("first", "option"),
        [
            ("import ctgrounding.hub", ""),
            pytest.param("", ", trust_remote_code=True", marks=pytest.mark.slow),
        ],
        ids=["after_import", "remote_code"],
    )
    def test_auto_model_in_a_fresh_process_without_a_network(self, run, exported, tmp_path, first, option):
        script = LOAD.format(first=first, option=option, texts=TEXTS)
        same(in_fresh_process(script, exported, folder=tmp_path), expected_embeddings(ctgrounding.load(run)))

    def test_whole_volumes_are_the_default_and_saving_gives_the_same_folder(self, exported, tmp_path):
        from transformers import AutoModel

        import ctgrounding.hub

        model = AutoModel.from_pretrained(exported)
        assert isinstance(model, ctgrounding.hub.CTGroundingModel)
        assert not model.training
        volumes, box = volumes_and_boxes(whole=True)
        with torch.no_grad():
            same(dict(model(image_hu=volumes).image_embeds), dict(model(volumes, box).image_embeds))
        model.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "config.json").read_bytes() == (exported / "config.json").read_bytes()
        same(load_file(tmp_path / "again" / "model.safetensors"), load_file(exported / "model.safetensors"))
        assert AutoModel.from_pretrained(exported, dtype="float64").dtype == torch.float64

    def test_refusals(self, exported, tmp_path):
        import ctgrounding.hub

        model = ctgrounding.hub.CTGroundingModel
        for wrong in ({"device_map": "auto"}, {"dtype": "float12"}, {"dtype": "int8"}):
            with pytest.raises(ConfigError, match=r"cannot be used here .* one device"):
                model.from_pretrained(exported, **wrong)
        with pytest.raises(ConfigError, match="but not quantization_config"):
            model.from_pretrained(exported, quantization_config={})
        with pytest.raises(CheckpointError, match="There is no folder somebody/model"):
            model.from_pretrained("somebody/model")
        with pytest.raises(ConfigError, match="nothing to embed"):
            model.from_pretrained(exported)()


ENCODERS = {
    "slice_scan": {
        "class_path": "ctgrounding.encoders.image.vit.ViT",
        "init_args": {
            "patch": [4, 8, 8],
            "width": 24,
            "depth": 3,
            "heads": 2,
            "attention": "slice_scan",
            "scan_every": 2,
        },
    },
    "windowed": {
        "class_path": "ctgrounding.encoders.image.windowed.WindowedViT",
        "init_args": {
            "window": [8, 16, 16],
            "patch": [4, 8, 8],
            "width": 24,
            "depth": 1,
            "heads": 2,
            "combiner_depth": 1,
        },
    },
    "resnet": {
        "class_path": "ctgrounding.encoders.image.resnet.ResNetEncoder",
        "init_args": {"filters": 8, "stage": 2},
    },
    "slices_in_air": {
        "class_path": "ctgrounding.encoders.image.slices.SlicesEncoder",
        "init_args": {"tower": "test_coatnet", "slices": 4, "slice_shape": [96, 96]},
    },
}
WHOLE = ("resnet", "slices_in_air")  # programs that take volumes without padding


def tower_of(model):
    use = None if model.locating is None else {"image_head": model.locating.image_head}
    return ImageTower(model.encoder, tower_outputs(model.encoder, model.config["model"]["heads"]["image"], use)).eval()


def onnx_program(file):
    from onnxruntime import InferenceSession

    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def program(image_hu, valid_box):
        found = session.run(None, {"image_hu": image_hu.numpy(), "valid_box": valid_box.numpy()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return program


PROGRAMS = {"torch": lambda file: torch.export.load(file).module(), "onnx": onnx_program}
SUFFIXES = {"torch": "pt2", "onnx": "onnx"}


class Counting(GlobalReadout):
    """Its code fixes the number of scans."""

    def forward(self, dense, context):
        return Rows(super().forward(dense, context).values + torch.zeros(len(dense.map), 1))


class Branching(GlobalReadout):
    def forward(self, dense, context):
        rows = super().forward(dense, context)
        return rows if float(rows.values.max()) > 0 else Rows(-rows.values)


class Unequal(GlobalReadout):
    def forward(self, dense, context):
        rows = super().forward(dense, context)
        return Rows(torch.bmm(rows.values[:, None], dense.map.flatten(2)[:, :3]).flatten(1))


class TestProgram:
    def test_tower_gives_what_evaluation_gives(self, run):
        model = ctgrounding.load(run)
        with torch.no_grad():
            found = tower_of(model)(*volumes_and_boxes())
        expected = expected_embeddings(model)
        same({f"image.{k}": v for k, v in found.items()}, {k: v for k, v in expected.items() if "image" in k})

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["torch", "onnx"])
    def test_program_of_the_command(self, run, kind, tmp_path):
        out = tmp_path / "out"
        words = ("--model", run, "--output", out, "--image_tower", kind, "--shape", list(SHAPE))
        main(["export", *map(str, words)])
        about = json.loads((out / "image_tower.json").read_text())
        assert (about["scans"], about["valid_box"], about["shape"]) == ("any", "any", list(SHAPE))
        assert about["outputs"]["depth.snippet"] == [None, 3, 8]
        assert "any number of volumes of 12 x 24 x 32 voxels" in (out / "README.md").read_text()
        file = out / f"image_tower.{SUFFIXES[kind]}"
        found = in_fresh_process(RUN_PROGRAM[kind], file, folder=tmp_path)
        expected = expected_embeddings(ctgrounding.load(run))
        same({f"image.{k}": v for k, v in found.items()}, {k: v for k, v in expected.items() if "image" in k})
        assert found.keys() == about["outputs"].keys()
        held = file.read_bytes().decode(errors="replace")
        assert [text for text in (str(run), str(tmp_path), ctgrounding.__path__[0]) if text in held] == []

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["torch", "onnx"])
    @pytest.mark.parametrize("name", ENCODERS)
    def test_program_of_other_encoders(self, name, kind, tmp_path):
        sections = config(tmp_path)["model"] | {"image": ENCODERS[name]}
        torch.manual_seed(0)
        encoder = build(sections).eval()
        tower = ImageTower(encoder, tower_outputs(encoder, sections["heads"]["image"], None)).eval()
        about = write_program(tower, SHAPE, kind, tmp_path)
        assert about.scans == "any"
        assert about.valid_box == ("whole" if name in WHOLE else "any")
        program = PROGRAMS[kind](tmp_path / f"image_tower.{SUFFIXES[kind]}")
        volumes, box = volumes_and_boxes(whole=name in WHOLE)
        for scans in (1, 2):
            with torch.no_grad():
                same(program(volumes[:scans], box[:scans]), tower(volumes[:scans], box[:scans]))
        if (name, kind) == ("resnet", "torch"):
            with pytest.raises(RuntimeError, match="volumes without padding"):
                program(*volumes_and_boxes())

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["torch", "onnx"])
    @pytest.mark.parametrize(("readout", "scans"), [(OrganTableReadout, "any"), (Counting, 1)])
    def test_program_of_other_readouts(self, readout, scans, kind, tmp_path):
        sections = config(tmp_path)["model"]
        sections["readouts"]["global"] = {"class_path": f"{readout.__module__}.{readout.__name__}"}
        torch.manual_seed(0)
        encoder = build(sections).eval()
        tower = ImageTower(encoder, [("global", "main")]).eval()
        assert write_program(tower, SHAPE, kind, tmp_path).scans == scans
        program = PROGRAMS[kind](tmp_path / f"image_tower.{SUFFIXES[kind]}")
        volumes, box = volumes_and_boxes()
        with torch.no_grad():
            same(program(volumes[:1], box[:1]), tower(volumes[:1], box[:1]))

    @pytest.mark.parametrize(("readout", "said"), [(Branching, "Could not"), (Unequal, "Expected size")])
    def test_a_tower_that_cannot_be_a_program_is_refused_in_one_sentence(self, readout, said, tmp_path, capfd):
        sections = config(tmp_path)["model"]
        sections["readouts"]["global"] = {"class_path": f"{readout.__module__}.{readout.__name__}"}
        encoder = build(sections).eval()
        with pytest.raises(ConfigError, match=rf"cannot be written as a program: {said} .* must not branch on"):
            write_program(ImageTower(encoder, [("global", "main")]), SHAPE, "torch", tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_what_onnx_cannot_hold_is_refused_in_one_sentence(self, run, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise torch.onnx.OnnxExporterError("a step failed\nand a report") from RuntimeError("no such thing\nmore")

        monkeypatch.setattr("torch.onnx.export", fail)
        with pytest.raises(ConfigError, match=r"^ONNX cannot hold .*: no such thing\. Export it as torch\.$"):
            write_program(tower_of(ctgrounding.load(run)), SHAPE, "onnx", tmp_path)

    def test_refusals(self, run, tmp_path, monkeypatch):
        tower = tower_of(ctgrounding.load(run))
        with pytest.raises(ConfigError, match="along D, H, W, but shape is \\[12, 24\\]"):
            write_program(tower, (12, 24), "torch", tmp_path)
        monkeypatch.setattr("ctgrounding.exported.program.find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match="ONNX needs onnx, onnxruntime, onnxscript, not installed"):
            write_program(tower, SHAPE, "onnx", tmp_path)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ConfigError, match="no image head that a volume alone feeds"):
            ImageTower(ctgrounding.load(run).encoder, [])


class TestRefusals:
    def refused(self, capsys, *words):
        with pytest.raises(SystemExit) as stop:
            main(["export", *map(str, words)])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    def test_of_the_command(self, run, exported, tmp_path, capsys):
        out = tmp_path / "out"
        assert "is not an empty folder" in self.refused(capsys, "--model", run, "--output", exported)
        assert "There is no checkpoint" in self.refused(capsys, "--model", tmp_path / "none", "--output", out)
        words = ("--model", run, "--output", out)
        assert "Add --image_tower torch" in self.refused(capsys, *words, "--shape", "[1,2,3]")
        assert "sees whole scans" in self.refused(capsys, *words, "--image_tower", "torch")
        assert list(tmp_path.iterdir()) == []  # nothing half-written is left

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 99}, "has format 99, and this ctgrounding reads up to 1"),
            ({"licence": None, "more": 1}, "lacks a value or has one too many"),
            ({"format": "x"}, "describes no model of ctgrounding"),
        ],
    )
    def test_of_a_changed_config(self, exported, tmp_path, change, message):
        folder = shutil.copytree(exported, tmp_path / "copy")
        held = json.loads((folder / "config.json").read_text())
        held["ctgrounding"] |= change
        (folder / "config.json").write_text(json.dumps(held))
        with pytest.raises(CheckpointError, match=message):
            ctgrounding.load(folder)

    def test_of_damaged_files(self, exported, tmp_path):
        folder = shutil.copytree(exported, tmp_path / "copy")
        weights = load_file(folder / "model.safetensors")
        save_file(dict(list(weights.items())[1:]), folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="weights do not fit"):
            ctgrounding.load(folder)
        (folder / "model.safetensors").write_bytes(b"12345678{")
        with pytest.raises(CheckpointError, match="is damaged"):
            ctgrounding.load(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="Copy the whole folder"):
            ctgrounding.load(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="cannot be read"):
            ctgrounding.load(folder)

    def test_of_paths(self, tmp_path):
        inner = {"class_path": "my.Encoder", "init_args": {"table": "/home/me/table.npy"}}
        with pytest.raises(ConfigError, match=r"model\.image\.init_args\.table is '/home/me/table\.npy'"):
            portable({"image": inner})
        for model in ("local-dir:/home/me/clip", "hf-hub:me/clip"):
            inside = {"class_path": "ctgrounding.encoders.text.OpenClipModelText", "init_args": {"model": model}}
            with pytest.raises(ConfigError, match=rf"model\.text\.init_args\.model is '{model}', which is elsewhere"):
                portable({"text": inside})
        text = {"class_path": "ctgrounding.encoders.text.transformers.TransformersText", "init_args": {"model": "text"}}
        for sections, message in [
            ({"image": inner}, "outside of the folder"),
            ({"image": {"class_path": "my.Encoder", "init_args": {"table": "../x"}}}, "outside of the folder"),
            ({"image": {"class_path": "os; x"}}, "no name of a class"),
            ({"readouts": {"global": "os.system"}}, "names something that is no class"),
            ({"readouts": {}, "text": text}, "not the folder's own 'text'"),
        ]:
            with pytest.raises(CheckpointError, match=message):
                placed(sections, tmp_path)

    def test_of_a_random_text_tower_by_accident(self, bert):
        with pytest.raises(ConfigError, match="neither a folder"):
            TransformersText(bert + "/none", pretrained=False)
