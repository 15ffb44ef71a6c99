"""What turns gradients into new parameters, apart from the layers."""
