"""Values -> content items of a report (PS3.3 C.17.3), for every kind of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from highdicom import sr
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node.domain import CTImage, ModelIdentity
from dicom_node.identity import MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results.measure import Axis
from dicom_node.results.sr_codes import ENGLISH, SOURCE
from dicom_node.results.tracking import Tracking
from dicom_node.results.uids import derive_uid

Item = sr.ContentItem
Relationship = sr.RelationshipTypeValues
Points = NDArray[np.float64]


def text(name: Code, value: str, relationship: Relationship = Relationship.CONTAINS) -> Item:
    return sr.TextContentItem(name=name, value=value, relationship_type=relationship)


def code(name: Code, value: Code, relationship: Relationship = Relationship.CONTAINS) -> Item:
    return sr.CodeContentItem(name=name, value=value, relationship_type=relationship)


def number(name: Code, value: float, unit: Code, relationship: Relationship = Relationship.CONTAINS) -> Item:
    return sr.NumContentItem(name=name, value=rounded(value), unit=unit, relationship_type=relationship)


def uid(name: Code, value: str, relationship: Relationship = Relationship.CONTAINS) -> Item:
    return sr.UIDRefContentItem(name=name, value=value, relationship_type=relationship)


def container(name: Code, items: Sequence[Item], relationship: Relationship = Relationship.CONTAINS) -> Item:
    made = sr.ContainerContentItem(name=name, is_content_continuous=False, relationship_type=relationship)
    return holding(made, items)


def holding(item: Item, items: Sequence[Item]) -> Item:
    """`item` with `items` below it, behind those that it has."""
    item.ContentSequence = sr.ContentSequence([*item.get("ContentSequence", ()), *items])
    return item


def image(name: Code, of: CTImage, relationship: Relationship = Relationship.CONTAINS) -> Item:
    return sr.ImageContentItem(
        name=name,
        referenced_sop_class_uid=of.sop_class_uid,
        referenced_sop_instance_uid=of.sop_instance_uid,
        referenced_frame_numbers=of.frame,
        relationship_type=relationship,
    )


def drawn(
    name: Code, graphic: str, points: Points, on: CTImage, relationship: Relationship = Relationship.CONTAINS
) -> Item:
    """Coordinates on an image: (n, 2) of (column, row), (0.5, 0.5) the centre of the top left pixel (C.18.6.1.2)."""
    made = sr.ScoordContentItem(name=name, graphic_type=graphic, graphic_data=points, relationship_type=relationship)
    return holding(made, [image(SOURCE, on, Relationship.SELECTED_FROM)])


def line(axis: Axis) -> Points:
    """The two ends of a caliper as coordinates on its image, (2, 2)."""
    return np.array([[column + 0.5, row + 0.5] for _, row, column in axis.ends_index])


def outline(contour: Points) -> Points:
    """A contour as it is, but one of a pixel or two with more points.

    OHIF 3.13 takes a polyline of 4 or 5 points for a rectangle that it could track, and asks its user about it.
    """
    if len(contour) > 5:
        return contour
    middles = (contour[:-1] + contour[1:]) / 2
    return np.concatenate([np.stack([contour[:-1], middles], axis=1).reshape(-1, 2), contour[-1:]])


def language() -> sr.LanguageOfContentItemAndDescendants:
    """PS3.16 TID 1204."""
    return sr.LanguageOfContentItemAndDescendants(sr.CodedConcept.from_code(ENGLISH))


def observer() -> sr.ObservationContext:
    """The node as the device that observed (PS3.16 TID 1004)."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION),
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def track_items(tracking: Tracking) -> list[Item]:
    """PS3.16 TID 4108."""
    context = Relationship.HAS_OBS_CONTEXT
    return [
        text(codes.DCM.TrackingIdentifier, tracking.identifier, context),
        uid(codes.DCM.TrackingUniqueIdentifier, tracking.uid, context),
    ]


def algorithm(model: ModelIdentity, relationship: Relationship, *, name: str | None = None) -> list[Item]:
    """PS3.16 TID 4019. name: where it is to say more than the model's own."""
    values = (
        (codes.DCM.AlgorithmName, name or model.name),
        (codes.DCM.AlgorithmVersion, model.version),
        (codes.DCM.AlgorithmParameters, f"bundle_sha256={model.bundle_sha256}"),
        (codes.DCM.AlgorithmParameters, parameters(model)),
    )
    return [text(concept, value, relationship) for concept, value in values]


def parameters(model: ModelIdentity) -> str:
    return ", ".join(
        [f"operating_point={model.operating_point:g}"]
        + [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(model.parameters.items())]
    )


def rounded(value: float) -> float:
    """Three decimals: more than the image can give, and short enough for a decimal string."""
    return round(float(value), 3)
