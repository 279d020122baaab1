"""Files of one series -> headers -> frames -> the geometry gate -> CTSeries -> Volume. In doubt, refuse.

headers reads, multiframe takes frames apart, gate judges, decode makes Hounsfield units.
"""

from dicom_node.series.decode import to_volume
from dicom_node.series.gate import check_series, consensus, images_of, read_series
from dicom_node.series.headers import InstanceFile, read_headers, readable_headers

__all__ = [
    "InstanceFile",
    "check_series",
    "consensus",
    "images_of",
    "read_headers",
    "read_series",
    "readable_headers",
    "to_volume",
]
