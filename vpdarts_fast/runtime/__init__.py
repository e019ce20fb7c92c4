"""What a program runs on and how: the machine's memory, the precision, CUDA graphs."""
