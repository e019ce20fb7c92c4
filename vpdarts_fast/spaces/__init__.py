"""Search spaces: candidate operations, edges, architecture strings and the networks built from them."""
