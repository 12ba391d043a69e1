"""The terminal monitor: `aivailable top`."""
