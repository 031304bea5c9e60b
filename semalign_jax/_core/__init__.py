"""What every part of the library stands on: types, checks, linear algebra, files.

Private. It knows nothing of maps, and imports nothing else of the library.
"""
