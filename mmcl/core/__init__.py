"""The mathematics: losses, queues and averages of tensors, which import nothing but torch."""
