"""Recognisable names, numbers and dates of patients, and a look for them in what we say and write.

Tests plant them where data sets and hospital files have them. Ids that a data set publishes are
no secrets, and are made of other words.
"""

import traceback
import warnings
from pathlib import Path

NAME, NUMBER, BIRTH = "Quorrasson^Zyxwvut", "MRN8675309", "19370512"
SECRETS = ("quorrasson", "zyxwvut", "8675309", "19370512", "1937-05-12")


def leaks(content):
    """The planted words in a text or in bytes."""
    if isinstance(content, bytes):
        content = content.decode("latin-1") + content.decode("utf-16-le", "ignore")
    return [secret for secret in SECRETS if secret in content.lower()]


def said(function, *errors):
    """All that a call says if it fails or warns: the traceback as Python prints it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = function()
        except errors as error:
            text = "".join(traceback.format_exception(error))
        else:
            text = repr(found)
            if hasattr(found, "summary"):
                text += str(found.summary()) + "\n".join(found.skipped)
    # Lines of code in the traceback are those of this file as well.
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return text + "".join(str(warning.message) for warning in caught)


def files_of(folder):
    """All files below a folder with their bytes."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
