"""Imported last by the fork server: exempts what it has imported from garbage collection in all of its processes.

A full collection would visit a million objects, and so copy the memory that the processes share.
"""

import gc

from PIL import Image

from querybox.html import environment

Image.init()  # imports the formats of files, which is otherwise done for the first file
environment().get_template("report.html")  # compiled, which is otherwise done for the first report
gc.freeze()
