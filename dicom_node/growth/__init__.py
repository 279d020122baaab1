"""Our earlier report with its segmentation, and two CTs -> what became of each nodule.

Pure: no network, no database, no clock, no torch. `prior` and `segments` read the earlier objects, `registration`,
`landmarks` and `alignment` lay the lungs on each other, `quality` judges that, `matching` pairs nodules, `tissue` looks
at places, `change` does the sums, `comparing` tells the story.
"""

from dicom_node.growth.comparing import compare, not_compared
from dicom_node.growth.prior import acquired_at, is_ours, read_prior

__all__ = ["acquired_at", "compare", "is_ours", "not_compared", "read_prior"]
