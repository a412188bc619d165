"""Public checkpoint layouts, one file each: the correspondence of their tensor names to querybox's."""
