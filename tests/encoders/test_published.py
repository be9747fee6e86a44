"""Published checkpoints: every key and shape of the published tables, and the numbers of the public code."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ctgrounding.cli import main
from ctgrounding.encoders.heads import Head, HeadConfig, Heads, HeadsConfig, ImageHeadConfig
from ctgrounding.encoders.image.position_table import PositionTable
from ctgrounding.encoders.image.segresnet import SegResNetEncoder
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.image.windowed import WindowedViT
from ctgrounding.encoders.published import Checkpoint, import_ct_fm, import_hlip, import_radfinder, import_spectre
from ctgrounding.encoders.readouts import DepthReadout, GlobalReadout, ReadoutContext
from ctgrounding.errors import CheckpointError

HERE = Path(__file__).parent


def formula(name, shape):
    """Random numbers that depend on a tensor's name and shape alone; see agreement/README.md."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    last = name.rsplit(".", 1)[-1]
    if last in ("original0", "weight_g"):
        draw = np.ones(shape)
    elif last in ("cls_token", "spatial_posemb"):
        draw = 0.5 * draw
    elif last == "running_var":
        draw = 1 + 0.2 * np.abs(draw)
    elif len(shape) == 1 and last in ("weight", "gamma"):
        draw = 1 + 0.1 * draw
    elif len(shape) < 2:
        draw = 0.1 * draw
    else:
        draw = draw / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(draw)).float()


def rows_of(name):
    """Sections of a published table: title to names and shapes, with number ranges written out."""
    sections, rows = {}, {}
    for line in (HERE / "key_tables" / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
        if line.startswith("# =="):
            rows = sections.setdefault(line.removeprefix("# == "), {})
        elif line and not line.startswith(("#", "key\t")):
            key, shape, _ = line.split("\t")
            rows |= dict.fromkeys(written_out(key), tuple(int(side) for side in re.findall(r"\d+", shape)))
    return sections


def written_out(key):
    match = re.search(r"\{(\d+)\.\.(\d+)\}", key)
    if match is None:
        return [key]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [found for number in numbers for found in written_out(key.replace(match[0], str(number)))]


def periods(count, base):
    return torch.tensor(base) ** (torch.arange(count) / count)


def hollow(shapes):
    """Tensors of the published shapes without contents, but for the few that an import looks at."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if name.endswith("rope.periods"):
            tensors[name] = periods(shape[0], 100.0 if "feature_comb" in name else 1000.0)
        elif name.endswith(("original0", "weight_g")):
            tensors[name] = torch.ones(shape)
    return tensors


def radfinder_shapes():
    return {key: shape for section in rows_of("radfinder").values() for key, shape in section.items()}


def spectre_shapes():
    prefixes = ("backbone_image.", "feature_comb_image.", "projection_image.", "projection_text.", "backbone_text.")
    sections = rows_of("spectre").values()
    return {p + key: shape for p, section in zip(prefixes, sections, strict=True) for key, shape in section.items()}


def hlip_shapes(variant=None):
    sections = list(rows_of("hlip").items())
    shapes = {key: shape for _, section in sections[:3] for key, shape in section.items()}
    return shapes | next((section for title, section in sections[3:] if variant and title.startswith(variant)), {})


class TestPublishedTables:
    """At full size, on tensors without contents."""

    def test_radfinder(self):
        checkpoint = Checkpoint(hollow(radfinder_shapes()))
        found = import_radfinder(checkpoint)
        image = found.model["image"]["init_args"]
        assert (image["width"], image["depth"], image["heads"], image["patch"]) == (1080, 24, 12, [4, 16, 16])
        assert (image["window"], image["spacing_mm"]) == ([32, 128, 128], [3.0, 0.75, 0.75])
        assert set(found.left_out.values()) == {"already contained in the weight"}
        assert len(found.left_out) == 224
        assert {"encoder.heads.image_heads.local.layers.5.direction", "encoder.heads.logits.main.bias"} <= set(
            found.weights
        )
        assert sum(value.numel() for name, value in found.weights.items() if ".image." in name) == (
            337_422_255 + 59_556_615 - 30  # the two tensors of rotary periods are computed anew
        )
        self.check_text(found.text, 1024, 151669)

    @pytest.mark.parametrize(("halve", "patch"), [(False, [8, 16, 16]), (True, [4, 16, 16])])
    def test_spectre(self, halve, patch):
        found = import_spectre(Checkpoint(hollow(spectre_shapes())), halve_depth=halve)
        assert found.left_out == {}
        image = found.model["image"]["init_args"]
        assert (image["patch"], image["norm_eps"], image["window"][0]) == (patch, 1e-5, 8 * patch[0])
        assert image["spacing_mm"][0] * patch[0] == 12.0
        self.check_text(found.text, 1024, 151669)

    @pytest.mark.parametrize(
        ("variant", "attention", "out"),
        [
            (None, "slice_scan", 512),
            ("clip_vit_base_multiscan_h2_token1176", "full", 512),
            ("clip_vit_base_multiscan_h2_token588", "full", 512),
            ("ablate_seqposemb", "full", 768),
        ],
    )
    def test_hlip(self, variant, attention, out):
        found = import_hlip(Checkpoint(hollow(hlip_shapes(variant))))
        image = found.model["image"]["init_args"]
        assert (image["attention"], image["heads"], found.left_out) == (attention, 12, {})
        assert found.weights["encoder.heads.image_heads.main.layers.0.weight"].shape[0] == out
        self.check_text(found.text, 768, 30522)

    def test_hlip__siglip_variant_is_refused(self):
        shapes = hlip_shapes("siglip_vit_base")
        del shapes["visual.head.proj.weight"]
        with pytest.raises(CheckpointError, match="pools by a latent query"):
            import_hlip(Checkpoint(hollow(shapes)))

    def test_ct_fm(self):
        extractor, whole = rows_of("ct_fm").values()
        plain = import_ct_fm(Checkpoint(hollow(extractor)))
        assert plain.model["image"]["init_args"]["blocks"] == [1, 2, 2, 4, 4]
        assert set(plain.left_out.values()) == {"the statistics are fixed"}
        segmenter = import_ct_fm(Checkpoint(hollow(whole)))
        lightning = import_ct_fm(Checkpoint(hollow({f"backbone.{key}": shape for key, shape in extractor.items()})))
        for other in (segmenter, lightning):
            assert {name: value.shape for name, value in other.weights.items()} == {
                name: value.shape for name, value in plain.weights.items()
            }

    def check_text(self, text, width, words):
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(**text.config)
        assert (config.hidden_size, config.vocab_size) == (width, words)
        with torch.device("meta"):
            tower = AutoModel.from_config(config)
        expected = {
            name: tuple(value.shape) for name, value in tower.state_dict().items() if not name.startswith("pooler")
        }
        assert {name: tuple(value.shape) for name, value in text.tensors.items()} == expected


def small(shapes, resize):
    """Published names in reduced shapes."""
    return {name: resize(name, shape) for name, shape in shapes.items() if resize(name, shape) is not None}


def reduced_radfinder(name, shape):
    """Width 48, two blocks, a text tower of 16 channels: the sizes of agreement/radfinder.safetensors."""
    match = re.match(r"(?:backbone_image|feature_comb_image|backbone_text)\.(?:blocks|layers)\.(\d+)\.", name)
    if match and int(match[1]) >= 2:
        return None
    if name.startswith("backbone_text."):
        sides = {1024: 16, 2048: 16, 3072: 24, 151669: 40, 128: 8, 16: 4}
        if re.search(r"[kv]_proj.(weight|lora_B)", name):
            return (8, *(sides[side] for side in shape[1:]))
        return tuple(sides[side] for side in shape)
    sides = {1080: 48, 2160: 96, 4320: 192, 15: 4, 2048: 64, 256: 16, 512: 32, 1024: 40}
    if "patch_embed.proj.weight" in name:
        return (48, 1, 4, 4, shape[4] // 2)
    return tuple(sides.get(side, side) for side in shape)


def filled(shapes):
    tensors = {name: formula(name, shape) for name, shape in shapes.items()}
    for name in tensors:
        if name.endswith("rope.periods"):
            tensors[name] = periods(shapes[name][0], 100.0 if "feature_comb" in name else 1000.0)
    return tensors


def radfinder_checkpoint():
    return filled(small(radfinder_shapes(), reduced_radfinder))


def loaded(cls, found, **changes):
    encoder = cls(**(found.model["image"]["init_args"] | changes)).eval()
    prefix = "encoder.image."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in found.weights.items() if k.startswith(prefix)})
    return encoder


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class TestRadFinderNumbers:
    """Against what the public code made of the same weights."""

    expected = load_file(HERE / "agreement" / "radfinder.safetensors")

    def dense(self, depth_branch="trained"):
        found = import_radfinder(Checkpoint(radfinder_checkpoint()), depth_branch=depth_branch)
        encoder = loaded(WindowedViT, found, window=[8, 16, 16])
        volume = torch.full((2, 16, 32, 32), 300, dtype=torch.int16)
        box = torch.tensor([[[0, 16], [0, 16], [0, 32]], [[0, 8], [0, 32], [0, 16]]])
        volume[0, :, :16], volume[1, :8, :, :16] = self.expected["input.a"], self.expected["input.b"]
        with torch.no_grad():
            return found, encoder(volume, box)

    def head(self, found, name, rows, kind="image"):
        config = HeadsConfig(
            image={
                "main": ImageHeadConfig(kind="radfinder", hidden=64, width=32),
                "local": ImageHeadConfig(copy="main"),
            },
            text={"main": HeadConfig(kind="radfinder", hidden=64, width=32), "local": HeadConfig(copy="main")},
        )
        with torch.device("meta"):
            heads = Heads(config, {"global": 96}, 40)
        for head in [*heads.image_heads.values(), *heads.text_heads.values()]:
            head.layers[4] = torch.nn.Linear(64, 16, device="meta")
            head.layers[5].direction = torch.nn.Parameter(torch.empty(32, 16, device="meta"))
        ours = {k.removeprefix("encoder.heads."): v for k, v in found.weights.items() if k.startswith("encoder.heads.")}
        heads.load_state_dict(ours, assign=True)
        assert heads.copy_declared() == []  # the imported copies stay as they are
        with torch.no_grad():
            return getattr(heads, kind)(name, rows)

    def test_cells_of_a_window(self):
        _, dense = self.dense()
        close(dense.map[0, :, :4, :4, :4].permute(1, 2, 3, 0), self.expected["cells"])

    def test_scan_embeddings(self):
        found, dense = self.dense()
        rows = GlobalReadout(48, parts=("summary", "mean"))(dense, ReadoutContext(torch.ones(2, 3))).values
        close(dense.summary, self.expected["scan.summary"])
        for name in ("main", "local"):
            close(self.head(found, name, rows), self.expected[f"scan.{name}"])

    @pytest.mark.parametrize("branch", ["trained", "zero_shot"])
    def test_slice_embeddings(self, branch):
        found, dense = self.dense(branch)
        rows = DepthReadout(48, parts=("summary", "mean"))(dense, ReadoutContext(torch.ones(2, 3)))
        valid = self.expected["depth.valid"].bool()
        assert torch.equal(rows.depth_valid, valid)
        close(rows.values[valid][:, 48:], self.expected[f"depth.{branch}.mean"][valid])
        close(self.head(found, "local", rows.values[valid]), self.expected[f"depth.{branch}.local"][valid])

    def test_text_heads(self):
        found, _ = self.dense()
        for name in ("main", "local"):
            close(self.head(found, name, self.expected["text.input"], "text"), self.expected[f"text.{name}"])

    def test_halved_patches_equal_slices_fed_twice(self):
        shapes = small(spectre_shapes(), reduced_radfinder)
        whole = import_spectre(Checkpoint(filled(shapes)))
        halved = import_spectre(Checkpoint(filled(shapes)), halve_depth=True)
        volume, box = self.expected["input.b"][None], torch.tensor([[[0, 8], [0, 32], [0, 16]]])
        twice = volume.repeat_interleave(2, dim=1)
        with torch.no_grad():
            expected = loaded(WindowedViT, whole, window=[16, 16, 16])(twice, box * torch.tensor([[2], [1], [1]]))
            close(loaded(WindowedViT, halved, window=[8, 16, 16])(volume, box).map, expected.map)

    def test_adapters_are_folded_where_they_are_not(self):
        shapes = small(spectre_shapes(), reduced_radfinder)
        tensors = filled(shapes)
        name = "layers.1.self_attn.q_proj."
        low, high = tensors[f"backbone_text.{name}lora_A"], tensors[f"backbone_text.{name}lora_B"]
        found = import_spectre(Checkpoint(tensors)).text
        close(found.tensors[name + "weight"], tensors[f"backbone_text.{name}weight"] + 4 * high @ low)
        kept = import_spectre(Checkpoint(tensors), lora_folded=True).text
        assert torch.equal(kept.tensors[name + "weight"], tensors[f"backbone_text.{name}weight"])


class TestSpectreNumbers:
    """Against what the public code made of the same weights: its backbone, its combiner, its heads."""

    expected = load_file(HERE / "agreement" / "spectre.safetensors")

    def imported(self):
        return import_spectre(Checkpoint(filled(small(spectre_shapes(), reduced_radfinder))))

    def dense(self, found):
        encoder = loaded(WindowedViT, found, window=[16, 16, 16])
        volume = torch.full((2, 32, 48, 32), 300, dtype=torch.int16)
        box = torch.tensor([[[0, 32], [0, 16], [0, 32]], [[0, 16], [0, 48], [0, 16]]])
        volume[0, :, :16], volume[1, :16, :, :16] = self.expected["input.a"], self.expected["input.b"]
        with torch.no_grad():
            return encoder(volume, box)

    def test_windows_and_combiner(self):
        dense = self.dense(self.imported())
        close(dense.map[1, :, :4, 4:8, :4].permute(1, 2, 3, 0), self.expected["cells.b"])
        windows = dense.view("global").map.permute(0, 2, 3, 4, 1)
        close(windows[0, :, :1], self.expected["combined.a"])
        close(windows[1, :1, :, :1], self.expected["combined.b"])
        close(dense.summary, torch.stack([self.expected["summary.a"], self.expected["summary.b"]]))

    def test_scan_and_text_embeddings(self):
        found = self.imported()
        rows = GlobalReadout(48, parts=("summary", "mean"))(self.dense(found), ReadoutContext(torch.ones(2, 3))).values
        for kind, given in (
            ("image", rows),
            ("text", torch.stack([self.expected["text.input.a"], self.expected["text.input.b"]])),
        ):
            with torch.device("meta"):
                head = Head(HeadConfig(kind="radfinder", hidden=64, width=32), given.shape[1])
                head.layers[4] = torch.nn.Linear(64, 16)
                head.layers[5].direction = torch.nn.Parameter(torch.empty(32, 16))
            prefix = f"encoder.heads.{kind}_heads.main."
            ours = {k.removeprefix(prefix): v for k, v in found.weights.items() if k.startswith(prefix)}
            head.load_state_dict(ours, assign=True)
            name = {"image": "scan", "text": "text"}[kind]
            with torch.no_grad():
                close(head(given), torch.stack([self.expected[f"{name}.a"], self.expected[f"{name}.b"]]))


def hlip_checkpoint(width=48):
    def resize(name, shape):
        match = re.match(r"visual\.trunk\.blocks\.(\d+)\.", name)
        if not name.startswith("visual.") or (match and int(match[1]) >= 6):
            return None
        if name.endswith("patch_embed.proj.weight"):
            return (width, 1, 2, 4, 4)
        if name.endswith("spatial_posemb"):
            return (1, 4, 4, 3, width)
        return tuple({768: width, 2304: 3 * width, 3072: 4 * width, 512: 16}.get(side, side) for side in shape)

    return filled(small(hlip_shapes(), resize))


class TestHlipNumbers:
    """Against what the public code made of the same weights; its rows and columns run the other way."""

    expected = load_file(HERE / "agreement" / "hlip.safetensors")

    def test_cells_and_embedding(self):
        found = import_hlip(Checkpoint(hlip_checkpoint()), heads=4)
        encoder = loaded(ViT, found)
        volume = self.expected["input"].flip(2, 3)
        with torch.no_grad():
            dense = encoder(volume, torch.tensor([[[0, 8], [0, 16], [0, 12]]] * 2))
        close(dense.summary, self.expected["summary"])
        close(dense.map.permute(0, 2, 3, 4, 1).flip(2, 3), self.expected["cells"])
        weight = found.weights["encoder.heads.image_heads.main.layers.0.weight"]
        close(torch.nn.functional.normalize(dense.summary @ weight.t(), dim=-1), self.expected["embedding"])

    def test_own_table_is_the_published_one(self):
        close(PositionTable((4, 4, 3), 48).values, self.expected["table"][0])


def test_ct_fm__numbers_of_monai():
    from monai.networks.nets.segresnet_ds import SegResEncoder

    theirs = SegResEncoder(init_filters=8, blocks_down=(1, 2, 1)).eval()
    tensors = {name: formula(name, value.shape) for name, value in theirs.state_dict().items()}
    theirs.load_state_dict(tensors | {k: torch.tensor(0) for k in tensors if k.endswith("tracked")})
    found = import_ct_fm(Checkpoint(tensors))
    encoder = loaded(SegResNetEncoder, found)
    volume = torch.randint(-1024, 2048, (1, 17, 13, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = encoder(volume, torch.tensor([[[0, 17], [0, 13], [0, 17]]]))
        expected = theirs((volume[:, None].flip(3, 4) + 1024) / 3072)[-1]
    close(dense.map.flip(3, 4), expected)
    assert encoder.axial_mm == 12.0


class TestCommand:
    """``ctgrounding import-weights`` as a user calls it."""

    def run(self, *words):
        main(["import-weights", *map(str, words)])

    def test_radfinder__weights_start_a_model(self, tmp_path, capsys):
        save_file({f"model.{k}": v for k, v in radfinder_checkpoint().items()}, tmp_path / "model.safetensors")
        self.run("--from", "radfinder", "--checkpoint", tmp_path / "model.safetensors", "--output", tmp_path / "out")
        assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
        about = json.loads((tmp_path / "out" / "import.json").read_text())
        assert about["tensors"] == len(radfinder_checkpoint())
        assert len(about["files"]["model.safetensors"]) == 64
        model = yaml.safe_load((tmp_path / "out" / "model.yaml").read_text())["model"]
        assert load_file(model["initial_weights"]).keys() >= {"encoder.image.embed.weight"}
        from transformers import AutoModel

        tower = AutoModel.from_pretrained(model["text"]["init_args"]["model"])
        weight = radfinder_checkpoint()["backbone_text.layers.1.mlp.up_proj.weight"]
        assert torch.equal(tower.layers[1].mlp.up_proj.weight, weight)

    def test_spectre__a_folder_of_pickles(self, tmp_path):
        files = {
            "backbone_image.": "spectre_backbone_vit_large_patch16_128.pt",
            "feature_comb_image.": "spectre_combiner_feature_vit_large.pt",
            "projection_image.": "SigLIP_projection_head_image.pt",
            "projection_text.": "SigLIP_projection_head_text.pt",
        }
        tensors = filled(small(spectre_shapes(), reduced_radfinder))
        (tmp_path / "in").mkdir()
        for prefix, file in files.items():
            part = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            torch.save(part, tmp_path / "in" / file)
        self.run(
            "--from=spectre", "--checkpoint", tmp_path / "in", "--output", tmp_path / "out", "--halve_depth", "true"
        )
        weights = load_file(tmp_path / "out" / "weights.safetensors")
        assert weights["encoder.image.embed.weight"].shape == (48, 2 * 4 * 4)
        half = weights["encoder.image.window_in.weight"][:, 48:]
        assert torch.equal(weights["encoder.image.depth_in.weight"], half)

    def test_hlip__a_training_file_with_optimizer(self, tmp_path):
        state = {f"module.{k}": v for k, v in hlip_checkpoint(width=192).items()}
        held = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
        torch.save(held, tmp_path / "hlip.pt")
        self.run("--from", "hlip", "--checkpoint", tmp_path / "hlip.pt", "--output", tmp_path / "out")
        model = yaml.safe_load((tmp_path / "out" / "model.yaml").read_text())["model"]
        assert (model["image"]["init_args"]["heads"], model["image"]["init_args"]["table"]) == (3, [4, 4, 3])
        assert "not stated" in json.loads((tmp_path / "out" / "import.json").read_text())["licence"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"backbone_image.norm.weight": torch.ones(47)}, r"'backbone_image.norm.weight' has shape \(47,\)"),
            (
                {"backbone_image.extra": torch.ones(1)},
                "1 tensors of the checkpoint are not known .* 'backbone_image.extra'",
            ),
            (
                {"backbone_image.norm.weight": torch.full((48,), torch.nan)},
                "norm.weight' holds numbers",
            ),
            ({"projection_image.last_layer.parametrizations.weight.original0": torch.full((32, 1), 2.0)}, "gain"),
            ({"backbone_image.rope.periods": torch.ones(4)}, "do not grow by the base 1000"),
        ],
    )
    def test_refusals__nothing_is_guessed(self, tmp_path, capsys, change, message):
        save_file(radfinder_checkpoint() | change, tmp_path / "model.safetensors")
        with pytest.raises(SystemExit) as stop:
            self.run(
                "--from", "radfinder", "--checkpoint", tmp_path / "model.safetensors", "--output", tmp_path / "out"
            )
        assert stop.value.code == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "out").exists()

    def test_refusals__files(self, tmp_path, capsys):
        marker = tmp_path / "was run"
        torch.save({"state_dict": Payload(marker)}, tmp_path / "code.pt")
        (tmp_path / "cut.safetensors").write_bytes(b"12345678{")
        (tmp_path / "page.pt").write_text("<html>404</html>")
        (tmp_path / "old.pt").write_bytes(b"\x80\x02R." + bytes(range(90)))
        torch.save({1: torch.ones(2)}, tmp_path / "numbered.pt")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        cases = [
            ("code.pt", "out", "objects beside tensors"),
            ("cut.safetensors", "out", "cannot be read as a checkpoint"),
            ("page.pt", "out", "begins with '<html>404</html>'"),
            ("old.pt", "out", "cannot be read as a checkpoint (IndexError)"),
            ("numbered.pt", "out", "is no state dict"),
            ("none.pt", "out", "There is no checkpoint"),
            ("cut.safetensors", "full", "is not empty"),
        ]
        for file, output, message in cases:
            with pytest.raises(SystemExit):
                self.run("--from", "ct_fm", "--checkpoint", tmp_path / file, "--output", tmp_path / output)
            assert message in capsys.readouterr().err.replace("\n", " ")
        assert not marker.exists()
        with pytest.raises(SystemExit):
            self.run("--from", "hlip", "--checkpoint", "x", "--output", tmp_path / "out", "--halve_depth", "true")
        assert "--halve_depth is for spectre" in capsys.readouterr().err


class Payload:
    """A pickle that would run code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)
