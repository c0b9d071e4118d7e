"""Open-set recognition by classification and reconstruction, in JAX."""

__version__ = '0.1.0'
