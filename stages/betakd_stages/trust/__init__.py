"""How far a teacher can be believed, sample by sample: fitted to a cache and its labels before any student exists.

groups.py      which samples are alike: category and first words of the question
background.py  chance: how likely an answer is for somebody who saw the other answers of its group, and no image
evidence.py    what caches say of every sample, in batches
mixture.py     the chances pi that a label came from each teacher and not from the background, cross-fitted
scores.py      from pi to the trust s: the skill switch, and pi relative to the best of its group
report.py      what a person should see of it
file.py        s on disk, with the identity of the cache it is of
run.py         all of it in order
"""
