"""Diagnosis: find likely causes of a low AP in the record of a run."""

from querybox.diagnosis.diagnose import Diagnosis, diagnose
from querybox.diagnosis.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
