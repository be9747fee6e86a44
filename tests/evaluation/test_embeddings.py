"""Evaluators fed from saved embeddings say exactly what they said of the encoded batches."""

import json
from functools import partial

import pytest
import torch
from evaluated_world import batch_of, random_scans

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation import (
    Cohort,
    OrganRecognition,
    Reads,
    ReportRetrieval,
    Resampling,
    SnippetDepth,
    ZeroShotFindings,
)
from ctgrounding.evaluation.embeddings import EmbeddingWriter
from ctgrounding.evaluation.saved import SavedEmbeddings
from ctgrounding.testing.ranks import simulate_ranks

FEW = Resampling(resamples=20)


def evaluators(folder):
    path = folder / "toy.yaml"
    path.write_text("cyst: {positive: ['A cyst.'], negative: ['No cyst.'], organs: [spleen]}\n")
    return {
        "cohort": Cohort(),
        "retrieval": ReportRetrieval(resampling=FEW),
        "findings": ZeroShotFindings(str(path), min_cases=2, resampling=FEW),
        "snippets": SnippetDepth(resampling=FEW, examples=0),
        "organs": OrganRecognition(resampling=FEW),
    }


def encoded_for(items, scans):
    pairs = {role: batch_of(scans, tuple(item.fixed_texts())) for role, item in items.items()}
    batch = pairs["cohort"][1]
    return {role: encoded for role, (encoded, _) in pairs.items()}, batch


def answers(items):
    return [(item.compute(), json.dumps(item.results())) for item in items.values()]


def test_saved_embeddings_give_the_same_numbers(tmp_path):
    items, scans = evaluators(tmp_path), random_scans(17, questions=1)
    writer = EmbeddingWriter(tmp_path / "saved", items)
    for start in range(0, 17, 5):
        encoded, batch = encoded_for(items, scans[start : start + 5])
        writer.add(encoded, batch)
        for role, item in items.items():
            item.update(encoded[role], batch)
    writer.close()
    expected = answers(items)
    again = evaluators(tmp_path)
    saved = SavedEmbeddings(tmp_path / "saved")
    saved.feed(again)
    assert answers(again) == expected
    assert saved.scans == sorted(f"toy/{scan.name}" for scan in scans)
    whole = torch.nn.functional.normalize(scans[7].whole, dim=0)
    assert torch.equal(saved.vector(f"toy/{scans[7].name}"), whole)


def write(folder, items, scans, ranks):
    def work(rank: int) -> None:
        writer = EmbeddingWriter(folder, items)
        for scan in scans[rank::ranks]:
            writer.add(*encoded_for(items, [scan]))
        writer.close()

    simulate_ranks(ranks, work)


def test_written_and_read_by_different_numbers_of_ranks(tmp_path):
    scans = random_scans(11, questions=1)
    write(tmp_path / "three", evaluators(tmp_path), scans, ranks=3)
    write(tmp_path / "one", evaluators(tmp_path), scans, ranks=1)

    def numbers(folder, rank: int):
        items = evaluators(tmp_path)
        SavedEmbeddings(folder).feed(items)
        return answers(items)

    (expected,) = simulate_ranks(1, partial(numbers, tmp_path / "one"))
    for found in simulate_ranks(2, partial(numbers, tmp_path / "three")):
        assert found == expected


def test_what_was_not_saved_is_named(tmp_path):
    write(
        tmp_path / "saved", {"cohort": Cohort(), "retrieval": ReportRetrieval()}, random_scans(3, questions=1), ranks=1
    )
    saved = SavedEmbeddings(tmp_path / "saved")
    with pytest.raises(ConfigError, match="'organs' had other texts"):
        saved.feed({"organs": OrganRecognition()})
    items = {"cohort": Cohort(), "organs": OrganRecognition()}
    write(tmp_path / "organs", items, random_scans(3, questions=1), ranks=1)
    with pytest.raises(ConfigError, match="'organs' were not saved through text head 'local'"):
        SavedEmbeddings(tmp_path / "organs").feed({"organs": OrganRecognition(text_head="local")})
    with pytest.raises(ConfigError, match=r"'depth' through head 'local' was not saved.*global through main"):
        saved.feed({"retrieval": ReportRetrieval(), "snippets": SnippetDepth(text_head="main")})
    with pytest.raises(ConfigError, match="Scan 'toy/nobody' is not among the 3"):
        saved.vector("toy/nobody")
    with pytest.raises(ConfigError, match=r"no saved row for each scan\. Saved heads of it: none\."):
        saved.vector(saved.scans[0], "depth")
    with pytest.raises(ConfigError, match=r"'global' through head 'nope' has no .* Saved heads of it: main\."):
        saved.vector(saved.scans[0], "global", "nope")
    encoded, _ = next(saved.batches())
    with pytest.raises(ConfigError, match="no heads"):
        encoded.heads.image("main", torch.zeros(1))
    with pytest.raises(ConfigError, match="no logit"):
        encoded.logit("main")
    with pytest.raises(ConfigError, match="Text head 'local' was not saved"):
        encoded.texts(torch.zeros(0, dtype=torch.int64), "local")


def test_embeddings_of_another_model_are_refused(tmp_path):
    writer = EmbeddingWriter(tmp_path / "saved", {"retrieval": ReportRetrieval()})
    encoded, batch = batch_of(random_scans(3, questions=1))
    writer.add({"retrieval": encoded}, batch)
    writer.close()
    place = {text: row for row, text in enumerate(batch["texts"])}

    def encode(texts, head, moved=0.0):
        rows = encoded.texts(torch.tensor([place[text] for text in texts]), head)
        return torch.nn.functional.normalize(rows + moved * torch.randn(rows.shape), dim=1)

    saved = SavedEmbeddings(tmp_path / "saved")
    saved.check_made_by(encode)
    saved.check_made_by(partial(encode, moved=0.01))
    with pytest.raises(ConfigError, match="are of another model"):
        saved.check_made_by(partial(encode, moved=3.0))
    with pytest.raises(ConfigError, match="are of another model"):
        saved.check_made_by(lambda texts, head: torch.ones(len(texts), 2))


def test_further_embeddings_can_be_saved(tmp_path):
    writer = EmbeddingWriter(tmp_path / "saved", {"cohort": Cohort()}, Reads(frozenset({("depth", "local")})))
    scans = random_scans(2, questions=1)
    writer.add(*encoded_for({"cohort": Cohort()}, scans))
    writer.close()
    rows = SavedEmbeddings(tmp_path / "saved").vector(f"toy/{scans[1].name}", "depth", "local")
    assert rows.ndim == 2


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match="Nothing says"):
        EmbeddingWriter(tmp_path, {"cohort": Cohort()})
    with pytest.raises(ConfigError, match="no finished embeddings"):
        SavedEmbeddings(tmp_path)
    items = {"retrieval": ReportRetrieval()}
    EmbeddingWriter(tmp_path, items).close()
    with pytest.raises(ConfigError, match="already"):
        EmbeddingWriter(tmp_path, items)
    assert SavedEmbeddings(tmp_path).scans == []
