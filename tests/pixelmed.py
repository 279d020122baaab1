"""PixelMed's validator of structured reports, which is of 2022."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

VALIDATE_REPORTS = Path(__file__).resolve().parent / "ValidateReports.java"
JARS = [Path("/usr/share/java") / name for name in ("pixelmed.jar", "Saxon-HE.jar")]

needs_pixelmed = pytest.mark.skipif(
    not all(jar.exists() for jar in JARS), reason="no PixelMed here: tests/peers.sh installs it"
)

# Its templates have no evaluations in words or codes in a measurement group (TID 1410, rows 12 and 13), and it holds
# all groups of a report for one kind: calipers (TID 1501) beside segments are looked at as segments.
ITS_OWN = re.compile(
    r"different code meaning"  # highdicom writes "Source Series" where the template has "Source series"
    r'|"Measurement Group"\)/(CODE|TEXT) \([^/]*\): Content Item not in template$'
    r'|"Measurement Group"\)/NUM \([^/]*axis"\)/SCOORD \(121055,DCM,"Path"\)(/IMAGE \([^/]*\))?'
    r": Content Item not in template$"
    r"|^Error: Template 1411 .*Row (5|7|10)\] .*: Missing conditional content item$"
)


def verdicts_on(files: Iterable[Path]) -> dict[Path, str]:
    """What it says of each file, from one start of Java."""
    done = subprocess.run(
        [
            "java", "-Xss256m", "-Djavax.xml.transform.TransformerFactory=net.sf.saxon.TransformerFactoryImpl",
            "-cp", ":".join(map(str, JARS)), str(VALIDATE_REPORTS), *map(str, files),
        ],
        capture_output=True, text=True, errors="replace", timeout=300, check=False,
    )  # fmt: skip
    parts = dict(part.split("\n", 1) for part in done.stdout.split("=== ")[1:])
    return {Path(name): verdict for name, verdict in parts.items()}


def complaints_in(verdict: str) -> list[str]:
    """Its errors and warnings, without those that are its own."""
    lines = [line for line in verdict.splitlines() if line.startswith(("Error", "Warning"))]
    return [line for line in lines if not ITS_OWN.search(line)]
