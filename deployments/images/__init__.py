"""Where images come from: bytes, base64, http(s) and S3 URLs, files, and which of them are allowed."""
