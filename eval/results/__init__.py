"""The files of an evaluation: names of runs, their shapes, partial files. What reads or writes them may enter."""
