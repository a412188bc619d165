"""Why is my AP 0? What a run's own record says of matching, classification, boxes, data and schedule."""

from querybox.diagnosis.diagnose import Diagnosis, diagnose
from querybox.diagnosis.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
