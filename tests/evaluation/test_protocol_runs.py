"""A protocol from scans and from saved embeddings says the same; wrong input gets one sentence."""

import json

import pytest
import tiny_run

from ctgrounding.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
EVALUATION = "ctgrounding.evaluation"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    evaluators = {
        "retrieval": {"class_path": f"{EVALUATION}.ReportRetrieval"},
        "findings": {"class_path": f"{EVALUATION}.ZeroShotFindings", "init_args": {"questions": "QUESTIONS"}},
        "snippets": {
            "class_path": f"{EVALUATION}.SnippetDepth",
            "init_args": {"image_head": "snippet", "text_head": "snippet"},
        },
    }
    file = tiny_run.write_run(folder, scans=30, trainer={"max_epochs": 1}, model={"evaluators": evaluators})
    file.write_text(file.read_text().replace("questions: QUESTIONS", f"questions: {folder / 'questions.yaml'}"))
    main(["fit", "--config", str(file)])
    return folder


def numbers(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_saved_embeddings_give_what_test_gives(trained, capsys):
    config = ["--config", str(trained / "run.yaml")]
    main(["test", *config, "--protocol", "strict", "--model.untrained_baseline", "false"])
    from_scans = numbers(trained / "protocols" / "strict")
    assert not (trained / "metrics.json").exists()
    main(["predict", *config])
    main(["predict", *config, "--data.predict_split", "val"])
    capsys.readouterr()
    words = ["evaluate", str(trained / "embeddings"), "--protocol", "strict", "--output", str(trained / "saved")]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "chooses thresholds on validation patients" in capsys.readouterr().err
    main([*words, "--validation", str(trained / "embeddings_val")])
    said = capsys.readouterr().out
    assert "strict" in said
    assert "wrote" in said
    saved = numbers(trained / "saved")
    shared = {name for name in saved if "organ_prior" not in name}
    assert {name for name in from_scans if name.startswith("strict/") and "organ_prior" not in name} == shared
    for name in shared:
        assert saved[name] == pytest.approx(from_scans[name], abs=1e-5, nan_ok=True), name
    swapped = ["evaluate", str(trained / "embeddings_val"), "--protocol", "strict"]
    main([*swapped, "--validation", str(trained / "embeddings")])
    of_val = json.loads((trained / "splits" / "val" / "protocols" / "strict" / "results.json").read_text())
    assert of_val["about"]["split"] == "val"
    assert numbers(trained / "protocols" / "strict") == from_scans
    page = (trained / "saved" / "report.html").read_text()
    assert "protocol Strict" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_wrong_input_gets_one_sentence(trained, capsys):
    config = ["test", "--config", str(trained / "run.yaml"), "--protocol"]
    for words, expected in (
        ([*config, "clip"], "There is no protocol 'clip'"),
        ([*config, "colipri"], "needs a list of scans with --scan_list"),
        ([*config, "merlin"], "Nothing of protocol merlin can be evaluated"),
        (["evaluate", str(trained / "nothing"), "--protocol", "strict"], "holds no finished embeddings"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert expected in said
        assert "Traceback" not in said
