"""Entry points of the executables that a toolstack starts."""
