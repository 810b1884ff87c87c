//! Which experts a token chooses: the skews that the papers measure under.
