"""Compress a CT series losslessly (JPEG-LS) for the demo: python tools/make_demo_scan.py DICOM_DIR OUT_DIR."""

import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import JPEGLSLossless


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    datasets = [pydicom.dcmread(path) for path in sorted(source.rglob("*.dcm"))]
    datasets = [ds for ds in datasets if ds.Modality == "CT"]
    datasets.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    for number, ds in enumerate(datasets, start=1):
        before = ds.pixel_array.copy()
        # The compression is lossless: the image stays the same instance (PS3.4 B.2.2).
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
        path = target / f"{number:04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        if not np.array_equal(pydicom.dcmread(path).pixel_array, before):
            raise SystemExit(f"{path} does not decode to what it was made from")
    print(f"{len(datasets)} images, {sum(p.stat().st_size for p in target.glob('*.dcm')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
