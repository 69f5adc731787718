"""What may leave a device, and what stays."""
