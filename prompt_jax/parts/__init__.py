"""The parts a method is composed of: bank, init, select, inject, head, trainable, phases."""
