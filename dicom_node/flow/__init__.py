"""The workflows: assembly.py decides on a series, analyses.py analyses it; lookback.py has what may come between,
delivery.py the last.

Each step may run twice (a worker died after the work and before the checkpoint), so each does the same
thing again: same files, same bytes, same UIDs, rows that are there already.
"""

from dicom_node.flow.analyses import Stopwatch
from dicom_node.flow.assembly import Count
from dicom_node.flow.workflows import Flow

__all__ = ["Count", "Flow", "Stopwatch"]
