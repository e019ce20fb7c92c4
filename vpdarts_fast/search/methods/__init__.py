"""Methods as compositions of parts, one file for each kind of parts; `recipes` names whole compositions."""
