"""Which objects a destination gets, and in which form: the built-in profiles, and those that a site writes itself."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from dicom_node.fields import Section

Segmentation = Literal["binary", "fractional", "labelmap", "none"]
Report = Literal["tid1500", "text", "chest_cad"]
Captures = Literal["none", "single_frame", "multi_frame"]


class ResultProfile(Section):
    """Switches of what goes to a destination.

    segmentation: form of the SEG. segmentation_frames: sparse leaves out frames that hold nothing of their segment.
    reports: kinds of SR; tid1500 is Comprehensive 3D SR, text is Basic Text SR, chest_cad is Chest CAD SR.
    narrative: an English text of the findings in the tid1500 report.
    captures: Secondary Capture pictures, a summary page and a key slice a finding.
    key_objects: a Key Object Selection of the key images.
    presentation_states: Grayscale Softcopy Presentation States with the outlines as graphics.
    pdf: the summary as Encapsulated PDF.
    """

    segmentation: Segmentation = "binary"
    segmentation_frames: Literal["sparse", "full"] = "sparse"
    reports: tuple[Report, ...] = ("tid1500",)
    narrative: bool = True
    captures: Captures = "none"
    key_objects: bool = False
    presentation_states: bool = False
    pdf: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> ResultProfile:
        if len(set(self.reports)) < len(self.reports):
            raise ValueError("reports names a kind twice")
        if not (self.reports or self.pdf or self.captures != "none"):
            raise ValueError('needs a report, captures or pdf: "nothing found" must be said somewhere')
        return self


DEFAULT_PROFILE = "ohif"

BUILT_IN_PROFILES: dict[str, ResultProfile] = {
    "ohif": ResultProfile(),
    "weasis": ResultProfile(segmentation_frames="full", key_objects=True, presentation_states=True),
    "slicer": ResultProfile(segmentation_frames="full", narrative=False),
    "legacy": ResultProfile(segmentation="none", reports=("text",), captures="single_frame"),
    "air": ResultProfile(narrative=False, key_objects=True),
}
