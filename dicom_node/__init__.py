"""A DICOM node beside the PACS: CT series in, nodule findings out as SEG and SR. Research use, not for diagnosis."""

__version__ = "0.1.0"
