"""How faithful bundles are to another one, without knowing any right answer."""
