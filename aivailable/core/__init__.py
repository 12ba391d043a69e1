"""The pure core: it decides, and does nothing. No I/O, clock, randomness, asyncio or logging."""
