"""The web role: pages, JSON API, metrics and health. It reads rows and files; changes go through control.py."""
