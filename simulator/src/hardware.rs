//! What a step costs on which hardware: attention, one expert, a launch, the LM head, a row on the wire.
