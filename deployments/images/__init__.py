"""Where images come from: bytes, base64, http(s), S3 and files; which of them are allowed."""
