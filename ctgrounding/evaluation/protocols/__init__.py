"""Published evaluations by name, as data, and the evaluators that reproduce them.

A protocol is a YAML file here: which scans, labels, prompts, scores, duplicates and thresholds, and where it departs
from what was published. ``labels.yaml`` holds the label sets and mappings that they share.
"""

from ctgrounding.evaluation.protocols.build import Heads, Plan, plan
from ctgrounding.evaluation.protocols.definition import Part, Protocol, label_set, load, names

__all__ = ["Heads", "Part", "Plan", "Protocol", "label_set", "load", "names", "plan"]
