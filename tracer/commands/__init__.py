"""One verb a file: options in, a call or three out."""
