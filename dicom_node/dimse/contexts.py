"""Which SOP Classes and Transfer Syntaxes the Storage SCP accepts: one table, also for the conformance statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import pydicom.uid as sop_class
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext

from dicom_node.config import Config, StorageClassGroup
from dicom_node.errors import ConfigError
from dicom_node.transfer_syntaxes import ACCEPTED, DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE

UNCOMPRESSED = (EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED)
TRANSFER_SYNTAXES = tuple(syntax.uid for syntax in ACCEPTED)

CT_IMAGE = str(sop_class.CTImageStorage)
VERIFICATION = "1.2.840.10008.1.1"
VERIFICATION_SYNTAXES = UNCOMPRESSED[:3]
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"  # Push Model

# In PS3.6 since pydicom 3.0.
_NEWER_NAMES = {
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.1": "Waveform Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.2": "Waveform Acquisition Presentation State Storage",
}

_ENHANCED_CT = (sop_class.EnhancedCTImageStorage, sop_class.LegacyConvertedEnhancedCTImageStorage)

_IMAGES = (
    sop_class.ComputedRadiographyImageStorage,
    sop_class.DigitalXRayImageStorageForPresentation,
    sop_class.DigitalXRayImageStorageForProcessing,
    sop_class.DigitalMammographyXRayImageStorageForPresentation,
    sop_class.DigitalMammographyXRayImageStorageForProcessing,
    sop_class.BreastTomosynthesisImageStorage,
    sop_class.MRImageStorage,
    sop_class.EnhancedMRImageStorage,
    sop_class.EnhancedMRColorImageStorage,
    sop_class.LegacyConvertedEnhancedMRImageStorage,
    sop_class.PositronEmissionTomographyImageStorage,
    sop_class.EnhancedPETImageStorage,
    sop_class.LegacyConvertedEnhancedPETImageStorage,
    sop_class.NuclearMedicineImageStorage,
    sop_class.UltrasoundImageStorage,
    sop_class.UltrasoundMultiFrameImageStorage,
    sop_class.SecondaryCaptureImageStorage,
    sop_class.MultiFrameSingleBitSecondaryCaptureImageStorage,
    sop_class.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    sop_class.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    sop_class.MultiFrameTrueColorSecondaryCaptureImageStorage,
    sop_class.XRayAngiographicImageStorage,
    sop_class.EnhancedXAImageStorage,
    sop_class.XRayRadiofluoroscopicImageStorage,
    sop_class.EnhancedXRFImageStorage,
    sop_class.XRay3DAngiographicImageStorage,
    sop_class.RTImageStorage,
)

_RESULTS = (
    sop_class.SegmentationStorage,
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation, which pydicom 3.0 does not name
    sop_class.SurfaceSegmentationStorage,
    sop_class.ParametricMapStorage,
    sop_class.RealWorldValueMappingStorage,
    sop_class.SpatialRegistrationStorage,
    sop_class.DeformableSpatialRegistrationStorage,
    sop_class.SpatialFiducialsStorage,
    sop_class.BasicTextSRStorage,
    sop_class.EnhancedSRStorage,
    sop_class.ComprehensiveSRStorage,
    sop_class.Comprehensive3DSRStorage,
    sop_class.ExtensibleSRStorage,
    sop_class.KeyObjectSelectionDocumentStorage,
    sop_class.ChestCADSRStorage,
    sop_class.XRayRadiationDoseSRStorage,
    sop_class.EnhancedXRayRadiationDoseSRStorage,
    sop_class.PatientRadiationDoseSRStorage,
    sop_class.GrayscaleSoftcopyPresentationStateStorage,
    sop_class.ColorSoftcopyPresentationStateStorage,
    sop_class.BlendingSoftcopyPresentationStateStorage,
    sop_class.EncapsulatedPDFStorage,
    sop_class.RTStructureSetStorage,
)

CT_CLASSES = (CT_IMAGE, *map(str, _ENHANCED_CT))
REPORT_CLASS = str(sop_class.Comprehensive3DSRStorage)
SEGMENTATION_CLASSES = (str(sop_class.SegmentationStorage), "1.2.840.10008.5.1.4.1.1.66.7")
# What an archive sends us by C-MOVE for a comparison, beside the images: our own earlier results.
PRIOR_CLASSES = (REPORT_CLASS, *SEGMENTATION_CLASSES)


def name_of(uid: str) -> str:
    """The name of a UID in PS3.6."""
    return _NEWER_NAMES.get(uid) or sop_class.UID(uid).name


def _others() -> tuple[str, ...]:
    """Every further class of PS3.4's Storage Service Class that pynetdicom knows."""
    named = {CT_IMAGE, *map(str, (*_ENHANCED_CT, *_IMAGES, *_RESULTS))}
    return tuple(uid for cx in AllStoragePresentationContexts if (uid := str(cx.abstract_syntax)) not in named)


# CT Image Storage is always accepted; receive.also_accept adds these groups.
STORAGE_CLASSES: Mapping[StorageClassGroup, tuple[str, ...]] = MappingProxyType(
    {
        "enhanced_ct": tuple(map(str, _ENHANCED_CT)),
        "images": tuple(map(str, _IMAGES)),
        "results": tuple(map(str, _RESULTS)),
        "other": _others(),
    }
)


def accepted_classes(groups: Iterable[StorageClassGroup]) -> tuple[str, ...]:
    """The Storage SOP Classes that a node with these groups accepts, CT Image Storage first."""
    return (CT_IMAGE, *(uid for group in sorted(set(groups)) for uid in STORAGE_CLASSES[group]))


def supported_contexts(groups: Iterable[StorageClassGroup]) -> list[PresentationContext]:
    """What the acceptor offers. PS3.2: every acceptor also accepts Verification."""
    verification = _context(VERIFICATION, VERIFICATION_SYNTAXES)
    return [verification, *(_context(uid, TRANSFER_SYNTAXES) for uid in accepted_classes(groups))]


def with_results(contexts: Iterable[PresentationContext]) -> list[PresentationContext]:
    """The same, and our own results, for an archive that sends them back to be compared with."""
    known = list(contexts)
    named = {str(context.abstract_syntax) for context in known}
    return [*known, *(_context(uid, TRANSFER_SYNTAXES) for uid in PRIOR_CLASSES if uid not in named)]


def commitment_context() -> PresentationContext:
    """Storage Commitment in both roles: peers ask us, and report on Associations of theirs (PS3.4 J.3.1)."""
    context = _context(STORAGE_COMMITMENT, (EXPLICIT_LITTLE, IMPLICIT_LITTLE))
    context.scu_role = context.scp_role = True
    return context


def without_storage(contexts: Iterable[PresentationContext]) -> list[PresentationContext]:
    """For who may not store to us."""
    return [context for context in contexts if context.abstract_syntax in (VERIFICATION, STORAGE_COMMITMENT)]


def check_preferences(config: Config) -> None:
    """Raises ConfigError where a peer's accept_first names what this node never accepts."""
    for name, peer in config.peers.items():
        unknown = [uid for uid in peer.accept_first if uid not in TRANSFER_SYNTAXES]
        if unknown:
            raise ConfigError(
                f"peers.{name}.accept_first: {', '.join(unknown)} is no Transfer Syntax that this node receives"
            )


def preferring(contexts: Iterable[PresentationContext], first: Sequence[str]) -> list[PresentationContext]:
    """The same contexts, each with those of `first` that it has before its other Transfer Syntaxes."""
    return [_preferring(context, first) for context in contexts]


def _preferring(context: PresentationContext, first: Sequence[str]) -> PresentationContext:
    syntaxes = dict.fromkeys(uid for uid in (*first, *context.transfer_syntax) if uid in context.transfer_syntax)
    made = _context(str(context.abstract_syntax), tuple(syntaxes))
    made.scu_role, made.scp_role = context.scu_role, context.scp_role
    return made


def _context(abstract_syntax: str, transfer_syntaxes: tuple[str, ...]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = abstract_syntax
    context.transfer_syntax = list(transfer_syntaxes)
    return context
