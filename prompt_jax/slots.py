"""Prompt slots are virtual token ids: `SLOT0 + i` is the place of prompt vector `i` in a row.

The first slot lies above every vocabulary, so one id serves every backbone. The data layer writes
slots, the model looks up row 0 of its table for them, and the tap at site `embed` replaces what
it finds there: `slot = tokens - SLOT0; x = where(slot >= 0, prompts[max(slot, 0)], x)`.
"""

SLOT0 = 1 << 20
