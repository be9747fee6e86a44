"""What a trained model says to callers who give it something else than it takes."""

import sys

import numpy as np
import pytest
import tiny_run
import torch
import yaml

from ctgrounding.errors import ConfigError, ScanError
from ctgrounding.geometry import Grid
from ctgrounding.ingest import Scan
from ctgrounding.model import Model, Use, _locating, build
from ctgrounding.objectives import SnippetLocalization


@pytest.fixture(scope="module")
def sections():
    return yaml.safe_load(tiny_run.MODEL)


@pytest.fixture(scope="module")
def model(sections):
    torch.manual_seed(0)
    return Model(build(sections), None, {"model": sections, "data": {}})


@pytest.fixture(scope="module")
def scan(model):
    shape, spacing_mm = (12, 16, 16), model.spacing_mm
    image_hu = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    box = tuple((0, size) for size in shape)
    return Scan(image_hu, Grid(shape, spacing_mm, (0.0, 0.0, 0.0)), box, None, None)


@pytest.mark.parametrize("text", [None, 3, b"cyst", ["cyst", None], [float("nan")], ["cyst", ["mass"]]])
def test_a_text_that_is_no_string_is_refused_by_its_type(model, text):
    with pytest.raises(ConfigError, match=r"A text is a string, but this is of type (NoneType|int|float|list)"):
        model.encode_text(text)


@pytest.mark.parametrize("given", [np.zeros((4, 4, 4)), torch.zeros(4, 4, 4), ["a.nii.gz", "b.nii.gz"], None])
def test_a_scan_that_is_no_path_is_refused_by_its_type(model, given):
    with pytest.raises(ScanError, match=r"but this is of type (ndarray|Tensor|list|NoneType). Give one path"):
        model.encode_scan(given)


def test_a_scan_has_a_vector_in_heads_of_the_global_readout_alone(model, scan):
    assert model.encode_scan(scan, head="disease").norm().item() == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"'organ' reads 'organ', but a .* Name one of \['disease', 'main'\]"):
        model.encode_scan(scan, head="organ")
    with pytest.raises(ConfigError, match="There is no image head 'nope'"):
        model.encode_scan(scan, head="nope")


def test_a_model_of_a_class_that_cannot_be_imported_says_where_to_put_it(sections):
    assert "my_own_package" not in sys.modules
    own = {"image": {"class_path": "my_own_package.TwoScales", "init_args": {}}}
    with pytest.raises(ConfigError, match=r"model.image: .*'my_own_package.TwoScales'.* on PYTHONPATH"):
        build({**sections, **own})


def test_a_model_with_an_unknown_argument_is_refused_in_a_sentence(sections):
    wrong = {**sections["image"], "init_args": {"widht": 3}}
    with pytest.raises(ConfigError, match=r"model.image: .*Option 'widht' is not accepted. Correct it there"):
        build({**sections, "image": wrong})


class Sharper(SnippetLocalization):
    """An objective of somebody's own."""


@pytest.mark.parametrize("name", ["ctgrounding.objectives.SnippetLocalization", "test_model.Sharper"])
def test_a_model_of_ones_own_localization_can_locate(name):
    objectives = {"global": None, "own": {"class_path": name, "init_args": {"image_head": "a", "tau": 0.2}}}
    found = _locating({"objectives": objectives})
    assert (found.image_head, found.text_head, found.temperature) == ("a", Use().text_head, 0.2)
    assert _locating({"objectives": {"own": {"class_path": "test_model.Model"}}}) is None
