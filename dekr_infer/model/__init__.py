"""The network in plain torch, in upstream's state-dict layout."""
