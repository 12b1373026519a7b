"""One file per way of telling call control what was heard."""
