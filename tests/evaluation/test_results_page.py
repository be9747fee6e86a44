"""Files of a run's results and the page made from them."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from evaluated_world import batch_of, random_scans
from sample_run import made_up_run

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation import Cohort
from ctgrounding.evaluation.examples import CoronalView, coronal_of, coronal_view, packed_image, unpacked_image
from ctgrounding.evaluation.page import render, write_page
from ctgrounding.evaluation.page.by_organ import abnormality
from ctgrounding.evaluation.page.charts import Axis
from ctgrounding.evaluation.pictures import depth_picture, png
from ctgrounding.evaluation.results import RunResults, evaluated

VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_up_run(tmp_path_factory.mktemp("run"), scans=40)


@pytest.fixture(scope="module")
def page(run):
    return render(run)


class Tags(HTMLParser):
    """Checks that elements close in order and keeps attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_no_network(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    links = [value for name, value in tags.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in page
    assert not re.search(r"@import|url\((?!data:)", page)


def test_page_shows_numbers_with_baselines_pool_and_pictures(run, page):
    metrics = run.metrics
    for shown in (
        f"{metrics['snippet_localization/mae_mm']:.1f}",
        f"middle of the scan {metrics['snippet_localization/middle_mae_mm']:.1f}",
        f"untrained model {metrics['snippet_localization/untrained_mae_mm']:.1f}",
        f"organ prior {metrics['snippet_localization/organ_prior_mae_mm']:.1f}",
        f"pool of {metrics['report_to_scan/pool']:.0f}",
        f"global readout gives {metrics['findings/global_auroc_macro']:.3f}",
        "Stated size under 20 mm",
    ):
        assert shown in page
    assert page.count("data:image/png;base64,") == 12
    for shown in (
        f"Calibration, fitted on {metrics['findings/threshold_patients']:.0f} validation patients",
        f"f1 {metrics['findings/f1_macro']:.3f}",
        "Scan to scan",
        "as the paper",
        "Retrieval in pools",
        "Organ abnormality",
        f"chance {metrics['organ_pointing/chance_top1']:.1%}",
        "within 24 mm",
    ):
        assert shown in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_thresholds_are_spoken_of_only_where_there_are_some(run):
    section = next(part for part in run.sections.values() if "organs" in part and "findings" in part)
    without = {name: value for name, value in run.metrics.items() if "f1_" not in name}
    assert "thresholds of validation patients" in abnormality(section, run.metrics)
    assert "thresholds of validation patients" not in abnormality(section, without)


def test_text_of_reports_is_escaped(run):
    nasty = "<script>alert('x')</script> & \"quotes\""
    sections = json.loads(json.dumps(run.sections))
    sections["retrieval"]["examples"][0]["report"] = nasty
    sections["snippets"]["examples"][0]["text"] = nasty
    page = render(RunResults(run.metrics, sections, {**run.about, "title": nasty, "config": nasty}))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_written_and_read_again(run, tmp_path):
    run.write(tmp_path / "folder")
    again = RunResults.read(tmp_path / "folder")
    assert again.metrics == pytest.approx(run.metrics, nan_ok=True)
    assert json.loads((tmp_path / "folder" / "metrics.json").read_text()) == pytest.approx(run.metrics)
    assert write_page(tmp_path / "folder").read_text() == render(again)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "metrics.json",
        "report.html",
        "results.json",
    ]


def test_values_that_json_cannot_hold(tmp_path):
    values = {"nan": math.nan, "array": np.array([1.0, math.inf]), "tensor": torch.tensor(3), "path": tmp_path}
    RunResults({"x": math.nan, "y": 1.0}, {"a": values}, {}).write(tmp_path)
    again = RunResults.read(tmp_path)
    assert math.isnan(again.metrics["x"])
    assert again.sections["a"] == {"nan": None, "array": [1.0, None], "tensor": 3, "path": str(tmp_path)}


def test_results_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        RunResults.read(tmp_path)
    for text in ("{", "[]", '{"metrics": {}}', '{"metrics": {"a": []}, "sections": {}, "about": {}}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ConfigError, match="is damaged"):
            RunResults.read(tmp_path)


def test_two_evaluators_of_one_number_are_refused():
    with pytest.raises(ConfigError, match="second is 'again'"):
        evaluated({"cohort": Cohort(), "again": Cohort()})


def test_page_of_nothing():
    page = render(evaluated({"cohort": Cohort()}))
    assert "0 patients" in page


def test_page_of_evaluators_without_cases(tmp_path):
    page = render(made_up_run(tmp_path, scans=0))
    assert "No evaluated scan has a report" in page
    assert "No finding has enough" in page
    assert "No snippet lies" in page
    assert "No evaluated scan has an organ map" in page
    assert "Too few scans to fill a pool" in page
    assert "Too few scans to find others" in page
    assert "No organ has enough abnormal" in page
    assert "No statement speaks of an organ" in page


def test_coronal_view_is_the_middle_slab_of_the_real_voxels():
    volume = np.full((10, 40, 12), -1024, np.int16)
    volume[2:8, 10:30, 1:11] = 50
    volume[2:8, 15:25, 1:11] = 100
    view = coronal_view(volume, [[2, 8], [10, 30], [1, 11]], [3.0, 2.0, 1.0], origin_z_mm=-7.0)
    assert view.hu.shape == (6, 10)
    assert (view.hu == 100).all()
    assert view.low_mm == -1.0
    again = unpacked_image(json.loads(json.dumps(packed_image(view))))
    assert (again.hu == view.hu).all()
    assert (again.spacing_mm, again.low_mm) == (view.spacing_mm, view.low_mm)


def test_a_large_view_is_thinned_and_keeps_its_size_in_mm():
    view = coronal_view(np.zeros((700, 4, 330), np.int16), [[0, 700], [0, 4], [0, 330]], [1.0, 1.0, 0.5], 0.0)
    assert view.hu.shape == (234, 165)
    assert view.spacing_mm == (3.0, 1.0)


@pytest.mark.parametrize("shape", [(30, 20), (10, 60)])
def test_picture_puts_the_patients_right_on_the_left_and_the_head_up(shape):
    hu = np.full(shape, -1000, np.int16)
    hu[-3:, -3:] = 1000  # superior and right: both axes grow that way
    view = CoronalView(hu, (5.0, 5.0), 0.0)
    depth = np.arange(0.0, 5.0 * shape[0], 12.0)
    figure = depth_picture(view, depth, np.full(len(depth), 1 / len(depth)), 24.0, (20.0, 26.0), "a bright corner " * 9)
    data = png(figure)
    assert data.startswith(b"\x89PNG")
    body, curve = figure.axes
    canvas = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    x0, y0, x1, y1 = (int(v) for v in body.get_window_extent().extents)
    inside = canvas[::-1][y0 + 4 : y1 - 4, x0 + 4 : x1 - 4].sum(-1)
    assert inside[-4:, :4].min() > 600
    assert inside[-4:, -4:].max() < 100
    assert body.get_position().y0 == pytest.approx(curve.get_position().y0)
    assert body.get_ylim() == curve.get_ylim()
    extent = body.get_window_extent()
    assert extent.height / extent.width == pytest.approx(shape[0] / shape[1], rel=0.02)


def test_ticks_are_round_and_inside():
    assert Axis("", 0.0, 1.0).ticks() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Axis("", 0.0, 118.0).ticks() == [0.0, 50.0, 100.0]
    assert Axis("", 1.0, 116.0, is_log=True).ticks() == [1.0, 3.0, 10.0, 30.0, 100.0]
    assert Axis("", 2.0, 2.0).ticks() == [2.0]


def test_a_view_without_volumes():

    _, batch = batch_of(random_scans(3, questions=1))
    assert coronal_of(batch, 2) is not None
    batch["volume"] = []
    assert coronal_of(batch, 2) is None
    assert packed_image(None) is None
