"""What a search costs a GPU: launches, bytes and products, counted on the real host code, and their times.

aten, kernels    what a call of a PyTorch op and a launch of our kernels cost
counting         runs host code on tensors without data and counts
phases           a training step and a leave-one-out evaluation, plain and fused
roofline         the times that follow, and the assumptions
"""
