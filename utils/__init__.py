"""Helpers for the scripts and both packages.

A program may have a folder `utils` of its own: where this package is found first, the modules of that are found, too.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
