"""Numbers that come with their protocol: evaluators, saved embeddings, results and the page that shows them."""

from ctgrounding.evaluation.base import Evaluator, Reads, Resampling
from ctgrounding.evaluation.cohort import Cohort
from ctgrounding.evaluation.depth import SnippetDepth
from ctgrounding.evaluation.depth_groups import depth_prior
from ctgrounding.evaluation.findings import ZeroShotFindings
from ctgrounding.evaluation.organ_abnormality import OrganAbnormality
from ctgrounding.evaluation.organs import OrganRecognition
from ctgrounding.evaluation.pointing import OrganPointing
from ctgrounding.evaluation.pooled_retrieval import PooledRetrieval
from ctgrounding.evaluation.retrieval import ReportRetrieval
from ctgrounding.evaluation.scan_retrieval import ScanRetrieval
from ctgrounding.evaluation.selection import Selection

__all__ = [
    "Cohort",
    "Evaluator",
    "OrganAbnormality",
    "OrganPointing",
    "OrganRecognition",
    "PooledRetrieval",
    "Reads",
    "ReportRetrieval",
    "Resampling",
    "ScanRetrieval",
    "Selection",
    "SnippetDepth",
    "ZeroShotFindings",
    "depth_prior",
]
