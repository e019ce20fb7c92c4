"""The public function of each op, in a module of its name; `vpdarts_fast.ops` passes the functions on."""
