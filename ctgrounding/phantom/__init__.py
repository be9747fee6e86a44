"""Synthetic patients: bodies with known organs and findings, scanned and reported like real ones."""

from ctgrounding.phantom.files import write_patients
from ctgrounding.phantom.kinds import KINDS
from ctgrounding.phantom.patient import Patient, Scan, make_patient

__all__ = ["KINDS", "Patient", "Scan", "make_patient", "write_patients"]
