"""The numerical algorithms behind the maps, one a file: pure functions of arrays."""
