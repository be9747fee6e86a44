"""What the ranks of the exactness tests do; importable, so that other processes find it."""

import json

from evaluated_world import batch_of, random_scans

from ctgrounding import distributed
from ctgrounding.evaluation import (
    Cohort,
    OrganAbnormality,
    OrganPointing,
    OrganRecognition,
    PooledRetrieval,
    ReportRetrieval,
    Resampling,
    ScanRetrieval,
    Selection,
    SnippetDepth,
    ZeroShotFindings,
)
from ctgrounding.evaluation.asked import FindingSet, Judging, Prompts
from ctgrounding.evaluation.prompted_findings import PromptedFindings

SCANS, OTHERS = 37, 13
FEW = Resampling(resamples=20)
NAMES = ("cyst", "stone", "ascites")


def evaluators(questions):
    prompts = Prompts(("There is {finding}.", "{finding} seen."), ("No {finding}.", "{finding} not seen."))
    judging = Judging("youden", "validation", ("f1", "balanced_accuracy"))
    made = {
        "cohort": Cohort(),
        "retrieval": ReportRetrieval(resampling=FEW),
        "grouped": ReportRetrieval(duplicates="group", selection=Selection("first"), resampling=FEW),
        "findings": ZeroShotFindings(questions, min_cases=2, resampling=FEW),
        "prompted": PromptedFindings(FindingSet(), prompts, judging=judging, resampling=FEW),
        "snippets": SnippetDepth(resampling=FEW, examples=4),
        "organs": OrganRecognition(resampling=FEW),
        "abnormal": OrganAbnormality(questions, min_cases=1, resampling=FEW),
        "pointing": OrganPointing(resampling=FEW),
        "scans": ScanRetrieval(resampling=FEW),
        "pools": PooledRetrieval(pools=(4, 8), repeats=5),
    }
    for evaluator in made.values():
        evaluator.use_label_names(NAMES)
    return made


def answers(questions, size, order):
    """Numbers and results of all evaluators, each rank feeding its share in batches of ``size``, the last uneven."""
    made = evaluators(questions)
    feed(made, random_scans(SCANS, questions=3), size, order, as_validation=False)
    others = random_scans(OTHERS, questions=3, seed=9)
    for place, scan in enumerate(others):
        scan.name, scan.patient = f"other{place}", f"other{place}"
    feed(made, others, size, order, as_validation=True)
    return [(role, json.dumps([item.compute(), item.results()])) for role, item in made.items()]


def feed(made, scans, size, order, as_validation):
    mine = scans[distributed.rank() :: distributed.world_size()][::order]
    for start in range(0, len(mine), size):
        for evaluator in made.values():
            encoded, batch = batch_of(mine[start : start + size], evaluator.fixed_texts())
            if not as_validation:
                evaluator.update(encoded, batch)
            elif evaluator.wants_validation:
                evaluator.update_validation(encoded, batch)
