"""Real scans through ingest, a short fit, predict and locate, as their owner would run them."""

import csv
import shutil
from pathlib import Path

import pytest

import ctgrounding
from ctgrounding.cli import main
from ctgrounding.commands.locate import locate
from ctgrounding.evaluation.saved import SavedEmbeddings

pytestmark = pytest.mark.slow

CARD = """
name: real
root: {root}
scans: {{table: scans.csv, series: series, organs: organs, split: split}}
reports: {{table: reports.csv, text: report}}
ids: keep
"""
REPORTS = {
    "crlm": "FINDINGS: Hypodense lesion in the liver measuring 18 mm (series 2, image 60). The spleen is normal.",
    "ts": "FINDINGS: The liver is unremarkable. There is a cyst in the left kidney. The aorta is normal.",
}


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def hospital(shared_data: Path, crlm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospital")
    for name in ("example_ct.nii.gz", "example_seg_v2.nii.gz"):
        shutil.copy(shared_data / "totalsegmentator_example" / name, root / name)
    (root / "crlm").mkdir()
    for path in filter(Path.is_file, crlm_folder.rglob("*")):
        shutil.copy(path, root / "crlm" / path.name)
    scans = [("crlm", "crlm", "2", ""), ("ts", "example_ct.nii.gz", "", "example_seg_v2.nii.gz")]
    names = ("scan_id", "study_id", "patient_id", "path", "series", "organs", "split")
    rows = [dict(zip(names, (key, key, key, *rest, "train"), strict=True)) for key, *rest in scans]
    write_table(root / "scans.csv", rows)
    write_table(root / "reports.csv", [{"study_id": key, "report": text} for key, text in REPORTS.items()])
    (root / "card.yaml").write_text(CARD.format(root=root), encoding="utf-8")
    return root


def test_ingest_fit_predict_locate(hospital: Path, repository: Path, tmp_path: Path) -> None:
    run, shards = tmp_path / "run", tmp_path / "shards"
    main(["ingest", "--card", str(hospital / "card.yaml"), "--output", str(shards), "--spacing_mm", "[8, 8, 8]",
          "--workers", "1"])  # fmt: skip
    common = [
        "--config", str(repository / "configs/pretrain/demo.yaml"), "--trainer.default_root_dir", str(run),
        "--data.shards", str(shards), "--data.label_names", "null", "--model.evaluators.findings", "null",
        "--model.evaluators.abnormality", "null",
        "--data.batch_size", "2", "--data.num_workers", "0", "--data.predict_split", "train",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    main(["fit", *common, "--trainer.max_steps", "3"])
    main(["predict", *common])
    saved = SavedEmbeddings(run / "embeddings_train")
    assert sorted(Path(scan).name for scan in saved.scans)
    for scan in (hospital / "example_ct.nii.gz", hospital / "crlm"):
        found = locate("a cyst in the left kidney", model=run, scan=str(scan), output=tmp_path / f"{scan.name}.png")
        assert found.probability.sum() == pytest.approx(1.0)
        assert found.slice is not None
        assert abs(found.slice.depth_mm - found.depth_mm) < 24
        assert (tmp_path / f"{scan.name}.png").read_bytes().startswith(b"\x89PNG")
    vector = ctgrounding.load(run).encode_scan(hospital / "crlm")
    assert vector.norm().item() == pytest.approx(1.0, abs=1e-5)
