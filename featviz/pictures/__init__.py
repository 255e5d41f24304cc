"""Pictures: files to tensors and back, sizes, films."""
