"""The demo, as a newcomer runs it, and the bars that it must meet."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def run(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(["make", "demo", f"RUN={folder}"], cwd=repository, env=environment, check=True)
    return folder


@pytest.fixture(scope="module")
def metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def test_demo__enough_patients_and_reports(metrics: dict[str, float]) -> None:
    assert metrics["patients"] >= 100
    assert metrics["report_to_scan/pool"] >= 64


def test_demo__finds_the_depth_a_snippet_speaks_of(metrics: dict[str, float]) -> None:
    error = metrics["snippet_localization/mae_mm"]
    baselines = [metrics[f"snippet_localization/{name}_mae_mm"] for name in ("middle", "random", "untrained")]
    assert error <= 0.54 * min(baselines)
    assert error < metrics["snippet_localization/organ_prior_mae_mm"]


def test_demo__finds_the_scan_of_a_report(metrics: dict[str, float]) -> None:
    assert metrics["report_to_scan/r_at_1"] >= 8 / metrics["report_to_scan/pool"]


def test_demo__tells_findings_in_organs(metrics: dict[str, float]) -> None:
    assert metrics["findings/classes"] >= 10
    assert metrics["findings/auroc_macro"] >= 0.75
    assert 0 <= metrics["findings/auroc_ci_low"] <= metrics["findings/auroc_macro"]
    assert 0 <= metrics["findings/global_auroc_macro"] <= 1


def test_demo__tells_organs(metrics: dict[str, float]) -> None:
    assert metrics["organ_recognition/top1"] >= 0.90


def test_demo__page_and_locate(run: Path, repository: Path, tmp_path: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    from ctgrounding import load

    model = load(run)
    scan = next((run / "patients" / "nifti").rglob("*.nii.gz"))
    found = model.locate(scan, "the liver")
    assert found.depths_mm[0] <= found.depth_mm <= found.depths_mm[-1]
    assert model.encode_scan(scan).shape == model.encode_text("No abnormality.")[0].shape
