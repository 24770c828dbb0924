"""Online: a catalogue becomes batches."""
