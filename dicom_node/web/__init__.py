"""The web role: pages, JSON API, metrics and health. It reads rows and files; what it changes goes through control.py."""
