"""Files to a peer, the way that its settings say: C-STORE or STOW-RS, with the same outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.peers import PeerConfig

if TYPE_CHECKING:
    from dicom_node.dimse.scu import Outcome


def send(files: Iterable[Path], peer: PeerConfig, calling_ae: str) -> Iterator[Outcome]:
    """One Outcome for each file, in their order, as it becomes known."""
    if peer.deliver_by == "stow_rs":
        from dicom_node.dicomweb import stow

        return stow.send(files, peer)
    from dicom_node.dimse import scu

    return scu.send(files, peer, calling_ae)
