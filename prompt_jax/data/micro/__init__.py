"""Generated English: the embedded tasks' texts and what the embedded backbones are pretrained on.

Plain Python and numpy. Everything is a pure function of (source, split, seed, index).
"""
