"""Ways to turn the real rows of one cluster into integers, each a `types.Quantizer`."""
