"""Names that moved to `settings`; for the command."""

from .settings import METHODS as METHODS
