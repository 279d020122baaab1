"""Who this software says it is, on the network and inside every object that it makes."""

from __future__ import annotations

from dicom_node import __version__

# A random UUID drawn once (PS3.5 B.2): it names this implementation, not one installation.
IMPLEMENTATION_CLASS_UID = "2.25.169371398329512833116769049351724176916"
IMPLEMENTATION_VERSION_NAME = "DICOM_NODE_" + "_".join(__version__.split(".")[:2])  # at most 16 characters
MANUFACTURER = "dicom_node project"
MODEL_NAME = "dicom_node"
SOFTWARE_VERSION = __version__
CODING_SCHEME = "99DICOMNODE"  # PS3.16 8.2: private designators begin with 99
