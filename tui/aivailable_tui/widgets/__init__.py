"""The parts of the screen, one module per area."""
