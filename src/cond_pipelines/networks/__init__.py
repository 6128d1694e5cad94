"""Networks: sizes of UNets, changes to pretrained ones, text encoders, checkpoints of diffusers' own."""
