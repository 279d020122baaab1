"""Pages as pictures -> a Secondary Capture series (PS3.3 A.8), for viewers that show neither SEG nor SR.

Uncompressed RGB, which every archive takes. The pages claim no place in the patient: they hold several scales.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, SecondaryCaptureImageStorage

from dicom_node.domain import RESEARCH_USE, CTImage
from dicom_node.identity import MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results.headers import Kind, Origin, put_headers
from dicom_node.results.pages import MOST_PICTURED, PAGE_PX, Page, pages_of, refusal_pages
from dicom_node.results.part10 import seal, seal_series
from dicom_node.results.reading import Reading, Refusal
from dicom_node.results.references import image_items

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def build_captures(reading: Reading, *, multi_frame: bool) -> tuple[Dataset, ...]:
    """The pages of `pages.pages_of` as one Instance of as many frames, or as a series of single-frame Instances.

    One page is a single-frame Instance either way: one frame has nothing to count by.
    """
    pages = pages_of(reading)
    count = len(reading.findings)
    title = f"Nodule pictures: {count or 'none'} found"
    if not multi_frame or len(pages) == 1:
        return seal_series(
            [_single_frame(page, title, reading.origin, _images(reading, [page])) for page in pages],
            reading.origin,
            Kind.CAPTURE,
        )
    return (seal(_multi_frame(pages, title, reading.origin, _images(reading, pages)), reading.origin, Kind.CAPTURE),)


def build_refusal_capture(refusal: Refusal) -> Dataset:
    """One page that says that the series was not analysed, and why."""
    (page,) = refusal_pages(refusal)
    ds = _single_frame(page, "Lung nodules: NOT ANALYSED", refusal.origin, [])
    return seal(ds, refusal.origin, Kind.CAPTURE)


def _images(reading: Reading, pages: Sequence[Page]) -> list[CTImage]:
    """The source images that are pictured, in the order of the series."""
    return [reading.series.images[index] for index in sorted({index for page in pages for index in page.slices})]


def _single_frame(page: Page, title: str, origin: Origin, images: Sequence[CTImage]) -> Dataset:
    ds = _base(title, origin, images)
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.ImageComments = page.label
    ds.PixelData = page.image.tobytes()
    return ds


def _multi_frame(pages: Sequence[Page], title: str, origin: Origin, images: Sequence[CTImage]) -> Dataset:
    ds = _base(title, origin, images)
    ds.SOPClassUID = MultiFrameTrueColorSecondaryCaptureImageStorage
    ds.NumberOfFrames = len(pages)
    # PS3.3 C.8.6.4: frames that are pages, not moments; a viewer has no reason to play them as a film.
    ds.FrameIncrementPointer = Tag("PageNumberVector")
    ds.PageNumberVector = list(range(1, len(pages) + 1))
    ds.PixelData = b"".join(page.image.tobytes() for page in pages)
    return ds


def _base(title: str, origin: Origin, images: Sequence[CTImage]) -> Dataset:
    ds = Dataset()
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.ConversionType = "SYN"  # PS3.3 C.8.6.1: a synthetic image; nobody's screen was captured
    ds.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    ds.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    ds.SecondaryCaptureDeviceSoftwareVersions = SOFTWARE_VERSION
    ds.DerivationDescription = (
        f"Table and pictures of lung nodule candidates, of {MOST_PICTURED} at most. Lung window. {RESEARCH_USE}."
    )
    ds.BodyPartExamined = "CHEST"
    ds.PatientOrientation = ""
    ds.BurnedInAnnotation = "NO"  # what is burned in identifies nobody
    ds.RecognizableVisualFeatures = "NO"
    _put_lossy(ds, origin.header)
    if images:
        ds.SourceImageSequence = image_items(images)
        for item in ds.SourceImageSequence:
            purpose = codes.DCM.SourceImageForImageProcessingOperation
            item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(purpose)]
    ds.SamplesPerPixel = 3
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.Columns, ds.Rows = PAGE_PX
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    put_headers(ds, origin, Kind.CAPTURE, title)
    return ds


def _put_lossy(ds: Dataset, header: Dataset) -> None:
    """PS3.3 C.7.6.1.1.5: what was lost once stays lost in all that is made of it."""
    ds.LossyImageCompression = "00"
    if header.get("LossyImageCompression") == "01":
        for keyword in _LOSSY:
            if keyword in header:
                ds[keyword] = header[keyword]
