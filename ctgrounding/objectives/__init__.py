"""What a model learns from: one file per training signal, all after :class:`.base.Objective`."""

from ctgrounding.objectives.base import Objective
from ctgrounding.objectives.disease_prompts import DiseasePrompts
from ctgrounding.objectives.global_contrastive import GlobalContrastive
from ctgrounding.objectives.organ_grounding import OrganGrounding
from ctgrounding.objectives.snippet_localization import SnippetLocalization

__all__ = ["Objective", "GlobalContrastive", "DiseasePrompts", "SnippetLocalization", "OrganGrounding"]
