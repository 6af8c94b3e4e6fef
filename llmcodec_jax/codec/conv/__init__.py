"""The convolutional codecs: the parts they share, then a file for each family."""
