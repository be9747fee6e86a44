"""Scan-to-scan retrieval and retrieval in pools against plain loops over all scores."""

import numpy as np
import pytest
import torch
from evaluated_world import WIDTH, Scan, batch_of, vector

from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation import PooledRetrieval, Resampling, ScanRetrieval, Selection
from ctgrounding.evaluation.scan_likeness import DEFINITIONS

FEW = Resampling(resamples=20)


def made_up(count, seed, questions=4, levels=4):
    """Scans whose unit embeddings have four entries of a half, so that scores are exact and many are equal."""
    rng = np.random.default_rng(seed)
    scans = []
    for place in range(count):
        whole = torch.zeros(WIDTH)
        whole[:levels] = torch.from_numpy(rng.choice([-1.0, 1.0], levels)).float()
        labels = tuple(rng.choice([-1, 0, 0, 1], questions).tolist())
        scans.append(Scan(f"s{place:03d}", f"p{place // 2}", whole=whole, labels=labels, report=f"r{place}"))
    return scans


def fed(evaluator, scans, cut=7):
    for start in range(0, len(scans), cut):
        evaluator.update(*batch_of(scans[start : start + cut]))
    return evaluator


def ranked(scans, query, candidates):
    """Candidates by falling cosine, equal ones by name."""
    unit = [torch.nn.functional.normalize(scan.whole, dim=0) for scan in scans]
    return sorted(candidates, key=lambda other: (-round(float(unit[query] @ unit[other]), 5), scans[other].name))


def by_loop(name, scans, k):
    labels = np.array([scan.labels for scan in scans]) == 1
    everyone = range(len(scans))
    sick = [place for place in everyone if labels[place].any()]
    worth = []
    if name == "ct_clip":
        for query in everyone:
            found = ranked(scans, query, sick)[:k]
            worth.append(
                np.mean([(labels[query] & labels[f]).sum() / (labels[query] | labels[f]).sum() for f in found])
            )
    elif name == "spectre":
        for query in everyone:
            alike = [o for o in everyone if o != query and (labels[o] == labels[query]).all()]
            if alike:
                found = ranked(scans, query, [o for o in everyone if o != query])
                hits = [place for place, other in enumerate(found[:k], 1) if other in alike]
                worth.append(sum((n + 1) / place for n, place in enumerate(hits)) / min(len(alike), k))
    else:
        for query in sick:
            found = ranked(scans, query, [o for o in sick if o != query])
            hits = [place for place, o in enumerate(found[:k], 1) if (labels[o] & labels[query]).any()]
            worth.append(sum((n + 1) / place for n, place in enumerate(hits)) / k)
    return float(np.mean(worth))


@pytest.mark.parametrize("name", list(DEFINITIONS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_definitions_equal_loops_with_many_ties(name, seed):
    scans = made_up(23, seed)
    numbers = fed(ScanRetrieval((name,), resampling=FEW), scans).compute()
    measure = DEFINITIONS[name].measure
    for k in (1, 5, 10):
        key = f"scan_to_scan/{name}/{measure}_at_{k}"
        assert (key in numbers) == (k in DEFINITIONS[name].k)
        if key in numbers:
            assert numbers[key] == pytest.approx(by_loop(name, scans, k), abs=1e-9)
    assert f"scan_to_scan/{name}/{measure}_at_50" not in numbers


def test_ct_clips_program_prints_the_mean_up_to_k():
    numbers = fed(ScanRetrieval(("ct_clip",), resampling=FEW), made_up(30, 3)).compute()
    single = [numbers[f"scan_to_scan/ct_clip/jaccard_at_{k}"] for k in (1, 5, 10)]
    printed = [numbers[f"scan_to_scan/ct_clip/jaccard_at_{k}_as_printed"] for k in (1, 5, 10)]
    assert printed == pytest.approx([np.mean(single[: place + 1]) for place in range(3)])


def test_labels_and_scans_can_be_chosen():
    scans = made_up(20, 4)
    for place, scan in enumerate(scans):
        scan.study = f"study{place // 2}"
    evaluator = ScanRetrieval(("radfinder",), labels=("b", "d"), selection=Selection("first"), resampling=FEW)
    evaluator.use_label_names(["a", "b", "c", "d"])
    kept = [Scan(s.name, s.patient, whole=s.whole, labels=(s.labels[1], s.labels[3])) for s in scans[::2]]
    numbers = fed(evaluator, scans).compute()
    assert numbers["scan_to_scan/radfinder/pool"] == sum(1 in scan.labels for scan in kept)
    if "scan_to_scan/radfinder/map_at_5" in numbers:
        assert numbers["scan_to_scan/radfinder/map_at_5"] == pytest.approx(by_loop("radfinder", kept, 5))
    with pytest.raises(ConfigError, match="label 'b'"):
        evaluator.use_label_names(["a"])
    with pytest.raises(BatchError, match="named"):
        fed(ScanRetrieval(labels=("a",)), scans).compute()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_scans(count):
    scans = [Scan(f"s{i}", "p", labels=(1,)) for i in range(count)]
    numbers = fed(ScanRetrieval(resampling=FEW), scans).compute()
    assert numbers["scan_to_scan/spectre/pool"] == count
    assert all(np.isfinite(value) for value in numbers.values())


@pytest.mark.parametrize("labels", [(), (-1, -1)])
def test_scans_without_a_label_are_not_all_alike(labels):
    scans = made_up(12, 5)
    for scan in scans:
        scan.labels = labels
    numbers = fed(ScanRetrieval(resampling=FEW), scans).compute()
    assert numbers == {f"scan_to_scan/{name}/pool": 0.0 for name in DEFINITIONS}


def test_an_unknown_definition_is_named():
    with pytest.raises(ConfigError, match="'clip'"):
        ScanRetrieval(("clip",))


def pools_by_loop(images, texts, size, k, repeats, seed):
    shares = []
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        order = np.arange(len(images))
        rng.shuffle(order)
        hits = []
        for start in range(0, len(order) - size + 1, size):
            pool = order[start : start + size]
            for own in pool:
                scores = np.round(images[pool] @ texts[own], 9)
                mine = np.round(images[own] @ texts[own], 9)
                above, tied = (scores > mine).sum(), (scores == mine).sum() - 1
                hits.append(min(1.0, max(0, k - above) / (tied + 1)))
        shares.append(np.mean(hits))
    return np.array(shares)


def test_pools_equal_a_loop():
    rng = np.random.default_rng(5)
    scans = [
        Scan(f"s{i:03d}", f"p{i}", f"r{i}", torch.from_numpy(rng.normal(size=WIDTH)).float() + vector(f"r{i}"))
        for i in range(21)
    ]
    evaluator = fed(PooledRetrieval(pools=(4, 8, 64), k=(1, 3), repeats=7, seed=1), scans)
    numbers = evaluator.compute()
    images = np.stack([torch.nn.functional.normalize(s.whole, dim=0).double().numpy() for s in scans])
    texts = np.stack([torch.nn.functional.normalize(vector(s.report), dim=0).double().numpy() for s in scans])
    for size in (4, 8):
        for k in (1, 3):
            shares = pools_by_loop(images, texts, size, k, 7, 1)
            stem = f"pooled_retrieval/report_to_scan/r_at_{k}_of_{size}"
            assert numbers[stem] == pytest.approx(shares.mean())
            assert numbers[f"{stem}_repeats_low"] == pytest.approx(np.quantile(shares, 0.025))
    assert not any("of_64" in name for name in numbers)
    assert numbers["pooled_retrieval/scans"] == 21


def test_level_scores_share_the_places_and_duplicates_can_stay():
    scans = [Scan(f"s{i}", f"p{i}", "same report", vector("same")) for i in range(16)]
    kept = fed(PooledRetrieval(pools=(4,), repeats=3, distinct_reports=False), scans).compute()
    assert kept["pooled_retrieval/report_to_scan/r_at_1_of_4"] == pytest.approx(0.25)
    assert fed(PooledRetrieval(pools=(4,)), scans).compute() == {"pooled_retrieval/scans": 1.0}


def test_pools_refuse_nonsense():
    with pytest.raises(ConfigError, match="positive"):
        PooledRetrieval(pools=(0,))
    broken = [Scan(f"s{i}", "p", f"r{i}", torch.full((WIDTH,), torch.nan)) for i in range(4)]
    with pytest.raises(BatchError, match="not finite"):
        fed(PooledRetrieval(pools=(2,)), broken).compute()
