"""Which objects a destination gets, and in which form: the built-in profiles, and those that a site writes itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from dicom_node.fields import Name, Section
from dicom_node.forms import did_you_mean

Segmentation = Literal["binary", "fractional", "labelmap", "none"]
Frames = Literal["sparse", "full"]
Report = Literal["tid1500", "text", "chest_cad"]
Captures = Literal["none", "single_frame", "multi_frame"]

# Kinds of objects in the order in which they are made and sent: what is referred to before what refers to it.
KINDS = ("seg", "capture", "pdf", "presentation", "sr", "sr_text", "sr_cad", "key_objects")
REPORT_KINDS: dict[Report, str] = {"tid1500": "sr", "text": "sr_text", "chest_cad": "sr_cad"}


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
    segmentation_frames: Frames = "sparse"
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

# docs/profiles.md says why each switch stands where it does.
BUILT_IN_PROFILES: dict[str, ResultProfile] = {
    "ohif": ResultProfile(),
    "weasis": ResultProfile(key_objects=True, presentation_states=True),
    "slicer": ResultProfile(narrative=False),
    "legacy": ResultProfile(segmentation="none", reports=("text",), captures="single_frame"),
    "air": ResultProfile(narrative=False, key_objects=True),
}


class SiteProfile(ResultProfile):
    """A site's own profile. like: the built-in one whose switches hold where this one gives none."""

    like: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _starts_from(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        start = BUILT_IN_PROFILES.get(str(given.get("like")))
        return given if start is None else {**start.model_dump(), **given}

    @field_validator("like")
    @classmethod
    def _built_in(cls, like: str | None) -> str | None:
        if like is not None and like not in BUILT_IN_PROFILES:
            raise ValueError(f"{like!r} is no built-in profile" + did_you_mean(like, BUILT_IN_PROFILES))
        return like


COLUMNS = ("SEG", "SR", "captures", "KOS", "GSPS", "PDF")


def in_words(profile: ResultProfile) -> tuple[str, ...]:
    """What it sends of each of COLUMNS; "-" for nothing."""
    tid1500 = "TID 1500" + (", narrative" if profile.narrative else "")
    names: dict[Report, str] = {"tid1500": tid1500, "text": "Basic Text", "chest_cad": "Chest CAD"}
    return (
        "-" if profile.segmentation == "none" else f"{profile.segmentation}, {profile.segmentation_frames}",
        "; ".join(names[report] for report in profile.reports) or "-",
        "-" if profile.captures == "none" else profile.captures.replace("_", " "),
        *("yes" if on else "-" for on in (profile.key_objects, profile.presentation_states, profile.pdf)),
    )
