"""Numbers that come with their protocol: evaluators, saved embeddings, results and the page that shows them."""

from ctgrounding.evaluation.base import Evaluator, Reads, Resampling
from ctgrounding.evaluation.cohort import Cohort
from ctgrounding.evaluation.depth import SnippetDepth
from ctgrounding.evaluation.depth_groups import depth_prior
from ctgrounding.evaluation.findings import ZeroShotFindings
from ctgrounding.evaluation.organs import OrganRecognition
from ctgrounding.evaluation.retrieval import ReportRetrieval

__all__ = [
    "Cohort",
    "Evaluator",
    "OrganRecognition",
    "Reads",
    "ReportRetrieval",
    "Resampling",
    "SnippetDepth",
    "ZeroShotFindings",
    "depth_prior",
]
