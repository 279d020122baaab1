"""A peer's DICOMweb services (PS3.18), spoken to by dicomweb-client."""
