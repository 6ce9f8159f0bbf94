"""Signing and verification of bundles and assignments (TUF metadata, Uptane's two repositories). Bytes in, objects out."""
