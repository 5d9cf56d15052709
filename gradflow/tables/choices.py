"""What the settings of a table may be: names, without the imports that using them takes."""

TARGETS = ("target", "label", "class", "y")
"""The names, in upper or lower case, of a column that is the target where none is given."""

TASKS = ("classes", "values")
"""What can be predicted: classes, or numbers, by regression."""

ENCODINGS = ("auto", "piecewise", "standard")
"""How numbers are encoded: by bins, or as they are, standardized; "auto" takes bins if there are enough rows."""
