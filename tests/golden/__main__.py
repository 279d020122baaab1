"""`python -m tests.golden`: write the golden files anew."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dicom_node.profiles import BUILT_IN_PROFILES
from tests.golden import FOLDER, as_text, golden
from tests.golden.cases import cases

with tempfile.TemporaryDirectory() as folder:
    source = list(cases(Path(folder)))
for name, profile in BUILT_IN_PROFILES.items():
    path = FOLDER / f"{name}.json"
    text = as_text(golden(profile, source))
    changed = not path.exists() or path.read_text(encoding="utf-8") != text
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {'written' if changed else 'as it was'}")
