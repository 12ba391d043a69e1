"""AIvailable: the GPU machines of a LAN as one highly available LLM service."""

__version__ = "0.1.0"
